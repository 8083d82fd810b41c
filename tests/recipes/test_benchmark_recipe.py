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
SMALL += ["--benchmark.teacher", "ssdd_convnet3", "--benchmark.rounds", "2", "--benchmark.warm-up", "1"]
SMALL += ["--student.model-args", "{widths: [4, 8]}", "--distiller.num-images", "6", "--distiller.batch-size", "8"]
SMALL += ["--distiller.compile", "false", "--distiller.steps", "1000"]


def launch(*args):
    command = [*LAUNCHER, str(ROOT / "recipes" / "benchmark.py"), *SMALL, *args]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "benchmark"
    done = launch("--output", str(output))
    assert done.returncode == 0, done.stderr
    return output, done.stdout, json.loads((output / "benchmark.json").read_text())


def test_table_picture_and_json_agree(finished):
    output, printed, results = finished
    assert f"{results['fast']['median']:10.4f}{results['plain']['median']:10.4f}" in printed
    assert f"{results['ratios']['whole']:.2f} times as fast as plain" in printed
    assert "1000 steps: " in printed
    assert (output / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_figures_depend_on_is_written(finished):
    output, _, results = finished
    assert results["settings"]["distiller"]["num_images"] == 6 and results["settings"]["benchmark"]["rounds"] == 2
    assert results["machine"]["processes"] == 1 and "torch" in results["versions"]
    assert results["command"].startswith("accelerate launch recipes/benchmark.py --benchmark.image-size 16")
    assert str(output.parent) not in json.dumps(results["command"])


def test_bad_input_ends_with_a_message_and_writes_nothing(tmp_path):
    done = launch("--benchmark.rounds", "0", "--output", str(tmp_path / "run"))
    assert done.returncode != 0 and "benchmark.rounds must be at least 1, got 0" in done.stderr
    assert not (tmp_path / "run").exists()
