"""A teacher trained on two gloo processes."""

import json
from pathlib import Path

import pytest
import torch
from reference.warm import start_two

from ssdd_hub.runs.checkpoints import load_tree

WORKER = Path(__file__).parents[1] / "reference" / "pretrain_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    for process in start_two(WORKER, folder):
        process.finish()
    return folder


def state(folder, rank):
    return load_tree(folder / f"process-{rank}.safetensors")


def test_both_processes_hold_the_same_weights(folder):
    first, second = (state(folder, rank)["unbroken"] for rank in (0, 1))
    weights = [name for name in first if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert weights and all(torch.equal(first[name], second[name]) for name in weights)


def test_a_training_broken_off_and_resumed_ends_like_the_unbroken_one(folder):
    states = state(folder, 0)
    assert all(torch.equal(states["unbroken"][name], states["resumed"][name]) for name in states["unbroken"])
    logs = [(folder / kind / "log.jsonl").read_bytes() for kind in ("unbroken", "broken")]
    assert logs[0] == logs[1]


def test_the_log_is_written_once(folder):
    log = (folder / "unbroken" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in log]
    assert [record["step"] for record in records] == [0, 3, 6]
    assert all(0 <= record["knn"] <= 1 for record in records)
