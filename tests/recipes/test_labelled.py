"""A run whose targets are class labels: no teacher, and a set that says so everywhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ssdd_hub import DistilledSet
from ssdd_hub.cli import describe_set
from ssdd_hub.evaluation.inputs import stated_settings
from ssdd_hub.evaluation.protocols.dd_ranking import label_robust_score
from ssdd_hub.sets.check import check_folder

SMOKE = Path(__file__).parents[2] / "recipes" / "configs" / "smoke.yaml"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 30 small colour images, which their mean tells apart, and one image of no class."""
    folder = tmp_path_factory.mktemp("labelled") / "photos"
    random, rows = np.random.RandomState(0), []
    for split, count in (("train", 15), ("test", 6)):
        (folder / split).mkdir(parents=True)
        rows = []
        for number in range(2 * count):
            name, kind = f"{number}.png", "dark" if number % 2 else "light"
            pixels = random.randint(0, 128, (16, 16, 3)) + (0 if number % 2 else 120)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name)
            rows.append({"file_name": name, "kind": kind, "other": "ab"[number % 3 == 0]})
        if split == "train":
            rows[4]["kind"] = None
        lines = (json.dumps(row) for row in rows)
        (folder / split / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def arguments(photos, output, *more):
    sizes = ("--data.name", photos, "--data.label-column", "kind", "--data.on-corrupt", "skip")
    few = ("--distiller.num-images", 6, "--distiller.batch-size", 8, "--student-training.learning-rate", 0.01)
    few += ("--probe.labels", "[4]", "--evaluate.seeds", 2)
    return ("--config", SMOKE, "--targets.of", "labels", "--output", output, *sizes, *few, *more)


@pytest.fixture(scope="module")
def run(launch, photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "labelled"
    launch("distill", *arguments(photos, output))
    return output


def test_no_teacher_is_made_and_the_record_tells_of_classes(run):
    assert not (run / "teacher").exists() and not (run / "features").exists()
    made = DistilledSet.load(run / "distilled")
    assert torch.equal(made.labels, made.targets.argmax(1)) and torch.bincount(made.labels).tolist() == [3, 3]
    assert made.label_names == ["dark", "light"] and made.targets.shape == (6, 2)
    about = made.provenance
    assert about["targets"] == "class labels" and "teacher" not in about
    assert not {"teacher", "teacher_training"} & about["settings"].keys()
    assert about["settings"]["targets"]["of"] == "labels"
    inputs = json.loads((run / "inputs.json").read_text())["inputs"]
    assert set(inputs) == {"source", "heldout"}
    for name in ("source", "heldout"):
        assert about[name]["labels"] == inputs[name]["labels"]
    assert about["source"]["num_skipped"] == 1 and about["source"]["skipped"] == ["image 4: no class"]
    assert about["source"]["num_images"] == 29
    assert {stage["stage"] for stage in map(json.loads, (run / "log.jsonl").read_text().splitlines())} >= {"heldout"}


def test_the_set_starts_from_images_of_the_classes_of_its_targets(run, photos):
    made = DistilledSet.load(run / "distilled")
    started = made.provenance["start"]["indices"]
    # The image without a class is none of those loaded.
    kept = [number for number in range(30) if number != 4]
    assert [kept[row] % 2 for row in started] == [1, 0] * 3 == (1 - made.labels).tolist()


def test_card_report_and_check_are_true_of_it(run):
    card = (run / "distilled" / "README.md").read_text(encoding="utf-8")
    assert "The targets are class labels of the source" in card
    assert "eacher" not in card.replace("dtype: teacher", "")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "none, class labels" in page and "stronger teacher" not in page
    stated = describe_set(json.loads((run / "distilled" / "ssdd_hub.json").read_text(encoding="utf-8")))
    assert any(line.split()[0] == "targets" and line.endswith(" 6, 2; class labels") for line in stated)
    findings = [finding.text for finding in check_folder(run / "distilled")]
    assert not [text for text in findings if "teacher" in text], findings
    records = json.loads((run / "scores.json").read_text())["records"]
    scored = {(record["set"], record["protocol"]) for record in records}
    assert ("distilled", "accuracy") in scored and ("random", "accuracy") in scored
    assert not [pair for pair in scored if pair[1] == "teacher_error" or pair == ("none", "accuracy")]


@pytest.mark.parametrize("changed", ["labels", "column"])
def test_a_run_goes_on_with_the_same_labels_only(run, photos, tmp_path, launch, refuse, changed):
    output, folder = tmp_path / "again", tmp_path / "photos"
    shutil.copytree(run, output)
    shutil.copytree(photos, folder)
    config = yaml.safe_load((output / "config.yaml").read_text())
    config["data"]["name"] = str(folder)
    if changed == "column":
        refuse(["label_column"], "distill", *arguments(photos, output, "--data.label-column", "other"))
        return
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    launch("distill", *arguments(folder, output))
    path = folder / "train" / "metadata.jsonl"
    path.write_text(path.read_text().replace('"dark"', '"light"', 1))
    refuse(["source images: labels", "restore"], "distill", *arguments(folder, output))


def test_a_run_with_another_recipe_of_accuracy_is_scored_anew_and_not_distilled(run, photos, tmp_path, launch):
    recipe = ("--accuracy.epochs", 3, "--accuracy.learning-rate", 1e-6)
    again = Path(shutil.copytree(run, tmp_path / "again"))
    launch("distill", *arguments(photos, again, *recipe))
    words = ("--set", run / "distilled", "--protocol", "accuracy", "--evaluate.seeds", 2, *recipe)
    launch("evaluate", *words, "--references", "none", "--output", tmp_path / "scores")

    def scored(folder):
        records = json.loads((folder / "scores.json").read_text())["records"]
        return next(each["values"] for each in records if (each["set"], each["protocol"]) == ("distilled", "accuracy"))

    assert scored(again) == scored(tmp_path / "scores") != scored(run)
    assert DistilledSet.load(again / "distilled").provenance["settings"]["accuracy"]["epochs"] == 3
    assert (again / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()


def test_an_evaluation_has_references_of_the_same_classes(run, photos, launch, refuse, tmp_path):
    assert stated_settings(str(run / "distilled"))["protocols"] == ["accuracy", "probe"]
    words = (
        "--set",
        run / "distilled",
        "--protocol",
        "[accuracy, probe, dd_ranking]",
        "--references",
        "[random, herding, full]",
    )
    words += ("--probe.labels", "[4]", "--evaluate.seeds", 1, "--student-training.epochs", 2)
    words += ("--accuracy.epochs", 40, "--accuracy.learning-rate", 0.05, "--accuracy.batch-size", 6)
    words += ("--selection.expert-args", "{widths: [4, 4]}", "--selection.expert-steps", 3)
    launch("evaluate", *words, "--output", tmp_path / "scores")
    records = json.loads((tmp_path / "scores" / "scores.json").read_text())["records"]
    scores = {(record["set"], record["protocol"]): record["mean"] for record in records}
    assert {name for name, protocol in scores if protocol == "accuracy"} == {"distilled", "random", "herding", "full"}
    assert scores["full", "accuracy"] > 0.9
    assert {"accuracy", "accuracy hard dsa", "probe", "cost", "dd_ranking"} == {protocol for _, protocol in scores}
    robust = {(record["set"], record["metric"]): record for record in records if record["protocol"] == "dd_ranking"}
    assert set(robust) == {(name, metric) for name in ("distilled", "random", "herding") for metric in ("lrs", "ars")}
    parts = [scores[name, "accuracy"] for name in ("full", "distilled", "distilled", "random")]
    assert robust["distilled", "lrs"]["values"] == [pytest.approx(label_robust_score(*parts))]
    assert robust["distilled", "lrs"]["labels"] is None and robust["distilled", "lrs"]["images"] == 6
    for place in (tmp_path / "scores" / "references").iterdir():
        chosen = DistilledSet.load(place)
        assert chosen.provenance["targets"] == "class labels" and torch.bincount(chosen.labels).tolist() == [3, 3]
        assert torch.equal(chosen.targets.argmax(1), chosen.labels)
    refuse(["of no teacher"], "evaluate", *words[:2], "--references", "[teacher]", "--output", tmp_path / "no")
    # Labels that have changed since are not those of the set.
    path = photos / "train" / "metadata.jsonl"
    before = path.read_text()
    path.write_text(before.replace('"dark"', '"light"', 1))
    refuse(["class labels of the source images"], "evaluate", *words, "--output", tmp_path / "other")
    path.write_text(before)


def test_images_without_classes_are_no_source_of_labels(photos, refuse, tmp_path):
    given = arguments(photos, tmp_path / "run")
    refuse(["have none: name their column"], "distill", *given, "--data.label-column", "none")
    refuse(["1 of 30 images", "no class"], "distill", *given, "--data.on-corrupt", "refuse")


def test_labels_that_are_stored_too_coarsely_to_be_told_apart_are_refused(refuse, tmp_path):
    few = ["--distiller.num-images", 20, "--parameterisation", "bases", "--parameterisation.args.bases", 4]
    words = ["bases keeps too little of class labels", "10 classes", "target_bases"]
    where = ["--config", SMOKE, "--targets.of", "labels", "--output", tmp_path / "run"]
    refuse(words, "distill", *where, *few, "--parameterisation.args.target_bases", 2)


def test_views_of_labelled_images_have_their_labels(photos, launch, tmp_path):
    words = ("--method", "dm", "--parameterisation", "views", "--parameterisation.args", "{of: pixels, views: 2}")
    launch("distill", *arguments(photos, tmp_path / "run", *words))
    made = DistilledSet.load(tmp_path / "run" / "distilled")
    assert made.view_targets.shape[1] == 2
    assert (made.view_targets.argmax(2) == made.labels[:, None]).all()


def test_a_set_for_a_frozen_backbone_names_it_and_is_scored_by_probes_on_it(photos, launch, refuse, tmp_path):
    place = Path(__file__).parents[2] / "model_cards" / "cifar100-barlow-twins"
    frozen, probed = f"local-dir:{place}", f"backbone_probe {place.name}"
    words = (
        "--method",
        "lgm",
        "--method.args",
        "{views: 2, real_views: 2}",
        "--parameterisation",
        "pyramid",
        "--init",
        "herding",
    )
    words += ("--parameterisation.args", "{every: 1}", "--storage.pixels", "uint8", "--selection.backbone", frozen)
    probe = ("--backbone-probe.backbones", frozen, "--backbone-probe.views", 2)
    given = arguments(photos, tmp_path / "run", *words, *probe, "--teacher.model-args", "{}")
    refuse(["lgm reads a frozen backbone", "--teacher.backbone NAME"], "distill", *given)
    teacher = ("--teacher.backbone", frozen, "--teacher.pretrained", "true")
    launch("distill", *given, *teacher)
    made = DistilledSet.load(tmp_path / "run" / "distilled")
    about = made.provenance
    assert about["targets"] == "class labels" and about["method"] == "lgm" and "teacher" not in about
    assert "barlow_twins" in about["backbone"]["name"] and about["backbone"]["weights_sha256"]
    assert str(place.parent) not in json.dumps(about) and made.images.shape == (6, 3, 16, 16)
    records = json.loads((tmp_path / "run" / "scores.json").read_text())
    records = records["records"] if isinstance(records, dict) else records
    assert {record["set"] for record in records if record["protocol"] == probed} == {"distilled", "random"}
    words = ("--set", tmp_path / "run" / "distilled", "--protocol", "backbone_probe", "--evaluate.seeds", 1)
    words += ("--references", "herding", "--selection.backbone", frozen, "--output", tmp_path / "scores")
    refuse(["go together"], "evaluate", *words)
    launch("evaluate", *words, *probe)
    records = json.loads((tmp_path / "scores" / "scores.json").read_text())["records"]
    assert {record["set"] for record in records if record["protocol"] == probed} == {"distilled", "herding"}
