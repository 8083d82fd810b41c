"""No pickle is written or read on the way of a set, or of a model, to the Hub and back."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_distilled import bits, make_set
from test_import_order import own_imports, read

from ssdd_hub.hub.download import pull_set
from ssdd_hub.hub.upload import plan_upload, upload
from ssdd_hub.sets.check import PICKLES, check_folder, verify_folder
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.release import pack_model
from ssdd_hub.teachers.teacher import build_teacher

PICKLING = re.compile(
    r"\bpickle\.|import (pickle|joblib|dill|shelve)|torch\.(load|save)\b|allow_pickle|np\.(load|save)\b"
)


def reached(*modules):
    """The modules of the package that these ones import, directly or not."""
    found, new = set(), set(modules)
    while new:
        found |= new
        new = {name for module in new for name in own_imports(read(module))} - found - {"__init__"}
    return found


def test_no_module_that_publishes_or_fetches_a_set_names_a_pickle():
    modules = reached("sets.distilled", "sets.publish", "hub.download", "sets.check")
    assert {
        "hub.upload",
        "hub.download",
        "hub.client",
        "sets.parquet",
        "record",
        "files",
        "targets.transform",
    } <= modules
    named = {module: PICKLING.findall(read(module)) for module in modules}
    assert not {module: found for module, found in named.items() if found}
    # The pattern finds what it is for, in modules that read the files of other code and only with `weights_only`.
    assert PICKLING.search(read("teachers.checkpoints")) and "weights_only=True" in read("teachers.checkpoints")


@pytest.fixture
def trapped(monkeypatch):
    """Every way to read or write a pickle file is a failure."""

    def trap(*_, **__):
        raise AssertionError("a pickle")

    for module, names in ((torch, ("load", "save")), (pickle, ("load", "loads", "dump")), (np, ("load", "save"))):
        for name in names:
            monkeypatch.setattr(module, name, trap)
    with pytest.raises(AssertionError, match="a pickle"):
        torch.load("x")


def test_a_set_is_published_pulled_checked_and_loaded_without_one(hub, tmp_path, trapped):
    made = make_set()
    made.push_to_hub("ann/tiny", token="hf_ann")
    assert torch.equal(bits(DistilledSet.from_pretrained("ann/tiny").images), bits(made.images))
    pull_set("ann/tiny", tmp_path / "pulled", verify_folder)
    assert [finding for finding in check_folder(tmp_path / "pulled") if finding.level == "error"] == []
    assert_no_pickles(hub, tmp_path, "dataset", "ann/tiny")


def test_a_model_is_published_and_loaded_without_one(hub, tmp_path, trapped):
    teacher = build_teacher("ssdd_convnet3", pretrained=False, widths=(4, 6, 8), in_chans=1)
    teacher.save(tmp_path / "teacher", {"seed": 0})
    parcel = pack_model(tmp_path / "teacher", "ann/teacher")
    upload(plan_upload(parcel, "ann/teacher", token="hf_ann"), "A teacher", "hf_ann")
    loaded = build_teacher("hf-hub:ann/teacher")
    pixels = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded(pixels), teacher(pixels))
    assert_no_pickles(hub, tmp_path, "model", "ann/teacher")


def assert_no_pickles(hub, tmp_path, kind, repo_id):
    files = hub.files(repo_id, repo_type=kind)
    assert not [name for name in files if Path(name).suffix in PICKLES]
    cached = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    # The first bytes of a pickle of protocol 2 and above, and what PyTorch's archives hold.
    assert not [data for data in [*files.values(), *cached] if data[:1] == b"\x80" or b"data.pkl" in data]
