"""The recipe that trains a teacher, as a user launches it."""

import json
import signal
import sys
import time
from pathlib import Path

import datasets
import pytest
import timm
import torch
from reference.warm import Running

import ssdd_hub  # noqa: F401
from train_teacher import main

ROOT = Path(__file__).parents[2]
SMALL = {
    "--teacher.backbone": "ssdd_convnet3",
    "--teacher.model-args": "{widths: [8, 16]}",
    "--data.max-images": "160",
    "--pretrain.epochs": "3",
    "--pretrain.batch-size": "32",
    "--pretrain.workers": "0",
    "--pretrain.checkpoint-every": "4",
    "--watch.every": "1",
    "--watch.probe": "100",
}


def start(recipe, output, *overrides, small=SMALL):
    settings = [word for setting in small.items() for word in setting]
    return Running(ROOT / "recipes" / recipe, *settings, "--output", output, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "teacher"
    return output, start("train_teacher.py", output, "--objective", "simclr").finish()


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


def test_timm_loads_the_teacher(finished):
    output, _ = finished
    model = timm.create_model(f"local-dir:{output / 'teacher'}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 1, 16, 16)).shape == (2, 256)


def test_the_card_tells_how_the_teacher_was_made(finished):
    card = (finished[0] / "teacher" / "README.md").read_text()
    for words in ("simclr", "arXiv", "untrained", "accelerate launch recipes/train\\_teacher.py"):
        assert words in card or words.replace("\\", "") in card
    assert str(finished[0].parent) not in card


def test_a_teacher_can_be_distilled_from_and_stays_named(finished, tmp_path):
    small = {"--config": str(ROOT / "recipes" / "configs" / "smoke.yaml"), "--teacher.model-args": "{}"}
    small |= {"--distiller.steps": "2", "--use.epochs": "1", "--evaluate.seeds": "1"}
    where = ("--teacher.backbone", f"local-dir:{finished[0] / 'teacher'}", "--teacher.pretrained")
    start("distill.py", tmp_path / "run", *where, small=small).finish()
    assert not (tmp_path / "run" / "teacher").exists()
    facts = json.loads((tmp_path / "run" / "distilled" / "ssdd_hub.json").read_text())["provenance"]["teacher"]
    assert facts["objective"]["name"] == "simclr"
    assert datasets.load_dataset(str(tmp_path / "run" / "distilled"), split="train").num_rows == 20


@pytest.mark.slow
def test_a_run_killed_with_kill_9_goes_on_to_the_same_bytes(finished, tmp_path):
    output, log = tmp_path / "killed", tmp_path / "killed" / "log.jsonl"
    run = start("train_teacher.py", output, "--objective", "simclr")
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    run.process.kill()
    assert run.wait()[0] == -signal.SIGKILL, "the run was over before it was killed"
    start("train_teacher.py", output, "--objective", "simclr").finish()
    for name in ("log.jsonl", "teacher/model.safetensors"):
        assert (output / name).read_bytes() == (finished[0] / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--objective", "simclr2"], "objective 'simclr2' is unknown"),
        (["--objective", "mae"], "mae hides patches from a timm VisionTransformer"),
        (["--pretrain.batch-size", "1"], "pretrain.batch_size must be at least 2, got 1"),
        (["--teacher.pretrained"], "trains a teacher from fresh weights"),
        (["--pretrain.optimizer", "adam"], "pretrain.optimizer must be auto, sgd, adamw, lars"),
        (["--teacher.backbone", "resnet_9000"], "'resnet_9000'"),
    ],
)
def test_bad_input_ends_with_one_message_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, problem):
    small = [word for setting in SMALL.items() for word in setting]
    monkeypatch.setattr(sys, "argv", ["train_teacher.py", *small, "--output", str(tmp_path / "run"), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.startswith("error:") and "Traceback" not in printed
    assert problem in printed
    assert not (tmp_path / "run").exists()
