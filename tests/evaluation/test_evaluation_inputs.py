from dataclasses import asdict, replace

import datasets
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from ssdd_hub.data.bank import DataSettings, ImageBank
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluation.entries import REFERENCES
from ssdd_hub.evaluation.inputs import (
    check_alike,
    check_asked_images,
    check_stated_images,
    check_stated_teacher,
    has_targets_of,
    load_dataset,
    load_set,
    name_sets,
    stated_settings,
)
from ssdd_hub.models.pretraining import StudentTrainingSettings
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.interop import export_tensors
from ssdd_hub.sets.provenance import describe_run
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher, TeacherSettings

SPACE = PixelSpace((0.5,), (0.25,))
CPU = torch.device("cpu")
USE = StudentTrainingSettings(7, 11, batch_size=5, learning_rate=0.02, momentum=0.5, weight_decay=0.1, augment="flip")
CONFIG = {
    "data": {"name": "digits", "max_images": 50},
    "teacher": {"backbone": "ssdd_convnet3", "pretrained": False, "features": "mean", "model_args": {"widths": [4]}},
    "student_training": {"epochs": 9, "augment": "flip"},
    "seed": 3,
    "output": "runs/x",
}


def make_set(size=4, channels=1, pixels=8, width=3, **provenance):
    drawn = torch.Generator().manual_seed(0)
    images = torch.randn(size, channels, pixels, pixels, generator=drawn)
    space = PixelSpace((0.5,) * channels, (0.25,) * channels)
    return DistilledSet(images, torch.randn(size, width, generator=drawn), space, provenance=provenance)


def make_run(folder, config=CONFIG, teacher=True):
    made = make_set(seed=99, settings={"data": {"name": "other"}})
    made.save(folder / "distilled")
    (folder / "config.yaml").write_bytes(config if isinstance(config, bytes) else yaml.safe_dump(config).encode())
    if teacher:
        (folder / "teacher").mkdir()
    return str(folder / "distilled")


# What a set states of its making


def test_a_run_folder_states_source_teacher_recipe_and_seed(tmp_path):
    """The config of the run counts, not the provenance of the set."""
    stated = stated_settings(make_run(tmp_path / "run"))
    teacher = {"backbone": f"local-dir:{tmp_path / 'run' / 'teacher'}", "pretrained": True, "features": "mean"}
    assert stated == {
        "source": CONFIG["data"],
        "student_training": CONFIG["student_training"],
        "seed": 3,
        "teacher": teacher,
    }
    assert (
        TeacherSettings(**stated["teacher"]).ready
        and StudentTrainingSettings(**stated["student_training"]).epochs == 9
    )
    assert DataSettings(**stated["source"]).max_images == 50


def test_a_run_with_a_ready_teacher_states_it_as_it_was_given(tmp_path):
    ready = {"backbone": "resnet18", "pretrained": True}
    config = {name: part for name, part in CONFIG.items() if name != "student_training"}
    stated = stated_settings(make_run(tmp_path / "run", {**config, "teacher": ready}, teacher=False))
    assert stated == {"source": CONFIG["data"], "student_training": {}, "seed": 3, "teacher": ready}


def test_features_are_pre_logits_where_the_run_says_nothing(tmp_path):
    stated = stated_settings(make_run(tmp_path / "run", {**CONFIG, "teacher": {"backbone": "resnet18"}}))
    assert stated["teacher"]["features"] == "pre_logits"


@pytest.mark.parametrize(
    "config",
    [
        *(b"data: [", b"", b"- 1", b"text", b"\xff\xfe\x00"),
        *({name: part for name, part in CONFIG.items() if name != left} for left in ("data", "teacher", "seed")),
        {**CONFIG, "teacher": "resnet18"},
    ],
)
def test_a_config_that_is_not_that_of_a_run_is_refused(tmp_path, config):
    place = make_run(tmp_path / "run", config)
    with pytest.raises(InputError, match="config.yaml is not that of a run .*: move the set elsewhere"):
        stated_settings(place)


def test_a_set_alone_states_what_its_provenance_holds(tmp_path, small_teacher):
    ready, about = {"backbone": "hf-hub:owner/name", "pretrained": True}, {"name": "digits", "license": "mit"}
    config = {**CONFIG, "teacher": ready, "run": {"mixed_precision": "no"}, "student": {"name": "ssdd_convnet3"}}
    described = describe_run(
        config, about, small_teacher(), TargetTransform.fit("none", torch.zeros(2, 24)), SPACE, {}
    )
    stated = stated_settings(str(make_set(**described, use=USE.describe()).save(tmp_path / "run" / "set")))
    assert set(stated) == {"source", "seed", "teacher", "student_training"}
    assert (stated["source"], stated["seed"], stated["teacher"]) == (CONFIG["data"], 3, ready)
    # The recipe of the card gives back the settings that it was made of.
    assert StudentTrainingSettings(**stated["student_training"]) == USE


@pytest.mark.parametrize("teacher", [{"backbone": "local-dir:teacher", "pretrained": True}, CONFIG["teacher"], {}])
def test_a_teacher_that_cannot_be_had_is_not_stated(tmp_path, teacher):
    made = make_set(settings={"data": CONFIG["data"], "teacher": teacher})
    assert stated_settings(str(made.save(tmp_path / "set"))) == {"source": CONFIG["data"], "student_training": {}}
    assert stated_settings(str(make_set().save(tmp_path / "nothing"))) == {"student_training": {}}


def test_a_pair_of_other_code_states_nothing(tmp_path):
    pair = export_tensors(make_set(seed=4), tmp_path / "pair")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert stated_settings(str(pair)) == {} == stated_settings(str(pair / "x_syn.pt"))


def test_a_set_that_is_not_there_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is not a distilled set: it has no ssdd_hub.json"):
        stated_settings(str(tmp_path / "empty"))


def test_sets_of_both_kinds_are_loaded(tmp_path):
    made = make_set(seed=4)
    made.save(tmp_path / "set")
    export_tensors(made, tmp_path / "pair")
    for name in ("set", "pair"):
        loaded = load_set(str(tmp_path / name))
        assert torch.equal(loaded.images, made.images) and torch.equal(loaded.targets, made.targets)


# Names


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["runs/a/distilled"], ["distilled"]),
        (["runs/a/distilled", "runs/b/distilled"], ["a", "b"]),
        (["runs/a/distilled", "owner/name"], ["a", "name"]),
        (["x/run/distilled", "y/run/distilled"], ["x/run", "y/run"]),
        (["x/run", "./y/run/distilled", "/z/run"], ["x/run", "y/run", "z/run"]),
        (["a", "./a"], ["set-1-a", "set-2-a"]),
        (["../runs/a/pair", "runs/b/distilled"], ["pair", "b"]),
        (["runs/random png/distilled", "runs/b/distilled"], ["runs/random png", "runs/b"]),
    ],
)
def test_sets_are_called_by_what_tells_them_apart(places, names):
    assert name_sets(places) == names


@pytest.mark.parametrize(
    "places",
    [["distilled", "b/distilled"], ["distilled", "./distilled"], ["runs/random/distilled", "runs/b/distilled"]],
)
def test_names_are_never_empty_equal_or_those_of_references(places):
    names = name_sets(places)
    assert all(names) and len(set(names)) == len(places) and not set(names) & set(REFERENCES)


# Alike


@pytest.mark.parametrize(
    ("shape", "told"), [({"pixels": 9}, "1x9x9, 3"), ({"channels": 3}, "3x8x8, 3"), ({"width": 4}, "1x8x8, 4")]
)
def test_sets_of_other_images_or_targets_are_refused(shape, told):
    check_alike({"a": make_set(), "b": make_set(size=2), "c": replace(make_set(), pixel_space=PixelSpace.raw(1))})
    message = f"images of one size and targets of one width, got a: 1x8x8, 3; b: {told}: evaluate them one by one"
    with pytest.raises(InputError, match=message):
        check_alike({"a": make_set(), "b": make_set(**shape)})


def test_targets_are_known_by_the_weights_of_their_teacher_and_by_their_transform(small_teacher):
    teacher, other = small_teacher(0), small_teacher(1)
    made = make_set(teacher=teacher.identity())
    assert has_targets_of(made, teacher, None) and not has_targets_of(made, other, None)
    assert has_targets_of(make_set(), other, None) and has_targets_of(make_set(teacher={"name": "x"}), other, None)
    one, two = (TargetTransform.fit("pca", torch.randn(9, 3) * torch.tensor([1.0, 2.0, k]), 3) for k in (3.0, 4.0))
    moved = replace(made, target_transform=one)
    assert has_targets_of(moved, teacher, one)
    assert not has_targets_of(moved, teacher, two) and not has_targets_of(moved, teacher, None)
    assert not has_targets_of(made, teacher, one)


@pytest.fixture
def read(small_backbone, small_teacher):
    """Reads the network of `small_teacher` in another way."""

    def build(space=None, size=16, **options):
        return Teacher(small_backbone(), space or small_teacher().pixel_space, size, "other", **options)

    return build


def test_targets_are_not_those_of_the_same_weights_that_are_read_otherwise(small_teacher, read):
    teacher = small_teacher()
    made = make_set(teacher=teacher.identity())
    assert has_targets_of(made, read(), None)
    for wrong in (read(SPACE), read(features="mean"), read(interpolation="bilinear")):
        assert wrong.weights_sha256() == teacher.weights_sha256() and not has_targets_of(made, wrong, None)
    # A timm of another version may describe the same network in other words.
    told = {**teacher.identity(), "structure_sha256": "0" * 64}
    assert has_targets_of(make_set(teacher=told), teacher, None)


@pytest.mark.parametrize(("name", "words"), [("source", "source images"), ("heldout", "held-out images")])
def test_images_other_than_those_that_a_set_states_are_refused_unless_others_are_given(digits, name, words):
    settings = DataSettings(max_images=50)
    stated = {"source": digits[0].provenance, "heldout": {"fingerprint": digits[1].fingerprint}}
    facts = {"settings": {"data": asdict(settings)}, "seed": 3, **stated}
    check_stated_images(make_set(**facts), settings, 3, *digits)
    changed = {**facts, name: {"fingerprint": "c" * 64}}
    same = [settings, replace(settings, memory_budget_gb=1.0), replace(settings, label_column="none")]
    same.append(replace(settings, follow_links=True))
    for given in same:
        with pytest.raises(
            InputError, match=rf"the {words} at digits are not .* c{{12}}\.\.\.; .* give --source.name"
        ):
            check_stated_images(make_set(**changed), given, 3, *digits)
    check_stated_images(make_set(**changed), settings, 4, *digits)
    check_stated_images(make_set(**changed), replace(settings, image_size=16), 3, *digits)
    # A set that records nothing of them, or less than there is to set by now.
    check_stated_images(make_set(**{**facts, name: None}), settings, 3, *digits)
    with pytest.raises(InputError, match=words):
        check_stated_images(make_set(**{**changed, "settings": {"data": {"max_images": 50}}}), settings, 3, *digits)


def test_images_of_another_size_or_mode_than_a_set_has_are_refused_before_they_are_loaded():
    made = make_set()
    for fitting in (DataSettings(), DataSettings(image_size=8, mode="grey"), DataSettings(name="a/b")):
        check_asked_images(made, fitting)
    with pytest.raises(InputError, match="of 8 pixels a side, .* image_size is 4000: give --source.image-size 8"):
        check_asked_images(made, DataSettings(image_size=4000, max_images=1))
    with pytest.raises(InputError, match="must be grey, .* mode is rgb: give --source.mode grey"):
        check_asked_images(made, DataSettings(mode="rgb"))


def test_settings_that_draw_nothing_do_not_keep_images_from_being_compared(caplog):
    def bank(selection):
        pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        return ImageBank(pixels, None, None, {"name": "x", "fingerprint": "a" * 64, "selection": selection})

    settings = DataSettings("x")
    facts = {"settings": {"data": asdict(settings)}, "seed": 3}
    facts |= {"source": {"fingerprint": "c" * 64, "selection": "all"}, "heldout": {"fingerprint": "a" * 64}}
    for given in (settings, replace(settings, heldout_fraction=0.3)):
        with pytest.raises(InputError, match="the source images at x are not those of the set"):
            check_stated_images(make_set(**facts), given, 5, bank("all"), bank("all"))
    assert not caplog.records
    # Others are wanted, and a warning says that they are not compared.
    facts["source"]["selection"] = drawn = "all but 0.1 held out by seed 3"
    check_stated_images(make_set(**facts), settings, 5, bank(drawn), bank(drawn))
    first, second = (record.message for record in caplog.records)
    assert (
        "source images are not those" in first and "nothing was compared" in first and "seed 3 there, 5 now" in first
    )
    assert "held-out images are not those" in second


def test_a_teacher_other_than_the_stated_one_is_refused_unless_another_is_given(small_teacher, read, caplog):
    teacher, other = small_teacher(0), small_teacher(1)
    made = make_set(teacher=teacher.identity(), versions=describe_versions())
    check_stated_teacher(made, teacher)
    check_stated_teacher(make_set(), other)
    message = r"weights_sha256 is recorded as .{13}\.\., it is .* restore it, or give --teacher.backbone"
    with pytest.raises(InputError, match=message):
        check_stated_teacher(made, other)
    check_stated_teacher(made, other, ["teacher.backbone"])
    for wrong, fact, setting in (
        (read(SPACE), "pixel_space", "mean"),
        (read(features="mean"), "features", "features"),
        (read(size=24), "input_size", "input_size"),
        (read(interpolation="bilinear"), "interpolation", None),
    ):
        with pytest.raises(InputError, match=f"{fact} is recorded as"):
            check_stated_teacher(made, wrong)
        if setting is not None:
            check_stated_teacher(made, wrong, [f"teacher.{setting}"])
            with pytest.raises(InputError, match="weights_sha256"):
                # A setting that changes nothing does not excuse the weights.
                check_stated_teacher(made, other, [f"teacher.{setting}"])
    assert not caplog.records


@pytest.mark.parametrize(
    ("versions", "same"), [({}, True), ({"torch": "9.9"}, False), ({"timm": "0.0.1"}, False), ({"timm": None}, False)]
)
def test_the_structure_of_a_teacher_counts_where_the_same_code_describes_it(
    small_backbone, small_teacher, caplog, versions, same
):
    teacher = small_teacher()
    made = make_set(teacher=teacher.identity(), versions={**describe_versions(), **versions})
    changed = small_backbone()
    next(module for module in changed.modules() if isinstance(module, torch.nn.BatchNorm2d)).eps = 0.5
    other = Teacher(changed, teacher.pixel_space, 16, "other")
    assert other.weights_sha256() == teacher.weights_sha256()
    assert has_targets_of(made, other, None) is not same and not caplog.records
    if same:
        with pytest.raises(InputError, match="structure_sha256 is recorded as"):
            check_stated_teacher(made, other)
    else:
        check_stated_teacher(made, other)
        assert "the structure of the teacher could not be compared" in caplog.text


def test_a_teacher_that_was_hashed_in_double_precision_is_known(small_teacher):
    made = make_set(teacher=small_teacher(dtype=torch.float64).identity(), versions=describe_versions())
    assert has_targets_of(made, small_teacher(), None) and not has_targets_of(made, small_teacher(1), None)
    check_stated_teacher(made, small_teacher())


# Other datasets


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def save_dataset(folder, labels=None, rows=12, size=10):
    (folder / "data").mkdir(parents=True)
    pictures = [Image.new("RGB", (size, size), (20 * row, 0, 0)) for row in range(rows)]
    for split in ("train", "test"):
        columns, features = {"image": pictures}, {"image": datasets.Image()}
        if labels is not None:
            columns["label"] = [labels[row % len(labels)] for row in range(rows)]
            features["label"] = ClassLabel(names=["a", "b", "c"])
        table = Dataset.from_dict(columns, features=Features(features))
        table.to_parquet(folder / "data" / f"{split}-0.parquet")
    return folder


def load(name, args=None, made=None, most=100):
    return load_dataset(str(name), args or {}, made or make_set(), most, 0, CPU)


def test_a_target_is_loaded_in_the_size_and_mode_of_the_set(tmp_path):
    folder = save_dataset(tmp_path / "cars", [0, 1, 2])
    stated = make_set(student_pixel_space=PixelSpace((0.1,), (0.9,)).to_dict())
    data = load(folder, made=stated)
    assert data.name == "cars" and data.train.pixels.shape == data.heldout.pixels.shape == (12, 1, 8, 8)
    assert data.labelled and data.train.labels[:4].tolist() == [0, 1, 2, 0] and data.heldout_targets is None
    assert data.pixel_space == PixelSpace((0.1,), (0.9,)) and data.device == CPU
    rgb = load(folder, made=make_set(channels=3, pixels=9))
    assert rgb.heldout.pixels.shape == (12, 3, 9, 9) and rgb.pixel_space.channels == 3
    few = load(folder, most=5)
    assert len(few.train) == 12 and len(few.heldout) == 5


def test_a_target_can_have_any_name_where_its_settings_say_what_it_is():
    data = load("cars", {"name": "digits", "max_images": 30, "image_size": 32, "mode": "rgb"})
    assert data.name == "cars" and data.labelled and data.train.pixels.shape == (30, 1, 8, 8)


def test_wrong_settings_of_a_target_are_named(tmp_path):
    with pytest.raises(InputError, match="--dataset-args.cars holds an unknown setting of its data: .*label_colum'"):
        load("cars", {"name": "digits", "label_colum": "label"})
    with pytest.raises(SettingsError) as caught:
        load("digits", {"heldout_fraction": 2, "max_images": 0})
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(("labels", "args"), [(None, {}), ([0, 1], {"label_column": "none"}), ([1], {})])
def test_a_target_without_labels_of_two_classes_is_refused(tmp_path, labels, args):
    folder = save_dataset(tmp_path / "cars", labels)
    message = "the target .*cars has no labels of two classes, and nothing can be measured on it: name their column"
    with pytest.raises(InputError, match=message):
        load(folder, args)
