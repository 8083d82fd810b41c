"""Records with values of wrong types in every field: each use of them succeeds or names the field, and soon."""

import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest

from ssdd_hub.cli import main
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.inputs import stated_settings
from ssdd_hub.models.build import build_student
from ssdd_hub.record import read_metadata
from ssdd_hub.record_schema import find_misfits
from ssdd_hub.sets.card import render_dataset_card
from ssdd_hub.sets.check_places import check_place
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import pretrain_student
from ssdd_hub.sets.publish import pack_set
from ssdd_hub.sets.release import pack_model, plan_students
from ssdd_hub.teachers.teacher import build_teacher

RELEASED = Path(__file__).parents[2] / "model_cards"
NUMBERS = (True, -1, 0, 1.5, float("nan"), float("-inf"), 10**12, 10**400)
STRANGE = (None, *NUMBERS, "x", "", "y" * 5000, "\ud800", [], {}, [1], [[]], ["a"], {"a": 1}, [{"a": None}])
LONGEST = 5  # seconds


def places(value, path=()):
    """The place of each value of a record, of a list its first entry."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def put(record, path, value):
    changed = part = json.loads(json.dumps(record))
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return changed


def train(folder):
    """By the stated recipe, but for its length."""
    distilled = DistilledSet.load(folder)
    num_targets, size = distilled.targets.shape[1], distilled.images.shape[-1]
    student = build_student("ssdd_convnet3", num_targets=num_targets, in_chans=3, image_size=size, widths=[2, 2, 2])
    pretrain_student(student, distilled, max_steps=1)


def show(folder):
    assert main(["show", str(folder)]) in (0, 2)


OF_A_SET = {
    "load": DistilledSet.load,
    "check": check_place,
    "train": train,
    "card": lambda folder: render_dataset_card(read_metadata(folder), "ann/set"),
    "show": show,
    "pack": lambda folder: pack_set(folder, "ann/set"),
    "students": lambda folder: plan_students(["own"], {}, folder, "ann/set"),
    "settings": lambda folder: stated_settings(str(folder)),
}
OF_A_TEACHER = {
    "load": lambda folder: build_teacher(f"local-dir:{folder}"),
    "check": check_place,
    "show": show,
    "pack": lambda folder: pack_model(folder, "ann/teacher"),
}
KINDS = {"cifar100-krrst-100": OF_A_SET, "cifar100-barlow-twins": OF_A_TEACHER}


def cases(name):
    record = json.loads((RELEASED / name / "ssdd_hub.json").read_text(encoding="utf-8"))
    return [(put(record, path, value), path, value) for path in places(record) for value in STRANGE]


def try_all(name, chosen, folder):
    shutil.copytree(RELEASED / name, folder)
    for record, path, value in chosen:
        (folder / "ssdd_hub.json").write_text(json.dumps(record))
        case, refused = f"{'.'.join(map(str, path))} = {repr(value)[:60]}", {}
        for use, call in KINDS[name].items():
            started = time.monotonic()
            try:
                call(folder)
            except InputError as error:
                refused[use] = str(error)
            except Exception as error:
                raise AssertionError(f"{use} of {case}") from error
            assert time.monotonic() - started < LONGEST, f"{use} of {case}"
        # All doors are one: what does not load is neither made into a card nor published; it names file and field.
        if "is not the record of" in refused.get("load", ""):
            assert refused.keys() >= KINDS[name].keys() - {"check", "show"}, case
            assert f"{folder}/ssdd_hub.json" in refused["load"] and str(path[0]) in refused["load"], case
            assert [finding for finding in check_place(folder) if finding.level == "error"], case


@pytest.mark.parametrize("name", KINDS)
def test_no_value_of_any_field_ends_in_a_traceback(name, tmp_path, capsys):
    try_all(name, random.Random(16).sample(cases(name), 10), tmp_path / "set")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_none_of_all_values_of_all_fields_ends_in_a_traceback(name, tmp_path, capsys):
    try_all(name, cases(name), tmp_path / "set")


def test_a_name_that_stands_twice_is_no_record(tmp_path):
    folder = shutil.copytree(RELEASED / "cifar100-krrst-100", tmp_path / "set")
    text = (folder / "ssdd_hub.json").read_text()
    for twice in ('"format_version": 1, "clip_fraction": 0.9,', '"format_version": 1, "format_version": 1,'):
        (folder / "ssdd_hub.json").write_text(text.replace('"format_version": 1,', twice, 1))
        for use in (DistilledSet.load, read_metadata):
            with pytest.raises(InputError, match="is not JSON .the name '[a-z_]+' stands twice in an object"):
                use(folder)


@pytest.mark.parametrize("size", ["images", "bytes", "budget"])
def test_the_size_of_what_was_scored_is_a_whole_number(tmp_path, size):
    folder = shutil.copytree(RELEASED / "cifar100-krrst-100", tmp_path / "set")
    record = json.loads((folder / "ssdd_hub.json").read_text(encoding="utf-8"))
    for value, misfits in ((0, 0), (98_400, 0), (None, 0), (-1, 1), (1.5, 1), (True, 1), ("1", 1), ([], 1)):
        found = find_misfits(put(record, ("provenance", "scores", 0, size), value))
        assert len(found) == misfits, (value, found)
        assert all(text.startswith(f"provenance.scores[0].{size} must be a whole number") for text in found)


STEERING = "\x1b]0;x\x07\u202eevil\u2066<script>alert(1)</script>![x](http://evil/x.png)[a](javascript:a)<img src=x>"


def test_what_steers_a_terminal_or_a_browser_is_in_no_card_and_no_page(tmp_path, capsys):
    folder = shutil.copytree(RELEASED / "cifar100-krrst-100", tmp_path / "set")
    record = json.loads((folder / "ssdd_hub.json").read_text(encoding="utf-8"))
    for path in (("method",), ("source", "name"), ("teacher", "name"), ("command",), ("hardware", "python")):
        record = put(record, ("provenance", *path), STEERING)
    (folder / "ssdd_hub.json").write_text(json.dumps(record))
    card = render_dataset_card(read_metadata(folder), "ann/set")
    assert main(["view", str(folder), "--output", str(tmp_path / "g.html"), "--space", str(tmp_path / "space")]) == 0
    assert main(["show", str(folder)]) == 0
    page = (tmp_path / "space" / "index.html").read_text(encoding="utf-8")
    for text in (card, page, capsys.readouterr().out):
        assert "evil" in text and all(letter.isprintable() or letter == "\n" for letter in text)
    body = re.sub("```.*?```", "", card.split("\n---\n", 1)[1], flags=re.DOTALL)
    for text in (body, page):
        assert "<script>alert" not in text and "<img src=x" not in text
    assert "![x]" not in body and "[a](" not in body
