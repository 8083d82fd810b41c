"""The recipe as a user launches it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssdd_hub.teachers.teacher import build_teacher

ROOT = Path(__file__).parents[2]
LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
# The default file is of CIFAR-100, of which everything that is left out here would hold.
SETTINGS = """
data: {max_images: 60}
teacher: {backbone: "local-dir:TEACHER", pretrained: true}
targets: {transform: standardise}
student: {model_args: {widths: [4, 8]}}
pool: {size: 2, max_age: 4}
distiller: {num_images: 8, steps: 6, batch_size: 16, lr_images: 1e-2, lr_targets: 1e-2, augment: false}
use: {epochs: 3, augment: flip}
quality: {goal: 0.99, snapshots: 4, first: 1, seeds: 2, max_heldout: 20}
contenders:
  ours: {}
  plain, paper: {implementation: plain, distiller: {steps: 9, lr_images: 1e-4, augment: true}, pool: {size: 1}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    teacher = build_teacher("ssdd_convnet3", pretrained=False, input_size=16, widths=(4, 6), in_chans=1)
    teacher.save(folder / "teacher")
    (folder / "small.yaml").write_text(SETTINGS.replace("TEACHER", str(folder / "teacher")))
    command = [*LAUNCHER, str(ROOT / "recipes" / "time_to_quality.py"), "--config", str(folder / "small.yaml")]
    command += ["--run.mixed-precision", "bf16", "--output", str(folder / "quality")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "quality", done.stdout, json.loads((folder / "quality" / "time_to_quality.json").read_text())


def test_json_log_table_and_picture_agree(finished):
    output, printed, results = finished
    ours, plain = results["contenders"]
    assert (ours["contender"], plain["contender"]) == ("ours", "plain, paper")
    assert [point["step"] for point in ours["points"]] == [0, 1, 2, 3, 6]
    assert (ours["done"], plain["done"]) == (6, 9)
    for contender in results["contenders"]:
        assert contender["arrived"] is None and contender["extrapolated"] is not None
        assert contender["points"][0]["values"] == results["random"]["values"]
        assert 0 < contender["warm_up"] < contender["points"][-1]["seconds"]
        assert f"{contender['seconds_per_step'] * 1000:.1f}" in printed
    assert (ours["settings"]["distiller"]["augment"], plain["settings"]["distiller"]["augment"]) == (False, True)
    assert (ours["settings"]["pool"]["size"], plain["settings"]["pool"]["size"]) == (2, 1)
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert log == [{"stage": entry["contender"], **point} for entry in (ours, plain) for point in entry["points"]]
    assert (output / "time_to_quality.png").read_bytes().startswith(b"\x89PNG")
    assert "goal: an error of" in printed and "99% below" in printed


def test_what_the_figures_depend_on_is_written(finished):
    output, _, results = finished
    assert results["settings"]["run"]["mixed_precision"] == "bf16" and results["features_seconds"] > 0
    assert results["machine"]["processes"] == 1 and "torch" in results["versions"]
    assert results["command"].startswith("accelerate launch recipes/time_to_quality.py --config")
    assert str(output.parent) not in json.dumps(results["command"])
