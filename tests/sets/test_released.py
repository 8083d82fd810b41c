"""What this repository released: its cards are what its records say, and its sets are what its records state."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ssdd_hub.record import place_in_card
from ssdd_hub.sets.card import render_dataset_card
from ssdd_hub.sets.check import check_folder
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.preview import write_preview
from ssdd_hub.teachers.card import render_teacher_card
from ssdd_hub.teachers.teacher import build_teacher

RELEASED = Path(__file__).parents[2] / "model_cards"
FOLDERS = sorted(path.parent for path in RELEASED.glob("*/ssdd_hub.json"))
SETS = [folder for folder in FOLDERS if (folder / "data").is_dir()]
TEACHERS = [folder for folder in FOLDERS if folder not in SETS]


def record(folder):
    return json.loads((folder / "ssdd_hub.json").read_text(encoding="utf-8"))


def name(folder):
    return folder.relative_to(RELEASED.parent).as_posix()


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_card_is_what_its_record_gives(folder):
    assert SETS and TEACHERS
    render = render_teacher_card if folder in TEACHERS else render_dataset_card
    card = render(record(folder), place_in_card(folder))
    assert card == (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_the_code_of_a_card_runs_where_it_lies(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.chdir(folder)
    names = {}
    for block in re.findall(r"(?ms)^```python\n(.*?)^```$", (folder / "README.md").read_text(encoding="utf-8")):
        exec(block, names)
    assert names["outputs"].isfinite().all()


@pytest.mark.parametrize("folder", SETS, ids=name)
def test_a_set_passes_the_linter_and_shows_what_it_holds(folder, tmp_path):
    assert [finding for finding in check_folder(folder) if finding.level == "error"] == []
    distilled = DistilledSet.load(folder)
    write_preview(tmp_path / "preview.png", distilled.pixel_space.denormalise(distilled.images))
    shown, again = (np.asarray(Image.open(path / "preview.png")) for path in (folder, tmp_path))
    assert np.array_equal(shown, again)


@pytest.mark.parametrize("folder", SETS, ids=name)
def test_the_teacher_of_a_set_was_released_with_it_or_is_one_of_timm(folder):
    teachers = {build_teacher(f"local-dir:{path}").weights_sha256(): path for path in TEACHERS}
    made = record(folder)["provenance"]["teacher"]
    if made["weights_sha256"] not in teachers:
        assert made["name"].removeprefix("local-dir:") in timm.list_models() and made["license"]
        return
    teacher = build_teacher(f"local-dir:{teachers[made['weights_sha256']]}", features=made["features"])
    assert teacher.feature_dim == DistilledSet.load(folder).targets.shape[1] == made["feature_dim"]
    assert teacher(torch.rand(2, 3, 32, 32)).isfinite().all()
