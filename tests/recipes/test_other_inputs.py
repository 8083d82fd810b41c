"""Recipes that are started again after their images or their teacher were replaced at the same place."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from reference.warm import start_two
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from ssdd_hub import DistilledSet
from ssdd_hub.errors import InputError
from ssdd_hub.models.features import hash_tensors
from ssdd_hub.runs.inputs import INPUTS_FILE
from ssdd_hub.runs.own_runs import remember_run
from ssdd_hub.sets.release import check_teacher
from ssdd_hub.teachers.training import Pretraining

RECIPES = Path(__file__).parents[2] / "recipes"
SIZE, COUNTS = 16, {"train": 40, "test": 12}
DISTIL = ["--config", RECIPES / "configs" / "smoke.yaml", "--teacher-training.epochs", "1", "--distiller.steps", "2"]
DISTIL += ["--teacher-training.batch-size", "20", "--distiller.num-images", "6", "--distiller.batch-size", "16"]
DISTIL += ["--evaluate.seeds", "1", "--student-training.epochs", "1", "--probe.labels", "[20]", "--probe.draws", "1"]
# Of most held-out images the first evaluation sees nothing.
DISTIL += ["--evaluate.max-heldout", "2"]
TRAIN = [
    "--teacher.backbone",
    "ssdd_convnet3",
    "--teacher.model-args",
    "{widths: [8, 16]}",
    "--teacher-training.epochs",
    "2",
]
TRAIN += [
    "--teacher-training.batch-size",
    "20",
    "--teacher-training.workers",
    "0",
    "--teacher-training.checkpoint-every",
    "1",
]
TRAIN += ["--teacher-training.objective-args", "{hidden_dim: 8, output_dim: 8}", "--watch.probe", "20"]


@pytest.fixture
def refused(refuse):
    """Runs a recipe that must refuse by these words and leave the folder as it is."""

    def refused(folder, words, recipe, *arguments):
        before = content(folder)
        refuse(words, recipe, *arguments)
        assert content(folder) == before

    return refused


def content(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def save_pictures(folder):
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for number in range(count):
            path = folder / split / "ab"[number % 2] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(path)
    return folder


def paint(folder, split, most=1):
    """Changes one pixel of some images of a split."""
    for path in sorted((folder / split).rglob("*.png"))[-most:]:
        pixels = np.array(Image.open(path))
        pixels[3, 3] ^= 128
        Image.fromarray(pixels).save(path)


def swap(folder):
    """The same images in another order."""
    first, *_, last = sorted((folder / "train").rglob("*.png"))
    contents = first.read_bytes(), last.read_bytes()
    last.write_bytes(contents[0])
    first.write_bytes(contents[1])


def save_again(folder):
    """The same pixels in other files."""
    for path in folder.rglob("*.png"):
        facts = PngInfo()
        facts.add_text("comment", "saved again")
        Image.open(path).copy().save(path, pnginfo=facts)


def negate(folder):
    """Other weights of a saved teacher."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    weights = {name: -w if name.endswith("weight") else w for name, w in weights.items()}
    save_file(weights, path)
    # As of another teacher, which has a record of its own; weights beside another record are not even loaded.
    if (record := folder / "ssdd_hub.json").is_file():
        facts = json.loads(record.read_text())
        facts["teacher"]["weights_sha256"] = hash_tensors(weights)
        record.write_text(json.dumps(facts))


def restate(folder, part="pretrained_cfg", **stated):
    """The same weights with something else stated of them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[part] |= stated
    path.write_text(json.dumps(config))


REFUSED = ["holds a run with other inputs", "restore", "choose another --output"]
CHANGES = {
    "source": (lambda folder: paint(folder / "images", "train"), ["source images: fingerprint", *REFUSED]),
    "order": (lambda folder: swap(folder / "images"), ["source images: fingerprint", *REFUSED]),
    "heldout": (lambda folder: paint(folder / "images", "test"), ["held-out images: fingerprint", *REFUSED]),
    "one less": (
        lambda folder: (folder / "images" / "train" / "a" / "00.png").unlink(),
        ["source images: num_images 40 there, 39", *REFUSED],
    ),
    "own teacher": (lambda folder: negate(folder / "run" / "teacher"), ["teacher: weights_sha256", *REFUSED]),
    "damaged record": (
        lambda folder: (folder / "run" / INPUTS_FILE).write_text("{"),
        ["inputs.json is no record of the inputs of a run", "choose another --output"],
    ),
}


# Distillation


@pytest.fixture(scope="module")
def distilled(launch, tmp_path_factory):
    """A folder with `images`, and a `run` that has trained its own teacher on them."""
    folder = tmp_path_factory.mktemp("distilled")
    save_pictures(folder / "images")
    launch("distill", *DISTIL, "--data.name", folder / "images", "--output", folder / "run")
    return folder


@pytest.fixture
def again(distilled, tmp_path):
    """A copy of it, and the same command there."""
    shutil.copytree(distilled, tmp_path / "copy")
    config = tmp_path / "copy" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(distilled), str(tmp_path / "copy")))
    where = ["--data.name", tmp_path / "copy" / "images", "--output", tmp_path / "copy" / "run"]
    return tmp_path / "copy", ["distill", *DISTIL, *where]


def test_a_set_records_the_images_it_was_made_of(distilled):
    record = json.loads((distilled / "run" / INPUTS_FILE).read_text())["inputs"]
    provenance = DistilledSet.load(distilled / "run" / "distilled").provenance
    assert record["heldout"] == provenance["heldout"] and record["heldout"]["num_images"] == COUNTS["test"]
    for name, fact in record["source"].items():
        assert provenance["source"][name] == fact
    for name, fact in record["teacher"].items():
        assert provenance["teacher"][name] == fact


@pytest.mark.parametrize("case", CHANGES)
def test_a_distillation_does_not_go_on_with_other_inputs(again, refused, case):
    change, words = CHANGES[case]
    folder, command = again
    change(folder)
    refused(folder / "run", words, *command, "--evaluate.seeds", "2")


def test_an_interrupted_distillation_of_an_earlier_version_is_checked_by_what_it_left(again, refused):
    folder, command = again
    shutil.rmtree(folder / "run" / "distilled")
    for name in (INPUTS_FILE, "scores.json", "report.html"):
        (folder / "run" / name).unlink()
    save = (folder / "run" / "teacher" / "ssdd_hub.json").read_text()
    paint(folder / "images", "train")
    refused(folder / "run", ["source images: fingerprint", "as teacher/ssdd_hub.json tells", *REFUSED], *command)
    (folder / "run" / "teacher" / "ssdd_hub.json").write_text(save.replace('"fingerprint"', '"other"'))
    refused(folder / "run", ["source images: fingerprint", "as features/ tells", *REFUSED], *command)


def test_a_distillation_goes_on_with_the_same_images_whatever_only_scores_and_memory_depend_on(again, launch):
    folder, command = again
    before = DistilledSet.load(folder / "run" / "distilled")
    save_again(folder / "images")
    launch(*command, "--evaluate.max-heldout", "5", "--data.memory-budget-gb", "0")
    after = DistilledSet.load(folder / "run" / "distilled")
    assert torch.equal(after.images, before.images) and torch.equal(after.targets, before.targets)


@pytest.mark.slow
def test_two_processes_end_alike_when_the_images_are_others(distilled, tmp_path):
    shutil.copytree(distilled / "images", tmp_path / "images")
    command = [*DISTIL, "--data.name", tmp_path / "images", "--output", tmp_path / "run"]
    script = RECIPES / "distill.py"
    for _ in range(2):
        for process in start_two(script, *command):
            process.finish()
    before = content(tmp_path / "run")
    paint(tmp_path / "images", "train")
    for process in start_two(script, *command):
        status, _, errors = process.wait(120)
        assert status == 2 and "source images: fingerprint" in errors
    assert content(tmp_path / "run") == before


@pytest.fixture(scope="module")
def ready(distilled, launch, tmp_path_factory):
    """Runs with a teacher that was there before: a folder, and a file of weights."""
    folder = tmp_path_factory.mktemp("ready")
    shutil.copytree(distilled / "run" / "teacher", folder / "teacher")
    shutil.copy(folder / "teacher" / "model.safetensors", folder / "weights.safetensors")
    place = ["--teacher.backbone", f"local-dir:{folder / 'teacher'}", "--teacher.pretrained"]
    space = ["--teacher.mean", "[0.5]", "--teacher.std", "[0.3]"]
    file = [*space, "--teacher.checkpoint", folder / "weights.safetensors"]
    given = {
        "folder": [*place, "--teacher.model-args", "{}"],
        "file": [*file, "--teacher.model-args", "{widths: [8, 16], in_chans: 1}"],
    }
    data = ["distill", *DISTIL, "--data.name", distilled / "images", "--output"]
    commands = {kind: [*data, folder / kind, *settings] for kind, settings in given.items()}
    for command in commands.values():
        launch(*command)
    return folder, commands


TEACHERS = {
    "weights": ("folder", negate, "teacher: weights_sha256"),
    "pixel space": ("folder", lambda place: restate(place, mean=[0.1], std=[0.9]), "pixel_space is recorded as"),
    "filter": ("folder", lambda place: restate(place, interpolation="bilinear"), "interpolation is recorded as"),
    "size": ("folder", lambda place: restate(place, "model_args", img_size=[32, 32]), "input_size is recorded as 16"),
    "file": ("file", None, "teacher: weights_sha256"),
}


@pytest.mark.parametrize("case", TEACHERS)
def test_a_distillation_does_not_go_on_with_another_ready_teacher(ready, refused, case):
    folder, commands = ready
    kind, change, words = TEACHERS[case]
    kept = content(folder)
    if change is None:
        weights = load_file(folder / "weights.safetensors")
        save_file({name: w + 1 for name, w in weights.items()}, folder / "weights.safetensors")
    else:
        change(folder / "teacher")
    try:
        # What contradicts the record beside it is refused even before what the run began with.
        refused(folder / kind, [words, *([] if "recorded" in words else REFUSED)], *commands[kind])
    finally:
        for path, (found, _) in kept.items():
            path.write_bytes(found)


def test_another_name_or_licence_of_the_same_ready_teacher_is_no_other_teacher(ready, launch):
    folder, commands = ready
    restate(folder / "teacher", license="mit")
    launch(*commands["folder"])


# Training a teacher


def save_table(folder, colour=0, label=0, heldout_colour=0, heldout_label=0):
    """Images with labels, whose order does not depend on these."""
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(1)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    tables = {}
    for split, count in COUNTS.items():
        shade, change = (colour, label) if split == "train" else (heldout_colour, heldout_label)
        pixels = random.integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8)
        labels = [(number + change) % 2 for number in range(count)]
        pixels[0, 0, 0] ^= shade
        images = [Image.fromarray(part) for part in pixels]
        tables[split] = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    datasets.DatasetDict(tables).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def trained(launch, tmp_path_factory):
    """Two trainings: one at its end, one that stopped after three of four steps."""
    folder = tmp_path_factory.mktemp("trained")
    save_table(folder / "images")
    command = ["train_teacher", *TRAIN, "--data.name", folder / "images", "--output"]
    launch(*command, folder / "finished")
    with pytest.MonkeyPatch.context() as interrupt:
        interrupt.setattr("ssdd_hub.teachers.training.Pretraining._step", stop_at(3))
        with pytest.raises(SystemExit) as stopped:
            launch(*command, folder / "interrupted")
    assert stopped.value.code == 130 and not (folder / "interrupted" / "teacher").exists()
    return folder, command


def stop_at(last):
    whole = Pretraining._step

    def step(self, model, number, views):
        if number == last:
            raise KeyboardInterrupt
        whole(self, model, number, views)

    return step


TABLES = {
    "source": ({"colour": 1}, "source images: fingerprint"),
    "heldout": ({"heldout_colour": 1}, "held-out images: fingerprint"),
    # The log holds how many neighbours have the right label.
    "labels": ({"label": 1}, "source images: labels"),
    "heldout labels": ({"heldout_label": 1}, "held-out images: labels"),
}


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize("case", TABLES)
def test_the_training_of_a_teacher_does_not_go_on_with_other_images(trained, refused, state, case):
    folder, command = trained
    change, words = TABLES[case]
    save_table(folder / "images", **change)
    try:
        refused(folder / state, [words, *REFUSED], *command, folder / state)
    finally:
        save_table(folder / "images")


def test_the_training_of_a_teacher_goes_on_with_the_same_images_to_the_same_teacher(trained, launch, tmp_path):
    folder, command = trained
    shutil.copytree(folder / "interrupted", tmp_path / "run")
    launch(*command, tmp_path / "run")
    ours, theirs = (place / "teacher" / "model.safetensors" for place in (tmp_path / "run", folder / "finished"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_trained_teacher_that_was_replaced_is_not_scored(trained, refused, tmp_path):
    folder, command = trained
    shutil.copytree(folder / "finished", tmp_path / "run")
    negate(tmp_path / "run" / "teacher")
    refused(tmp_path / "run", ["teacher: weights_sha256", *REFUSED], *command, tmp_path / "run")


# Evaluation

QUICK = ["--evaluate.seeds", "1"]
QUICK += [
    "--student-training.epochs",
    "1",
    "--probe.labels",
    "[20]",
    "--probe.draws",
    "1",
    "--evaluate.max-heldout",
    "8",
]
EVALUATE = ["--references", "none,random,full", "--protocol", "teacher_error,probe,knn", *QUICK]


@pytest.fixture
def evaluated(distilled, launch, tmp_path):
    """A copy of images and run, and its evaluation, by what the set states or by given images and teacher."""
    folder = tmp_path / "copy"
    shutil.copytree(distilled, folder)
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(distilled), str(folder)))
    # As if it had been begun here.
    remember_run(config)

    def evaluate(*arguments):
        launch("evaluate", "--set", folder / "run" / "distilled", *EVALUATE, "--output", folder / "scores", *arguments)
        records = json.loads((folder / "scores" / "scores.json").read_text())["records"]
        kept = [record for record in records if record["protocol"] != "cost"]
        return {(record["set"], record["protocol"]): record["values"] for record in kept}

    return folder, evaluate


@pytest.mark.parametrize(("split", "words"), [("train", "source images"), ("test", "held-out images")])
def test_images_that_have_changed_are_not_taken_for_the_source_that_a_set_states(evaluated, refused, split, words):
    folder, evaluate = evaluated
    evaluate()
    paint(folder / "images", split)
    words = [words, "are not those of the set", "give --source.name"]
    command = ["evaluate", "--set", folder / "run" / "distilled", *EVALUATE, "--output"]
    refused(folder / "scores", words, *command, folder / "scores")
    # Nor does a seed help that draws nothing.
    refused(folder, words, *command, folder / "new", "--seed", "5")


def test_a_trained_teacher_that_has_changed_is_not_taken_for_the_one_that_a_set_states(evaluated, refused, launch):
    folder, _ = evaluated
    check_teacher(folder / "run" / "distilled", folder / "run" / "teacher")
    negate(folder / "run" / "teacher")
    command = ["evaluate", "--set", folder / "run" / "distilled", *EVALUATE, "--output", folder / "new"]
    words = ["weights_sha256 is recorded as", "restore it, or give --teacher.backbone"]
    refused(folder, words, *command)
    refused(folder, words, *command, "--source.name", folder / "images")
    launch(*command, "--teacher.backbone", f"local-dir:{folder / 'run' / 'teacher'}")


@pytest.fixture(scope="module", params=[pytest.param("float32", marks=pytest.mark.slow), "float64"])
def ready_timm(request, distilled, launch, tmp_path_factory):
    """A run with a ready teacher whose configuration decides more than its weights do."""
    folder = tmp_path_factory.mktemp("ready_timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = timm.create_model("ssdd_resnet10", channels=(4, 4, 4, 4), num_classes=4, in_chans=1)
    save_for_hf(backbone, folder / "teacher", safe_serialization=True)
    data = ["--data.name", distilled / "images", "--teacher.backbone", f"local-dir:{folder / 'teacher'}"]
    data += ["--teacher.pretrained", "--teacher.input-size", SIZE, "--teacher.mean", "[0.5]", "--teacher.std", "[0.3]"]
    where = ["--teacher.model-args", "{}", "--distiller.precision", request.param, "--output", folder / "run"]
    launch("distill", *DISTIL, *data, *where)
    return folder


def test_a_ready_teacher_of_the_same_weights_that_are_read_otherwise_is_refused(ready_timm, refused, launch, tmp_path):
    own, teacher = ready_timm / "run" / "distilled", ready_timm / "teacher"
    command = ["evaluate", "--set", own, *EVALUATE, "--output"]
    launch(*command, tmp_path / "scores")
    check_teacher(own, teacher)
    records = json.loads((tmp_path / "scores" / "scores.json").read_text())["records"]
    # The targets are known to be of this teacher, in whatever precision it was hashed.
    assert ("distilled", "teacher_error") in {(record["set"], record["protocol"]) for record in records}
    before = (teacher / "config.json").read_text()
    restate(teacher, "model_args", act_layer="gelu")
    try:
        words = ["structure_sha256 is recorded as", "restore it, or give --teacher.backbone"]
        refused(tmp_path / "scores", words, *command, tmp_path / "scores")
        refused(tmp_path, words, *command, tmp_path / "new")
        with pytest.raises(InputError, match="distilled with another teacher.*structure_sha256 is recorded as"):
            check_teacher(own, teacher)
        given = ["--teacher.backbone", f"local-dir:{teacher}"]
        launch(*command, tmp_path / "given", *given)
        records = json.loads((tmp_path / "given" / "scores.json").read_text())["records"]
        assert ("distilled", "teacher_error") not in {(record["set"], record["protocol"]) for record in records}
    finally:
        (teacher / "config.json").write_text(before)


IN_RUN = ["run/log.jsonl", "run/scores/*", "run/features/*/index.json", "run/features/*/*.safetensors"]


@pytest.mark.parametrize("place", [*IN_RUN, "cache/*/index.json", "cache/*/*.safetensors"])
def test_a_fifo_in_the_folder_of_a_run_or_in_a_named_cache_is_refused_and_does_not_block(again, refuse, place):
    folder, command = again
    (folder / "run" / INPUTS_FILE).unlink()
    if place.startswith("cache"):
        (folder / "run" / "features").rename(folder / "cache")
        command = [*command, "--run.cache", folder / "cache"]
    path = sorted(folder.glob(place))[0]
    path.unlink()
    os.mkfifo(path)
    refuse([f"{path} is neither a file nor a folder (a FIFO"], *command)


def names(folder, kind):
    return {path.name for path in (folder / "scores" / kind).iterdir()}


def test_an_evaluation_measures_anew_what_has_changed_at_the_same_place(evaluated):
    folder, evaluate = evaluated
    given = ["--source.name", folder / "images", "--teacher.backbone", f"local-dir:{folder / 'run' / 'teacher'}"]
    first = evaluate(*given)
    assert evaluate(*given) == first

    def anew(*kinds):
        """Evaluates again; what is kept in folders of these kinds must be new for the change."""
        before = {kind: names(folder, kind) for kind in ("scores", "references", "features")}
        scores = evaluate(*given)
        grown = {kind for kind, found in before.items() if names(folder, kind) > found}
        assert grown == set(kinds)
        return scores

    # The images that are drawn among them.
    paint(folder / "images", "test", COUNTS["test"])
    scores = anew("scores", "features")
    assert scores["random", "teacher_error"] != first["random", "teacher_error"]

    paint(folder / "images", "train")
    before, scores = scores, anew("scores", "references", "features")
    assert scores["full", "teacher_error"] != before["full", "teacher_error"]

    negate(folder / "run" / "teacher")
    others = anew("scores", "references", "features")
    assert others["random", "teacher_error"] != scores["random", "teacher_error"]
    # Its targets are not of this teacher.
    assert ("distilled", "teacher_error") in scores and ("distilled", "teacher_error") not in others

    own = folder / "run" / "distilled"
    made = DistilledSet.load(own)
    made.images.neg_()
    shutil.rmtree(own)
    made.save(own)
    again = anew("scores")
    assert again["distilled", "probe"] is not None and again["random", "knn"] == others["random", "knn"]


def test_scores_that_need_labels_are_measured_anew_when_the_labels_have_changed(distilled, launch, tmp_path):
    def evaluate():
        launch("evaluate", "--set", distilled / "run" / "distilled", *QUICK, "--output", tmp_path / "scores", *where)
        records = json.loads((tmp_path / "scores" / "scores.json").read_text())["records"]
        return {record["protocol"]: record["values"] for record in records if record["set"] == "none"}

    where = ["--source.name", "none", "--references", "none", "--datasets", save_table(tmp_path / "images")]
    where += ["--protocol", "probe,knn"]
    first = evaluate()
    count = len(list((tmp_path / "scores" / "scores").iterdir()))
    save_table(tmp_path / "images", heldout_label=1)
    assert evaluate() != first
    assert len(list((tmp_path / "scores" / "scores").iterdir())) == 2 * count - 1  # the cost has no labels
