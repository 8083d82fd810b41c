"""The calls: three lines to a set, from a folder, a Dataset or a tensor, by the very recipe."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image

import ssdd_hub
from ssdd_hub import DistilledSet, InputError
from ssdd_hub.cli import main
from ssdd_hub.sets.distilled import DistilledSet as Same

SMOKE = {
    "config": "smoke",
    "data": {"max_images": None},
    "teacher_training": {"epochs": 1, "batch_size": 16, "workers": 0, "view_args": {}},
    "evaluate": {"seeds": 1},
    "student_training": {"epochs": 2},
    "run": {"threads": 1},
}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Runs lie in the working directory, the CPU does the work, and pictures are not laid out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.set_layout_engine", lambda *_, **__: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pixels(channels=3, count=40, size=16):
    return torch.randint(0, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(1)).byte()


def labelled(count=40):
    rows = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels(count=count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    return datasets.Dataset.from_dict(
        {"image": rows, "label": [index % 2 for index in range(count)]}, features=features
    )


def test_the_words_of_the_package_are_calls():
    assert {"distill", "evaluate", "train_teacher"} <= {*dir(ssdd_hub)}
    assert callable(ssdd_hub.distill) and callable(ssdd_hub.evaluate) and callable(ssdd_hub.train_teacher)
    # The package of that name is still one.
    from ssdd_hub.distill import Distiller

    assert ssdd_hub.distill.Distiller is Distiller and ssdd_hub.Distiller is Distiller


def test_a_tensor_becomes_a_set_which_evaluate_scores_and_the_same_call_finds_again(tmp_path, capsys):
    distilled = ssdd_hub.distill(pixels(), num_images=8, **SMOKE)
    assert isinstance(distilled, Same) and distilled.images.shape == (8, 3, 16, 16)
    run = distilled.folder.parent
    assert (run / "report.html").is_file() and distilled.provenance["scores"]
    (source,) = (tmp_path / "runs" / "sources").iterdir()
    assert run.name == source.name and not list((tmp_path / "runs" / "sources").glob(".*"))
    # What is stored is what was given, and the record states how to make it again.
    stored = datasets.load_from_disk(str(source))
    assert torch.equal(
        torch.from_numpy(np.stack([np.asarray(row) for row in stored["image"]])), pixels().movedim(1, -1)
    )
    assert distilled.provenance["command"].startswith("accelerate launch recipes/distill.py")
    assert "--distiller.num_images=8" in distilled.provenance["command"]

    again = ssdd_hub.distill(pixels(), num_images=8, **SMOKE)
    assert torch.equal(again.images, distilled.images) and again.folder == distilled.folder

    capsys.readouterr()
    records = ssdd_hub.evaluate(again, protocols=["teacher_error"], evaluate={"seeds": 1}, run={"threads": 1})
    assert {record["set"] for record in records} >= {"distilled", "random", "none"}
    printed = capsys.readouterr().out
    assert re.match(r"settings: runs/\S+/config.yaml\n", printed) and re.search(r"^none +[0-9]", printed, re.MULTILINE)


def test_a_dataset_keeps_its_classes_and_a_teacher_is_used_again(tmp_path):
    teacher = ssdd_hub.train_teacher(
        labelled().with_format("torch"),
        output="runs/mine",
        data={"image_size": 16, "max_images": None},
        teacher={"model_args": {"channels": [4, 8, 8, 8]}},
        teacher_training={"epochs": 1, "batch_size": 16, "workers": 0},
        watch={"every": 0},
        run={"threads": 1},
    )
    distilled = ssdd_hub.distill(labelled(), num_images=8, teacher="runs/mine", output="runs/set", **SMOKE)
    assert distilled.targets.shape == (8, teacher.feature_dim)
    assert (tmp_path / "runs/set/distilled/ssdd_hub.json").is_file() and not (tmp_path / "runs/set/teacher").exists()
    assert "probe" in {record["protocol"] for record in distilled.provenance["scores"]}


def test_the_word_makes_a_set_of_a_folder_of_photographs_of_many_sizes(tmp_path):
    for index, image in enumerate(pixels(count=30, size=70)):
        place = tmp_path / "mine" / f"kind-{index % 2}" / f"{index}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.movedim(0, -1).numpy()).resize((40 + index, 70 - index)).save(place)
    few = {
        "teacher.model-args": "{channels: [4, 8, 8, 8]}",
        "student.model-args": "{widths: [4, 6]}",
        **{"teacher-training.max-steps": 2, "teacher-training.batch-size": 16, "teacher-training.workers": 0},
        **{"distiller.num-images": 4, "distiller.steps": 2, "distiller.batch-size": 16},
        **{"pool.size": 1, "pool.max-age": 2, "student-training.epochs": 1, "evaluate.seeds": 1, "run.threads": 1},
    }
    # All else is as `configs/photos.yaml` has it, without a word of it.
    assert main(["distill", "mine", *(word for name, value in few.items() for word in (f"--{name}", str(value)))]) == 0
    assert DistilledSet.load("runs/mine/distilled").images.shape == (4, 3, 32, 32)


def test_images_of_any_kind_in_memory_are_stored_alike():
    from ssdd_hub.calls import _store_images

    images = pixels(count=4)
    place = _store_images(images, "runs/x")
    assert np.array_equal(datasets.load_from_disk(place)[1]["image"], images[1].permute(1, 2, 0))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    read_only = np.frombuffer(images.numpy().tobytes(), np.uint8).reshape(images.shape)
    spread = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for same in (images.numpy(), read_only, spread, pictures, tuple(pictures)):
        assert _store_images(same, "runs/x") == place


def test_what_a_killed_call_was_storing_goes_with_the_next(tmp_path):
    from ssdd_hub.calls import _store_images

    left = tmp_path / "runs" / "sources" / ".images.999999999-0.tmp" / "new"
    left.mkdir(parents=True)
    place = _store_images(pixels(count=2), "runs/x")
    assert [path.name for path in (tmp_path / "runs" / "sources").iterdir()] == [Path(place).name]


def test_pictures_are_stored_as_they_are_and_not_as_the_files_that_they_were_opened_from(tmp_path):
    from ssdd_hub.calls import _store_images

    drawn, exif = np.random.default_rng(0).integers(1, 256, (6, 4, 3), dtype=np.uint8), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(drawn).save(tmp_path / "painted.png")
    Image.fromarray(drawn).save(tmp_path / "turned.png", exif=exif)
    painted, turned = (Image.open(tmp_path / f"{name}.png") for name in ("painted", "turned"))
    painted.paste(0, (0, 0, 4, 3))
    clear = Image.fromarray(drawn).quantize(8)
    clear.info["transparency"] = 0
    deep = Image.fromarray(np.full((6, 4), 1.5, np.float32))
    wide = Image.fromarray(np.full((6, 4), 70000, np.int32))
    odd = Image.fromarray(drawn).convert("HSV")
    stored = datasets.load_from_disk(_store_images([painted, turned, clear, deep, wide, odd], "runs/x"))["image"]
    assert not np.asarray(stored[0])[:3].any() and np.array_equal(np.asarray(stored[0])[3:], drawn[3:])
    assert np.array_equal(stored[1], np.rot90(drawn, -1)) and np.array_equal(turned, drawn)
    assert stored[2].convert("RGBA").getextrema()[3] == (0, 255)
    assert np.array_equal(stored[3], deep) and np.array_equal(stored[4], wide)
    assert np.array_equal(stored[5], odd.convert("RGB"))


def test_a_network_trained_elsewhere_is_a_teacher_as_an_object_or_as_its_weights(tmp_path):
    space = {"mean": [0.4] * 3, "std": [0.2] * 3}
    network = timm.create_model("ssdd_convnet3", widths=[4, 6, 8], num_classes=0, img_size=16).eval()
    expected = ssdd_hub.build_teacher(network, input_size=16, features="mean", **space)
    sets = [ssdd_hub.distill(pixels(), num_images=8, teacher=expected, **SMOKE)]
    (place,) = (tmp_path / "runs" / "sources").glob("teacher-*")
    torch.save(network.state_dict(), "weights.pt")
    settings = {"backbone": "ssdd_convnet3", "checkpoint": "weights.pt", "features": "mean", "input_size": 16, **space}
    settings["model_args"] = {"widths": [4, 6, 8]}
    sets.append(ssdd_hub.distill(pixels(), num_images=8, teacher=settings, output="runs/weights", **SMOKE))
    assert sets[0].provenance["settings"]["teacher"]["backbone"] == f"local-dir:{place.relative_to(tmp_path)}"
    for distilled in sets:
        teacher, wanted = distilled.provenance["teacher"], expected.identity()
        assert {name: teacher[name] for name in teacher if name in wanted and name != "name"} == {
            name: value for name, value in wanted.items() if name in teacher and name != "name"
        }
    assert torch.equal(sets[0].targets, sets[1].targets)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(4, 3, 8, 8), r"got a tensor of float32 \(4, 3, 8, 8\): scale to 0..255"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"got a tensor of uint8 \(4, 8, 8\)"),
        (torch.zeros(4, 2, 8, 8, dtype=torch.uint8), r"with C of 1 or 3; got a tensor of uint8 \(4, 2, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"got a tensor of uint8 \(0, 3, 8, 8\)"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"uint8 \(4, 8, 8, 3\): call .permute\(0, 3, 1, 2\)$"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device="meta"), "got a tensor of uint8 .*: give it values$"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8).to_sparse(), "got a tensor of uint8 .*: give it values$"),
        (np.zeros((4, 3, 8, 8)), "images must be a folder, a Hub id, .*; got a ndarray of float64 .*: scale"),
        (np.zeros((4, 8, 8, 3), np.uint8), r"ndarray of uint8 .*: call .transpose\(0, 3, 1, 2\)$"),
        ([1, 2], "got a list"),
        ([], "got a list"),
        (labelled(4).to_iterable_dataset(), "got a IterableDataset: datasets.Dataset.from_generator takes lambda"),
        (labelled(0), "got a dataset without rows"),
    ],
)
def test_other_images_are_refused_by_name_and_leave_nothing(images, said, tmp_path):
    with pytest.raises(InputError, match=said):
        ssdd_hub.distill(images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pool": {"sise": 3}, "seed": "x"}, "pool.sise is not a setting; the nearest is pool.size.*\nseed must be"),
        ({"num_images": 0}, "distiller.num_images must be at least 1, got 0"),
        ({"distiller": 3}, "distiller is a section"),
        ({"seed": torch.zeros(1)}, "settings are numbers, texts, lists"),
        ({"teacher": 3}, "teacher must be a timm name.*got a int"),
        ({"config": "nothing"}, "--config must be the path of a YAML file, or of one of .*digits.*, got 'nothing'"),
    ],
)
def test_mistakes_in_settings_are_errors_and_no_exit(settings, said, tmp_path):
    with pytest.raises(InputError, match=said):
        ssdd_hub.distill("digits", **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [None, {"images": 1}, ["runs/a/distilled"], torch.zeros(3)])
def test_what_is_no_set_is_not_evaluated(wrong, tmp_path):
    with pytest.raises(InputError, match=f"a DistilledSet, its folder or a Hub id; got a {type(wrong).__name__}"):
        ssdd_hub.evaluate(wrong)
    assert not list(tmp_path.iterdir())


def test_a_set_that_was_changed_is_stored_before_it_is_evaluated(tmp_path):
    from ssdd_hub.calls import _store_set

    distilled = DistilledSet(torch.randn(4, 3, 8, 8), torch.randn(4, 5), ssdd_hub.PixelSpace.raw(3))
    distilled.save("mine")
    assert _store_set(distilled, None) == "mine"
    distilled.images += 1
    place = _store_set(distilled, None)
    assert place.startswith("runs/sources/set-") and torch.equal(DistilledSet.load(place).images, distilled.images)
    assert _store_set(DistilledSet.load("mine"), None) == "mine"


def test_a_call_after_one_in_another_precision_runs_and_leaves_the_callers_accelerator(accelerator):
    shared = {"data": {"max_images": 60}, "num_images": 8}
    first = ssdd_hub.distill("digits", **{**SMOKE, **shared, "run": {"threads": 1, "mixed_precision": "bf16"}})
    second = ssdd_hub.distill("digits", **{**SMOKE, **shared}, output="runs/other")
    stated = [each.provenance["settings"]["run"]["mixed_precision"] for each in (first, second)]
    assert stated == ["bf16", "no"]
    assert accelerator.mixed_precision == "no" and accelerator.num_processes == 1
