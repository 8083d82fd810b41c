"""The recipe as a user launches it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "gradient_bias.py"
LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
SMALL = ["--bias.losses", "[simclr]", "--bias.draws", "48", "--bias.num-images", "4", "--bias.real-images", "32"]
SMALL += ["--bias.widths", "[4]", "--bias.dim", "4", "--bias.inner-steps", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "bias"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*LAUNCHER, str(RECIPE), *SMALL, "--output", str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return output, done.stdout, json.loads((output / "results.json").read_text())


def test_the_augmented_loss_is_biased_and_the_regression_is_not(finished):
    _, _, results = finished
    augmented, drawn, fixed = results["records"]
    assert [record["loss"] for record in results["records"]] == ["simclr", "mse_augmented", "mse"]
    assert augmented["z"] > 5 and augmented["interval"][0] > 0 and augmented["bias"] > 0.1
    assert drawn["std"] > 0.1
    assert fixed["error"] < 1e-6 and fixed["std"] < 1e-6 and fixed["z"] is None
    assert {record["draws"] for record in results["records"]} == {48}


def test_everything_is_written_and_agrees(finished):
    output, printed, results = finished
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    curves = [[record["loss"], *point] for record in results["records"] for point in record["curve"]]
    assert [[entry["stage"], entry["step"], entry["error"]] for entry in log] == curves
    assert yaml.safe_load((output / "config.yaml").read_text())["bias"]["draws"] == 48
    assert (output / "gradient_bias.png").read_bytes().startswith(b"\x89PNG")
    assert f"{results['records'][0]['z']:.1f}" in printed
    assert results["machine"]["processes"] == 1 and "torch" in results["versions"]
    assert results["command"].startswith("accelerate launch recipes/gradient_bias.py --bias.losses")
    assert str(output.parent) not in json.dumps(results)
