"""The audit of a set, and compact sets, as a user runs them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from ssdd_hub import DistilledSet
from ssdd_hub.data.bank import DataSettings, draw_heldout, load_images
from ssdd_hub.record import read_metadata
from ssdd_hub.record_schema import COLUMNS
from ssdd_hub.sets.check import check_folder
from ssdd_hub.text import show_bytes

SMOKE = Path(__file__).parents[2] / "recipes" / "configs" / "smoke.yaml"
SMALL = [
    *("--data.max-images", "100", "--teacher-training.epochs", "1", "--distiller.steps", "2", "--evaluate.seeds", "2"),
    *("--student-training.epochs", "2", "--probe.draws", "1"),
]
COMPACT = ["--parameterisation", "factor", "--parameterisation.args", "{factor: 4}", "--storage.pixels", "uint8"]


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    launch("distill", "--config", SMOKE, "--output", folder, *SMALL, *COMPACT, "--storage.targets", "int8")
    return folder


def test_a_compact_run_stores_small_pictures_and_states_their_bytes(run):
    record = read_metadata(run / "distilled")
    assert record["tensors"]["images"]["shape"][1:] == [1, 4, 4] and record["tensors"]["images"]["dtype"] == "uint8"
    assert record["storage"]["parameterisation"] == {"name": "factor", "args": {"factor": 4}}
    assert DistilledSet.load(run / "distilled").images.shape[1:] == (1, 16, 16)
    assert not [finding for finding in check_folder(run / "distilled") if finding.level == "error"]
    sizes = record["num_bytes"]
    first = json.loads((run / "scores.json").read_text())["records"][0]
    assert first["set"] == "distilled" and first["images"] == record["tensors"]["images"]["shape"][0]
    assert first["bytes"] == sizes["images"] + sizes["targets"] + sizes["decoder"]


def test_an_audit_is_stored_shown_and_put_on_the_card(run, launch, tmp_path, capsys):
    place = Path(shutil.copytree(run, tmp_path / "run")) / "distilled"
    launch("audit", "--set", place, "--output", tmp_path / "audit", "--record", "true")
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["pixels"]["members"] == found["pixels"]["heldout"] and len(found["teacher"]["auc"]) == 3
    with Image.open(tmp_path / "audit" / "closest.png") as picture:
        assert picture.width > picture.height
    assert "AUC" in capsys.readouterr().out
    assert read_metadata(place)["provenance"]["audit"] == {name: found[name] for name in ("pixels", "teacher")}
    assert "Audit: telling images of the source" in (place / "README.md").read_text(encoding="utf-8")
    assert not [finding for finding in check_folder(place) if finding.level == "error"]


def test_the_seed_of_an_audit_draws_what_it_compares_and_never_another_source(run, launch, refuse, tmp_path):
    made, found = DistilledSet.load(run / "distilled"), []
    source, heldout = load_images(DataSettings(**made.provenance["settings"]["data"]), made.provenance["seed"], False)
    starts, shown = source.pixels[made.provenance["start"]["indices"]], made.pixel_space.denormalise(made.images)
    for seed in (3, 4):
        words = ["--set", run / "distilled", "--output", tmp_path / "out", "--most", "40", "--seed", seed]
        launch("audit", *words)
        found.append(json.loads((tmp_path / "out" / "audit.json").read_text())["pixels"])
        others = draw_heldout(heldout, 40, seed).pixels
        likeness = np.corrcoef(torch.cat([starts, others, shown * 255]).flatten(1))[: -len(shown), -len(shown) :].max(
            1
        )
        expected = roc_auc_score(np.arange(len(likeness)) < len(starts), likeness)
        assert found[-1]["auc_starts"][0] == pytest.approx(expected, abs=1e-3) and expected > 0.65
        assert found[-1]["members"] == found[-1]["heldout"] == 40
    assert found[0]["auc"] != found[1]["auc"]
    another = ["--source.max-images", "50", "--teacher.backbone", "none"]
    asked = ["the images that the set was made of", "got 50 others", "leave out --source.max-images, or give"]
    refuse(asked, "audit", "--set", run / "distilled", "--output", tmp_path / "none", *another)
    assert not (tmp_path / "none").exists()


def test_references_at_equal_bytes_take_no_more_than_the_set_which_is_tested_against_the_best(
    run, launch, tmp_path, capsys
):
    forms = ["--at-equal", "both", "--forms", "png,jpeg-50,dct", "--references", "none,random"]
    less = ["--protocols", "teacher_error", "--student-training.steps", "2", "--reference-training.mixup", "0.5"]
    launch("evaluate", "--set", run / "distilled", "--output", tmp_path / "scores", *forms, *less)
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    records = scores["records"]
    sizes = {record["set"]: record.get("bytes") for record in records}
    assert sizes.keys() == {"distilled", "none", "random", "random png", "random jpeg-50", "random dct"}
    assert sizes["none"] is None
    training = {record["set"]: record.get("training") for record in records}
    assert training == {name: None if name in ("distilled", "none") else "mixup 0.5" for name in sizes}
    # Real images count as the PNG files that they are.
    kept = DistilledSet.load(next((tmp_path / "scores" / "references").glob("random-[0-9]*-0-*")))
    assert sizes["random"] == pytest.approx(sum(kept.compact("uint8", "float32").num_bytes().values()), rel=0.05)
    filling = {name: size for name, size in sizes.items() if name.startswith("random ")}
    assert all(size <= sizes["distilled"] for size in filling.values())
    (compared,) = [each for each in scores["comparisons"] if "among" in each]
    errors = {each["set"]: each["mean"] for each in records if each["protocol"] == "teacher_error"}
    assert compared["baseline"] == min(filling, key=errors.get) and set(compared["among"]) == filling.keys()
    size, output = show_bytes(sizes["distilled"]), capsys.readouterr().out
    fills = sizes[compared["baseline"]]
    told = f"At no more bytes ({size}, of which {compared['baseline']} fills {show_bytes(fills)})"
    assert fills < 0.95 * sizes["distilled"] and compared["filled"] == fills
    assert told in " ".join(output.split())
    assert any(line.split()[:1] == ["distilled"] and size in line for line in output.splitlines())
    for name in ("scores.md", "report.html", "gallery.html"):
        text = (tmp_path / "scores" / name).read_text(encoding="utf-8")
        assert told in text and size in text and str(compared["baseline"]) in text
    assert "worth against bytes" in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    with Image.open(tmp_path / "scores" / "worth.png") as picture:
        assert picture.width == 1600


def test_evaluations_in_folders_of_their_own_are_merged_by_copying_scores_and_references(run, launch, tmp_path):
    place = Path(shutil.copytree(run, tmp_path / "run"))
    whole = DistilledSet.load(place / "distilled")
    count = len(whole.images) // 2
    parts = {name: part for name in COLUMNS if (part := getattr(whole, name)) is not None}
    few = {name: part[:count] for name, part in parts.items()}
    replace(whole, **few, packed=None).compact("uint8", "int8", 4).save(place / "half")
    sets = {name: ["--set", place / name] for name in ("distilled", "half")}
    arguments = ["--at-equal", "bytes", "--forms", "jpeg-10", "--protocols", "teacher_error", "--evaluate.seeds", "2"]
    arguments += ["--student-training.steps", "2", "--cache", tmp_path / "features", "--references", "random"]
    for name, words in sets.items():
        launch("evaluate", "--output", tmp_path / name, *arguments, *words)
    for part in ("scores", "references"):
        shutil.copytree(tmp_path / "half" / part, tmp_path / "distilled" / part, dirs_exist_ok=True)

    def kept():
        parts = (path for part in ("scores", "references") for path in (tmp_path / "distilled" / part).rglob("*"))
        return {path: path.stat().st_mtime_ns for path in parts}

    before = kept()
    launch("evaluate", "--output", tmp_path / "distilled", *arguments, *sets["distilled"], *sets["half"])
    assert kept() == before
    scores = json.loads((tmp_path / "distilled" / "scores.json").read_text())
    names = {record["set"] for record in scores["records"]}
    sizes = [show_bytes(sum(DistilledSet.load(place / name).num_bytes().values())) for name in sets]
    assert names == {"run", "half", *(f"random jpeg-10 {size}" for size in sizes)}
    assert [each["set"] for each in scores["equal_worth"]] == ["run", "half"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--forms", "gif"], ["a form must be png, jpeg-QUALITY", "'gif'"]),
        (["--reference-training.steps", "9"], ["reference_training takes augment, average", "'steps'"]),
        (["--reference-training.mixup", "9"], ["student_training.mixup must be"]),
        (["--at-equal", "weight"], ["at_equal must be one of images, bytes, both", "'weight'"]),
    ],
)
def test_forms_that_do_not_exist_are_refused(run, refuse, tmp_path, arguments, words):
    refuse(words, "evaluate", "--set", run / "distilled", "--output", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_an_audit_that_cannot_be_made_is_refused(run, refuse, tmp_path):
    output = tmp_path / "out"
    refuse(["set must name a set"], "audit", "--output", output)
    refuse(["most must be at least 2"], "audit", "--output", output, "--most", "1", "--set", run / "distilled")
    refuse(["there is no such folder here"], "audit", "--output", output, "--set", "nothing")
    assert not output.exists()
