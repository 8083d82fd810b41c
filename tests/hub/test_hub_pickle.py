"""No pickle is written or read on the way of a set, or of a model, to the Hub and back."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_distilled import make_set
from test_import_order import own_imports, read
from test_publish import REPO, is_loaded

from ssdd_hub.hub.download import pull_set
from ssdd_hub.hub.upload import plan_upload, upload
from ssdd_hub.sets.check import PICKLES, check_folder, verify_folder
from ssdd_hub.sets.release import pack_model
from ssdd_hub.teachers.teacher import build_teacher

PICKLING = re.compile(
    r"\bpickle\.|import (pickle|joblib|dill|shelve)|torch\.(load|save)\b|allow_pickle|np\.(load|save)\b"
)


def test_no_module_that_publishes_or_fetches_a_set_names_a_pickle():
    modules, new = set(), {"sets.distilled", "sets.publish", "hub.download", "sets.check"}
    while new:
        modules |= new
        new = {name for module in new for name in own_imports(read(module))} - modules - {"__init__"}
    assert {"hub.upload", "hub.client", "sets.parquet", "record", "files", "targets.transform"} <= modules
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


def test_a_set_and_a_model_are_published_and_loaded_without_one(hub, tmp_path, trapped):
    make_set().push_to_hub(REPO, token="hf_ann")
    assert is_loaded()
    pull_set(REPO, tmp_path / "pulled", verify_folder)
    assert [finding for finding in check_folder(tmp_path / "pulled") if finding.level == "error"] == []
    teacher = build_teacher("ssdd_convnet3", pretrained=False, widths=(4, 6, 8), in_chans=1)
    teacher.save(tmp_path / "teacher", {"seed": 0})
    parcel = pack_model(tmp_path / "teacher", "ann/teacher")
    upload(plan_upload(parcel, "ann/teacher", token="hf_ann"), "A teacher", "hf_ann")
    pixels = torch.rand(2, 1, 32, 32)
    assert torch.equal(build_teacher("hf-hub:ann/teacher")(pixels), teacher(pixels))
    files = {**hub.files(REPO), **hub.files("ann/teacher", repo_type="model")}
    assert not [name for name in files if Path(name).suffix in PICKLES]
    cached = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    # The first bytes of a pickle of protocol 2 and above, and what PyTorch's archives hold.
    assert not [data for data in [*files.values(), *cached] if data[:1] == b"\x80" or b"data.pkl" in data]
