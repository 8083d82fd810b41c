"""The recipe as a user launches it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
SMALL = ["--benchmark.image-size", "16", "--benchmark.num-targets", "5", "--benchmark.num-source", "20"]
SMALL += ["--student.model-args", "{widths: [4, 8]}", "--distiller.num-images", "6", "--distiller.batch-size", "8"]
# The second one is smaller than the network can be.
SMALL += ["--curves.image-size", "[8, 2]", "--curves.steps", "1"]
SMALL += [f"--curves.{axis}=[]" for axis in ("num-images", "batch-size", "widths", "num-source")]


def launch(*args):
    command = [*LAUNCHER, str(ROOT / "recipes" / "cost_curves.py"), *SMALL, *args]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "curves"
    done = launch("--output", str(output))
    assert done.returncode == 0, done.stderr
    return output, done.stdout, json.loads((output / "cost_curves.json").read_text())


def test_tables_picture_log_and_json_agree(finished):
    output, printed, results = finished
    measured, failed = results["records"]
    assert measured["value"] == 8 and measured["num_features"] == 32 and measured["seconds"] > 0
    assert failed["value"] == 2 and "needs at least 4 pixels a side, got 2" in failed["failed"]
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert log == results["records"]
    for text in (printed, (output / "cost_curves.md").read_text()):
        assert f"{1000 * measured['seconds']:.1f}" in text and "needs at least 4 pixels a side" in text
    assert (output / "cost_curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_figures_depend_on_is_written(finished):
    output, _, results = finished
    assert results["settings"]["curves"]["image_size"] == [8, 2]
    assert results["machine"]["processes"] == 1 and "torch" in results["versions"]
    assert results["exponents"] == {
        "image_size": {name: {"all": None, "upper": None} for name in ("seconds", "memory")}
    }
    assert results["command"].startswith("accelerate launch recipes/cost_curves.py --benchmark.image-size 16")
    assert str(output.parent) not in json.dumps(results["command"])


def test_the_memory_of_a_point_is_its_own(finished):
    measured = finished[2]["records"][0]
    # Nothing but a step of a few tiny images came after the start.
    assert 0 <= measured["memory_gib"] - measured["start_gib"] < 0.2
