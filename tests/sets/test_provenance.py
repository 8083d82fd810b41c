import json
import shlex
import sys

import pytest
import torch

from distill import DistillConfig
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.sets.provenance import describe_command, describe_run, describe_selection, describe_training
from ssdd_hub.settings import parse_config, to_dict
from ssdd_hub.targets.transform import TargetTransform
from train_teacher import TrainTeacherConfig

SOURCE = {"name": "digits", "license": "cc-by-4.0", "fingerprint": "abc", "num_images": 3}


@pytest.fixture
def describe(tmp_path, monkeypatch, small_teacher):
    """Describes a run of a recipe that was started with some arguments."""
    (tmp_path / "default.yaml").write_text("")

    def describe(*argv, teacher=None, transform="standardise", **source):
        monkeypatch.setattr(sys, "argv", ["/home/me/clone/recipes/distill.py", *argv])
        config = to_dict(parse_config(DistillConfig, tmp_path / "default.yaml"))
        fitted = TargetTransform.fit(transform, torch.randn(5, 24))
        source = {**SOURCE, "name": config["data"]["name"], **source}
        student = {name: config["student"][name] for name in ("name", "model_args")}
        return describe_run(config, source, teacher or small_teacher(), fitted, PixelSpace((0.3,), (0.4,)), student)

    return describe


def test_a_run_is_described_by_all_that_its_set_depends_on(describe, small_teacher):
    described = describe("--seed", "5", "--distiller.num-images", "2", "--student.model-args", "{widths: [4]}")
    teacher = described["teacher"]
    assert described["method"] == "krr-st" and described["seed"] == 5
    assert described["settings"]["distiller"]["num_images"] == 2
    assert described["settings"]["run"] == {"mixed_precision": "no"}
    # How the set is used and probed may be recorded, but decides nothing of it.
    assert described["settings"].keys() - {"run", "student_training", "probe"} == {
        *(
            "data",
            "teacher",
            "teacher_training",
            "targets",
            "student",
            "method",
            "parameterisation",
            "init",
            "selection",
        ),
        *("pool", "distiller", "storage", "seed"),
    }
    assert described["student"] == {"name": "ssdd_convnet3", "model_args": {"widths": [4]}}
    assert described["source"] == SOURCE
    assert teacher["weights_sha256"] == small_teacher().weights_sha256() and teacher["name"] == "small-0"
    assert described["student_pixel_space"] == {"mean": [0.3], "std": [0.4]}
    assert described["target_transform"]["kind"] == "standardise" and len(described["target_transform"]["mean"]) == 24
    assert described["versions"] == describe_versions() and json.loads(json.dumps(described)) == described


def test_the_making_of_a_teacher_is_told_where_it_is_known(describe, small_teacher):
    teacher = small_teacher()
    teacher.provenance = {
        **{"objective": {"name": "byol", "citation": "Grill et al."}, "source": {"name": "/home/me/photos"}},
        **{"seed": 7, "hardware": {"cpus": 2}},
    }
    described = describe(teacher=teacher)["teacher"]
    assert described["objective"] == {"name": "byol", "citation": "Grill et al."}
    assert described["source"] == {"name": "photos"} and described["seed"] == 7
    assert "hardware" not in described and "objective" not in describe()["teacher"]


def test_the_licence_is_derived_from_those_of_images_and_teacher(describe, small_teacher):
    teacher = small_teacher()
    assert describe(teacher=teacher, license="mit")["license"] == "mit"
    assert describe(teacher=teacher, license="unknown")["license"] == "unknown"
    teacher.license = "cc-by-nc-4.0"
    assert describe(teacher=teacher, license="mit")["license"] == "cc-by-nc-4.0"


@pytest.mark.parametrize("name", ["{here}/photos", "../{name}/photos", "~/photos"])
def test_of_a_data_folder_only_its_name_is_told(describe, tmp_path, monkeypatch, name):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    described = describe("--data.name", name.format(here=tmp_path, name=tmp_path.name))
    assert described["source"]["name"] == described["settings"]["data"]["name"] == "photos"


def test_a_hub_id_stays_whole(describe):
    described = describe("--data.name", "uoft-cs/cifar100", "--teacher.pretrained", "--teacher.backbone", "hf-hub:a/b")
    assert described["source"]["name"] == described["settings"]["data"]["name"] == "uoft-cs/cifar100"
    assert described["settings"]["teacher"]["backbone"] == "hf-hub:a/b"


def test_no_absolute_path_is_told(describe, tmp_path, small_teacher):
    data, weights = tmp_path / "photos", tmp_path / "my teacher"
    data.mkdir()
    teacher = small_teacher()
    teacher.name = f"local-dir:{weights}"
    described = describe(
        *("--data.name", f"{data}/"),
        *("--teacher.pretrained", f"--teacher.backbone=local-dir:{weights}"),
        *("--data.config", f"{data}/x"),
        *("--config", str(tmp_path / "default.yaml"), "--output", str(tmp_path / "out"), f"--run.cache={tmp_path}"),
        teacher=teacher,
    )
    text = json.dumps(described)
    assert str(tmp_path.parent) not in text and "/home/me" not in text
    assert described["settings"]["teacher"]["backbone"] == described["teacher"]["name"] == "local-dir:my teacher"
    assert described["settings"]["data"]["config"] == "x"


def test_the_command_is_what_was_typed_but_for_absolute_paths_and_tokens(monkeypatch):
    argv = ["--set", "/home/me/runs/a/distilled", "--target-args.cars.name=~/cars", "--output=/somewhere/run 1"]
    more = ["--data.name", "../shared/data/cifar100", "--references", "none,random", "--args", "{widths: [4]}"]
    monkeypatch.setattr(sys, "argv", ["/home/me/clone/recipes/evaluate.py", *argv, *more, f"--student-args.x={TOKEN}"])
    assert shlex.split(describe_command()) == [
        *("accelerate", "launch", "recipes/evaluate.py", "--set", "distilled", "--target-args.cars.name=cars"),
        *("--output=run 1", *more, "--student-args.x=<token>"),
    ]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--set=a,/home/me/b,~/runs/c", "--set=a,b,c"),
        ("--set=/home/me/a, b/c,/home/me/d", "--set=c,d"),
        (r"--data.name=C:\Users\me\photos", "--data.name=photos"),
        ("D:/me/photos", "photos"),
        (r"\\server\me\photos", "photos"),
        ("--x=[/home/me/a,/home/me/b]", "--x=[a,b]"),
        ("--x=https://a/b/c", "--x=https://a/b/c"),
        ("--set=ann/x,runs/a/b", "--set=ann/x,runs/a/b"),
    ],
)
def test_absolute_paths_are_cut_wherever_an_option_has_them(monkeypatch, typed, told):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", typed])
    assert shlex.split(describe_command())[3:] == [told]


@pytest.fixture
def selected(small_teacher):
    def selected(chosen=(4, 2), **source):
        teacher, fitted = small_teacher(), TargetTransform.fit("standardise", torch.randn(5, 24))
        selection = {"seed": 8, "chosen": list(chosen), "expert_args": {"folder": "/home/me/experts", "token": TOKEN}}
        space = PixelSpace((0.3,), (0.4,))
        return describe_selection("kmeans", selection, {**SOURCE, **source}, teacher, fitted, space)

    return selected


def test_a_selection_is_described_by_all_that_its_set_depends_on(selected, small_teacher):
    described = selected()
    assert described.keys() == {
        *("method", "selection", "seed", "source", "versions", "teacher", "target_transform", "license"),
        "student_pixel_space",
    }
    assert (described["method"], described["seed"], described["source"]) == ("selection/kmeans", 8, SOURCE)
    assert described["selection"]["chosen"] == [4, 2] and described["versions"] == describe_versions()
    assert described["teacher"]["weights_sha256"] == small_teacher().weights_sha256()
    assert described["student_pixel_space"] == {"mean": [0.3], "std": [0.4]}
    assert described["target_transform"]["kind"] == "standardise" and described["license"] == "cc-by-4.0, mit"
    assert selected(license="mit")["license"] == "mit"
    assert json.loads(json.dumps(described)) == described


def test_a_selection_tells_no_folder_and_no_token(selected, tmp_path):
    (tmp_path / "photos").mkdir()
    described = selected(name=str(tmp_path / "photos"))
    assert described["source"]["name"] == "photos"
    assert described["selection"]["expert_args"] == {"folder": "experts", "token": "<token>"}
    assert str(tmp_path) not in json.dumps(described)


# Tokens of the Hub

TOKEN = "hf_" + "aB3" * 12


@pytest.fixture
def unrefused(monkeypatch):
    """Settings hold no token, since reading them refuses it; what describes a run does not rely on that."""
    monkeypatch.setattr("ssdd_hub.settings.refuse_tokens", lambda texts: None)


def test_no_token_is_told_of_a_run(describe, small_teacher, unrefused):
    teacher = small_teacher()
    teacher.provenance = {"source": {"name": TOKEN}}
    arguments = ("--data.name", "a/b", "--data.config", f"x-{TOKEN}", f"--data.revision={TOKEN}")
    described = describe(*arguments, teacher=teacher)
    assert TOKEN not in json.dumps(described)
    data = described["settings"]["data"]
    assert (data["config"], data["revision"]) == ("x-<token>", "<token>")
    assert shlex.split(described["command"])[-1] == "--data.revision=<token>"


@pytest.fixture
def describe_teacher(tmp_path, monkeypatch):
    """Describes the training of a teacher by a recipe that was started with some arguments."""
    (tmp_path / "default.yaml").write_text("")

    def describe(config, recipe, *argv):
        monkeypatch.setattr(sys, "argv", [f"/home/me/clone/recipes/{recipe}", *argv])
        return describe_training(to_dict(parse_config(config, tmp_path / "default.yaml")), SOURCE)

    return describe


def test_no_token_is_told_of_a_training(describe_teacher, unrefused):
    argv = ("--data.name", "a/b", "--data.revision", TOKEN)
    described = describe_teacher(TrainTeacherConfig, "train_teacher.py", *argv)
    assert TOKEN not in json.dumps(described) and shlex.split(described["command"])[-1] == "<token>"


def test_a_training_is_described_by_all_that_its_teacher_depends_on(describe_teacher, tmp_path):
    argv = ("--objective", "vicreg", "--output", str(tmp_path / "out"), "--seed", "4")
    described = describe_teacher(TrainTeacherConfig, "train_teacher.py", *argv)
    command = "accelerate launch recipes/train_teacher.py --objective vicreg --output out --seed 4"
    assert described["command"] == command
    # That of a distillation, without what comes after it.
    for settings in (described["settings"], describe_teacher(DistillConfig, "distill.py")["settings"]):
        assert settings.keys() == {"data", "teacher", "teacher_training", "run", "seed"}
    assert described["settings"]["teacher_training"]["objective"] == "vicreg"
    assert (described["seed"], described["source"], described["license"]) == (4, SOURCE, "cc-by-4.0")
