"""Two gloo processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssdd_hub.runs.checkpoints import load_tree

WORKER = Path(__file__).parents[1] / "reference" / "distributed_worker.py"
TOLERANCES = {"float64": 1e-9, "float32": 1e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs the same work on one process and on two, and returns both folders."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    made = {}
    for processes, launcher in ((1, [sys.executable]), (2, torchrun)):
        made[processes] = tmp_path_factory.mktemp(f"on-{processes}")
        command = [*launcher, str(WORKER), str(made[processes])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    return made


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("quantity", ["features", "images", "targets", "losses"])
def test_two_processes_distil_what_one_does(folders, precision, augmented, quantity):
    one, two = (load_tree(folder / "results.safetensors")[f"{precision}-{augmented}"] for folder in folders.values())
    assert relative_error(two[quantity], one[quantity]) <= TOLERANCES[precision]


def test_the_images_move_far_more_than_the_two_runs_differ(folders):
    one = load_tree(folders[1] / "results.safetensors")["float64-False"]
    assert one["losses"].shape == (10,)
    assert relative_error(one["losses"][-1], one["losses"][0]) > 1e-3


def test_students_are_the_same_too(folders):
    one, two = (load_tree(folder / "results.safetensors")["float64-False"]["student"] for folder in folders.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-8, atol=1e-10)


def test_both_processes_hold_the_same_set_to_the_bit(folders):
    first, second = (load_tree(folders[2] / f"images-{rank}.safetensors") for rank in (0, 1))
    assert torch.equal(first, second)


def test_shared_out_evaluation_gives_the_same_records_everywhere(folders):
    paths = [folders[1] / "process-0.json", folders[2] / "process-0.json", folders[2] / "process-1.json"]
    one, *both = (json.loads(path.read_text()) for path in paths)
    assert [one["processes"], *(part["processes"] for part in both)] == [1, 2, 2]
    for part in both:
        assert part["records"] == one["records"]
