"""Two gloo processes under DistributedDataParallel train an objective as one process does with the whole batch."""

from pathlib import Path

import pytest
import torch
from reference.objective_cases import NAMES
from reference.objective_worker import two_steps
from reference.warm import start_two

from ssdd_hub.runs.checkpoints import load_tree

TESTS = Path(__file__).parents[1]

# lightly's Barlow Twins normalises each process's projections by themselves; MAE's masks are drawn by each process.
NOT_THE_SAME = ("barlow_twins", "mae")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Runs every objective on two processes, once, and returns what each of them got."""
    folder = tmp_path_factory.mktemp("two")
    for process in start_two(TESTS / "reference" / "objective_worker.py", folder):
        process.finish()
    return [load_tree(folder / f"process-{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["plain", "whole"])
def test_losses_are_finite_and_both_processes_stay_alike(processes, kind, name):
    first, second = (process[kind][name] for process in processes)
    assert first["losses"].isfinite().all() and second["losses"].isfinite().all()
    assert torch.equal(first["gradients"], second["gradients"])
    # Weights, momentum copies, banks, queues, centre and covariance: one checkpoint serves both.
    torch.testing.assert_close(first["state"], second["state"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_THE_SAME])
def test_the_averaged_gradient_is_that_of_one_process_with_the_whole_batch(processes, name):
    one = two_steps(name, 0, 1)
    assert one["gradients"].norm(dim=1).min() > 1e-4
    torch.testing.assert_close(processes[0]["plain"][name]["gradients"], one["gradients"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(processes[0]["plain"][name]["state"], one["state"], rtol=1e-6, atol=1e-9)


def test_barlow_twins_sees_the_other_process(processes):
    first, second = (process["plain"]["barlow_twins"]["losses"] for process in processes)
    # The cross-correlation is averaged before the loss, which is hence the same on both, on different images.
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)
    assert not torch.equal(*(process["plain"]["simsiam"]["losses"] for process in processes))
