"""A run of each parameterisation, killed in the middle of its steps, and the same command again."""

from pathlib import Path

import pytest
from reference.warm import Running

from ssdd_hub.distill.parameterisations.registry import PARAMETERISATIONS
from ssdd_hub.record import read_metadata

RECIPES = Path(__file__).parents[2] / "recipes"
STEPS, EVERY = 60, 4
SETTINGS = [
    *("--config", RECIPES / "configs" / "smoke.yaml", "--distiller.steps", STEPS, "--run.checkpoint-every", EVERY),
    *("--teacher-training.max-steps", "2", "--student-training.epochs", "2", "--evaluate.seeds", "1"),
]
# Steps so small that learning changes what is stored; layers that are added within the steps.
ARGS = {"dct": "{step: 0.5, target_step: 0.1}", "bases": "{bases: 8, step: 0.25, target_step: 0.1}"}
ARGS |= {"pyramid": "{every: 10}"}
CASES = {
    **{name: (name, ARGS.get(name, "{}")) for name in PARAMETERISATIONS.known},
    "views-predicted": ("views", "{of: factor, shift: predicted}"),
}


def start(output, case):
    name, args = CASES[case]
    chosen = ("--parameterisation", name, "--parameterisation.args", args, "--output", output)
    return Running(RECIPES / "distill.py", *SETTINGS, "--run.threads", "1", *chosen)


def newest_step(output):
    """Returns the step of the newest checkpoint, -1 where there is none."""
    found = (output / "checkpoints" / "distiller").glob("step-*.safetensors")
    return max((int(path.stem.removeprefix("step-")) for path in found), default=-1)


def stored(output):
    """Returns the bytes of a set's tensors by file, and all that its record says of them."""
    folder = output / "distilled"
    files = {path.name: path.read_bytes() for kind in ("parquet", "safetensors") for path in folder.rglob(f"*.{kind}")}
    return files, {name: part for name, part in read_metadata(folder).items() if name != "provenance"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_in_its_steps_goes_on_to_the_bytes_of_an_unbroken_one(kill_when, tmp_path, case):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(whole, case).finish()
    kill_when(start(killed, case), lambda: newest_step(killed) > EVERY)
    kept = newest_step(killed)
    assert EVERY < kept < STEPS and not (killed / "distilled").exists()
    status, _, errors = start(killed, case).wait()
    assert status == 0, errors
    # Its first word on the steps: it did not begin again.
    assert errors[errors.index("distil:") :].split("[")[0].split()[-1] == f"{kept}/{STEPS}"
    files, record = stored(whole)
    assert [name for name in files if name.endswith(".parquet")] and stored(killed) == (files, record)
    assert (killed / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
