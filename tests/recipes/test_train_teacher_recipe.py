"""The recipe that trains a teacher, as a user launches it."""

import json
from pathlib import Path

import datasets
import pytest
import timm
import torch
from reference.warm import Running

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ["--teacher.backbone", "ssdd_convnet3", "--teacher.model-args", "{widths: [8, 16]}", "--watch.every", "1"]
SMALL += [
    "--teacher-training.epochs",
    "3",
    "--teacher-training.batch-size",
    "32",
    "--teacher-training.workers",
    "0",
    "--watch.probe",
    "100",
]
SMALL += ["--teacher-training.checkpoint-every", "4", "--data.max-images", "160"]


def start(output):
    return Running(RECIPES / "train_teacher.py", *SMALL, "--output", output, "--objective", "simclr")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "teacher"
    return output, start(output).finish()


def test_the_run_folder_holds_teacher_scores_log_and_picture(finished):
    output, printed = finished
    for name in ("config.yaml", "log.jsonl", "scores.json", "teacher/model.safetensors", "teacher/README.md"):
        assert (output / name).stat().st_size > 0
    assert (output / "pictures" / "training.png").read_bytes().startswith(b"\x89PNG")
    records = json.loads((output / "scores.json").read_text())["records"]
    assert [(record["set"], record["protocol"], record["labels"]) for record in records] == [
        ("untrained", "knn", None),
        ("teacher", "knn", None),
        ("teacher", "probe", 100),
    ]
    assert records[2]["mean"] > 0.5
    for record in records:
        assert f"{record['protocol']} accuracy, {record['set']}: {100 * record['mean']:.1f} %" in printed
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [0, 5, 10, 15]
    assert log[-1]["loss"] < log[1]["loss"] and log[-1]["knn"] == records[1]["mean"]


def test_timm_loads_the_teacher_and_its_card_tells_how_it_was_made(finished):
    output, _ = finished
    model = timm.create_model(f"local-dir:{output / 'teacher'}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 1, 16, 16)).shape == (2, 256)
    card = (output / "teacher" / "README.md").read_text()
    for words in ("simclr", "arXiv", "untrained", "accelerate launch recipes/train_teacher.py"):
        assert words in card.replace("\\", "")
    assert str(output.parent) not in card


def test_a_teacher_can_be_distilled_from_and_stays_named(finished, launch, tmp_path):
    small = ["--config", RECIPES / "configs" / "smoke.yaml", "--teacher.model-args", "{}", "--distiller.steps", "2"]
    small += ["--student-training.epochs", "1", "--evaluate.seeds", "1", "--output", tmp_path / "run"]
    launch("distill", *small, "--teacher.backbone", f"local-dir:{finished[0] / 'teacher'}", "--teacher.pretrained")
    assert not (tmp_path / "run" / "teacher").exists()
    facts = json.loads((tmp_path / "run" / "distilled" / "ssdd_hub.json").read_text())["provenance"]["teacher"]
    assert facts["objective"]["name"] == "simclr"
    rows = datasets.load_dataset(str(tmp_path / "run" / "distilled"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 20


@pytest.mark.slow
def test_a_run_killed_with_kill_9_goes_on_to_the_same_bytes(finished, kill_when, tmp_path):
    output, log = tmp_path / "killed", tmp_path / "killed" / "log.jsonl"
    kill_when(start(output), lambda: log.exists() and len(log.read_text().splitlines()) >= 2)
    start(output).finish()
    for name in ("log.jsonl", "teacher/model.safetensors"):
        assert (output / name).read_bytes() == (finished[0] / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--objective", "simclr2"], "teacher_training.objective must be one of"),
        (["--objective", "mae"], "mae hides patches from a timm VisionTransformer"),
        (["--teacher-training.batch-size", "1"], "teacher_training.batch_size must be at least 2, got 1"),
        (["--teacher.pretrained"], "trains a teacher from fresh weights"),
        (["--teacher-training.optimizer", "adam"], "teacher_training.optimizer must be one of auto, sgd, adamw, lars"),
        (["--teacher.backbone", "resnet_9000"], "'resnet_9000'"),
    ],
)
def test_bad_input_ends_with_one_message_and_leaves_nothing(refuse, tmp_path, arguments, problem):
    refuse([problem], "train_teacher", *SMALL, "--output", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()
