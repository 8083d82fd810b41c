"""Two gloo processes do what one does."""

import json
from pathlib import Path

import pytest
import torch
from reference.warm import Running, start_two

from ssdd_hub.runs.checkpoints import load_tree

WORKER = Path(__file__).parents[1] / "reference" / "distributed_worker.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs the same work on one process and on two, and returns both folders."""
    made = {processes: tmp_path_factory.mktemp(f"on-{processes}") for processes in (1, 2)}
    for running in (Running(WORKER, made[1]), *start_two(WORKER, made[2])):
        running.finish()
    return made


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("augment", ["False", "True"])
def test_two_processes_distil_what_one_does(folders, augment):
    one, two = (load_tree(folder / "results.safetensors")[augment] for folder in folders.values())
    for quantity in ("features", "images", "targets", "losses"):
        assert relative_error(two[quantity], one[quantity]) <= 1e-9, quantity
    for name, value in one["student"].items():
        torch.testing.assert_close(two["student"][name], value, rtol=1e-8, atol=1e-10)
    # The images move far more than the two runs differ.
    assert one["losses"].shape == (10,) and relative_error(one["losses"][-1], one["losses"][0]) > 1e-3


def test_both_processes_hold_the_same_set_to_the_bit(folders):
    first, second = (load_tree(folders[2] / f"images-{rank}.safetensors") for rank in (0, 1))
    assert torch.equal(first, second)


def test_shared_out_evaluation_gives_the_same_records_everywhere(folders):
    paths = [folders[1] / "process-0.json", folders[2] / "process-0.json", folders[2] / "process-1.json"]
    one, *both = (json.loads(path.read_text()) for path in paths)
    assert [one["processes"], *(part["processes"] for part in both)] == [1, 2, 2]
    for part in both:
        assert part["records"] == one["records"]
