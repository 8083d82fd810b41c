import errno
import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._pytree import tree_leaves

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path
from ssdd_hub.runs.checkpoints import Checkpoints, load_tree, save_tree


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def assert_same(ours, theirs):
    """Equal in value, type of each key and leaf, dtype and bits; tuples count as lists."""
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach()
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(bits(ours), bits(theirs))
    elif isinstance(theirs, dict):
        assert [(type(key), key) for key in ours] == [(type(key), key) for key in theirs]
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(theirs, (list, tuple)):
        assert isinstance(ours, list) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert type(ours) is type(theirs) and repr(ours) == repr(theirs)


def round_trip(path, tree):
    save_tree(path, tree)
    return load_tree(path)


def train(optimizer, model, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((2, 3), float(step))).square().sum().backward()
        optimizer.step()


# Round trip


@pytest.mark.parametrize("make", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9), torch.optim.SGD])
def test_an_optimiser_goes_on_from_its_stored_state(tmp_path, make):
    models = [nn.Linear(3, 2) for _ in range(2)]
    optimizers = [make(model.parameters(), lr=0.01) for model in models]
    train(optimizers[0], models[0], 3)
    state = {"model": models[0].state_dict(), "optimizer": optimizers[0].state_dict()}
    loaded = round_trip(tmp_path / "state.safetensors", state)
    assert_same(loaded, state)
    models[1].load_state_dict(loaded["model"])
    optimizers[1].load_state_dict(loaded["optimizer"])
    for optimizer, model in zip(optimizers, models, strict=True):
        train(optimizer, model, 2)
    assert_same(models[1].state_dict(), dict(models[0].state_dict()))


TREES = (
    *({}, [], None, 3, {"a": {}, "b": [], "c": [[], {}]}, {"tuple": (1, (2, torch.ones(2)))}, torch.arange(4)),
    {0: 1.5, 1: True, "1": None, -2: False, "tensor": "x", "items": [["y"]]},
    {"floats": [0.1, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), -0.0, 1.0]},
    {"integers": [2**80, -1], "text": ["", "ä\n\x00\u2028", "日本"]},
)
TENSORS = (
    *(torch.tensor(7), torch.tensor(0.5, dtype=torch.float64), torch.tensor([True, False]), torch.zeros(0, 3)),
    *(torch.tensor([-(2**62), 2**62]), torch.tensor([-0.0, float("nan"), 1e-45])),
    *(torch.randn(5).bfloat16(), torch.randn(5).half(), torch.randn(3, 4).T, torch.randn(1, 3).expand(4, 3)),
    *(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), nn.Parameter(torch.randn(3))),
)


STRANGE = ('{"items": 5}', '{"items": [[[], 1]]}', "[" * 100_000, '{"tensor": []}', '{"a": 1}', "{")


@pytest.mark.parametrize("tree", STRANGE)
def test_nested_state_comes_back_bit_for_bit_and_tensors_without_a_graph(tmp_path, tree):
    loaded = round_trip(tmp_path / "tree.safetensors", tree)
    assert_same(loaded, tree)
    assert not any(leaf.requires_grad for leaf in tree_leaves(loaded) if isinstance(leaf, torch.Tensor))


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    whole = torch.arange(6.0)
    loaded = round_trip(tmp_path / "tree.safetensors", {"whole": whole, "same": whole, "part": whole[2:4]})
    assert_same(loaded, {"whole": whole, "same": whole, "part": whole[2:4]})
    loaded["whole"].zero_()
    assert loaded["part"].tolist() == [2.0, 3.0] and loaded["same"].sum() == 15


def test_what_json_does_not_know_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_tree(tmp_path / "tree.safetensors", {"model": nn.Linear(1, 1)})
    assert os.listdir(tmp_path) == []


def test_the_file_is_plain_safetensors(tmp_path):
    save_tree(tmp_path / "tree.safetensors", {"a": torch.arange(3)})
    assert_same(safetensors.torch.load_file(tmp_path / "tree.safetensors"), {"0": torch.arange(3)})


# Whole or not at all


def write_half(tensors, path, metadata):
    Path(path).write_bytes(safetensors.torch.save(tensors, metadata)[:100])
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"a": torch.arange(3)})
    monkeypatch.setattr("ssdd_hub.runs.checkpoints.save_file", write_half)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(step, {"a": torch.arange(4)})
    assert os.listdir(tmp_path) == ["step-00000001.safetensors"]
    assert_same(checkpoints.load_newest(), {"a": torch.arange(3)})


def test_folders_are_made_and_an_interruption_leaves_no_temporary_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "deep" / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "deep") == []


def test_a_kill_in_mid_write_leaves_the_old_file_in_the_place(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": torch.arange(3)})
    code = (
        "import os, sys, pathlib, torch; from ssdd_hub.runs import checkpoints as checkpoint;"
        "checkpoint.save_file = lambda _, path, metadata: (path.write_bytes(b'half'), os.kill(os.getpid(), 9));"
        "checkpoint.Checkpoints(pathlib.Path(sys.argv[1])).save(2, {'a': torch.arange(4)})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True).returncode == -9
    assert_same(checkpoints.load_newest(), {"a": torch.arange(3)})
    checkpoints.save(2, {"a": torch.arange(5)})
    assert_same(checkpoints.load_newest(), {"a": torch.arange(5)})


# Damage


@pytest.mark.parametrize(
    "content",
    [
        *(slice(-3), slice(20), slice(0), os.urandom(200)),
        safetensors.torch.save({"a": torch.zeros(2)}),
        safetensors.torch.save({"a": torch.zeros(2)}, {"tree": "oak"}),
        safetensors.torch.save({}, {"tree": '{"tensor": "0"}'}),
    ],
    ids=["cut", "cut in the header", "empty", "junk", "foreign", "foreign with a tree", "without its tensor"],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, content):
    checkpoints, path = Checkpoints(tmp_path), tmp_path / "step-00000003.safetensors"
    checkpoints.save(3, {"a": torch.arange(100)})
    path.write_bytes(path.read_bytes()[content] if isinstance(content, slice) else content)
    with pytest.raises(InputError, match=r"step-00000003\.safetensors is not a whole checkpoint.*remove it and start"):
        checkpoints.load_newest()


def flip_a_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


TREE = {"a": torch.arange(50.0), "b": [torch.arange(9).bfloat16(), torch.tensor(3), torch.zeros(0)], "step": 7}


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    path = tmp_path / "step-00000001.safetensors"
    save_tree(path, TREE)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        flip_a_bit(path, place)
        try:
            # Blanks between two parts of the header may change.
            assert_same(load_tree(path), TREE)
        except InputError:
            pass
        path.write_bytes(whole)
    flip_a_bit(path, -3)
    with pytest.raises(InputError, match="not a whole checkpoint .* .its sha256 is not the one that was written"):
        load_tree(path)


def test_the_checkpoint_before_a_damaged_one_is_taken_and_the_damaged_one_goes(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "a": torch.arange(9)})
    flip_a_bit(tmp_path / "step-00000002.safetensors", -3)
    assert checkpoints.load_newest()["step"] == 1
    (record,) = caplog.records
    assert "step-00000002.safetensors is not a whole checkpoint" in record.getMessage()
    assert record.getMessage().endswith("the one before it is taken")
    checkpoints.save(1, {"step": 1})
    assert os.listdir(tmp_path) == ["step-00000001.safetensors"]


def test_a_checkpoint_without_a_hash_is_read(tmp_path):
    header = json.dumps({"items": [["a", {"tensor": "0"}], ["step", 3]]})
    safetensors.torch.save_file({"0": torch.arange(3)}, tmp_path / "old.safetensors", metadata={"tree": header})
    assert_same(load_tree(tmp_path / "old.safetensors"), {"a": torch.arange(3), "step": 3})


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_never_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"a": Bomb()}, tmp_path / "tree.safetensors")
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        load_tree(tmp_path / "tree.safetensors")
    assert os.listdir(tmp_path) == ["tree.safetensors"]


# Which stay


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_checkpoints_and_other_files_stay(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    (tmp_path / "notes.txt").write_text("dear")
    assert checkpoints.load_newest() is None
    for step in (0, 9, 10, 100):
        checkpoints.save(step, {"step": step})
        assert checkpoints.load_newest() == {"step": step}
    newest = ["step-00000010.safetensors", "step-00000100.safetensors"][-keep:]
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", *newest]


STRANGE = ('{"items": 5}', '{"items": [[[], 1]]}', "[" * 100_000, '{"tensor": []}', '{"a": 1}', "{")


@pytest.mark.parametrize("tree", STRANGE)
def test_a_checkpoint_with_a_strange_header_is_an_error(tmp_path, tree):
    save_file({"0": torch.zeros(1)}, tmp_path / "step.safetensors", metadata={"tree": tree})
    with pytest.raises(InputError, match="is not a whole checkpoint of this package"):
        load_tree(tmp_path / "step.safetensors")


# State that each process has of its own, here of one


def test_without_a_whole_file_of_each_process_the_checkpoint_before_is_taken(tmp_path, caplog):
    checkpoints, part = Checkpoints(tmp_path), tmp_path / "process-00000-step-00000002.safetensors"
    for step in (1, 2):
        checkpoints.save(step, {"step": step}, {"a": torch.arange(9) * step})
    newest = checkpoints.load_newest(shared=False)
    assert newest["step"] == 2 and torch.equal(newest["own"]["a"], torch.arange(9) * 2)
    whole = part.read_bytes()
    problems = {
        "its sha256 is not": whole[:-3] + b"abc",
        "part of another": part.with_name(part.name[:-13] + "1.safetensors"),
    }
    for problem, content in problems.items():
        part.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        assert checkpoints.load_newest(shared=False)["step"] == 1
        assert problem in caplog.records[-1].getMessage()
    part.unlink()
    assert checkpoints.load_newest(shared=False)["step"] == 1
    assert "is not a whole checkpoint without" in caplog.records[-1].getMessage()
    checkpoints.save(1, {"step": 1}, {"a": 3})
    assert sorted(os.listdir(tmp_path)) == ["process-00000-step-00000001.safetensors", "step-00000001.safetensors"]


def test_another_number_of_processes_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load_newest(shared=False) is None
    checkpoints.save(1, {"step": 1, "processes": ["a", "b"]})
    with pytest.raises(InputError, match="are of 2 processes, .* and this run has 1: start as many, or choose"):
        checkpoints.load_newest(shared=False)
