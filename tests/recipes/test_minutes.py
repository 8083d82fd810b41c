"""A run that is estimated, and one whose steps `minutes` chooses: interrupted, resumed, refused, on two processes."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from reference.warm import Running, start_two

import ssdd_hub
from ssdd_hub import DistilledSet, InputError
from ssdd_hub.runs import estimate

RECIPES = Path(__file__).parents[2] / "recipes"
SMOKE = ["--config", RECIPES / "configs" / "smoke.yaml", "--evaluate.seeds", "1"]
# 10 minutes suffice anywhere for 10 times as many steps, the most that are made.
FEW = [*SMOKE, "--teacher-training.max-steps", "2", "--distiller.steps", "10"]
SIZED = [*FEW, "--minutes", "10"]
STAGES = ["teacher", "features", "start", "warm-up", "distillation", "evaluation", "report"]


def steps_of(folder):
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        stage: max(record["step"] for record in log if record["stage"] == stage) for stage in ("teacher", "distill")
    }


@pytest.mark.slow
def test_an_estimate_tells_all_stages_and_changes_no_byte(launch, tmp_path, capsys):
    given = [*SMOKE, "--distiller.steps", "100", "--init", "kmeans", "--output"]
    launch("distill", *given, tmp_path / "on")
    printed = capsys.readouterr().out
    launch("distill", *given, tmp_path / "off", "--run.estimate", "false")
    for name in ("log.jsonl", "teacher/model.safetensors"):
        assert (tmp_path / "on" / name).read_bytes() == (tmp_path / "off" / name).read_bytes()
    on, off = (DistilledSet.load(tmp_path / name / "distilled") for name in ("on", "off"))
    assert torch.equal(on.images, off.images) and torch.equal(on.targets, off.targets)
    assert on.provenance["settings"] == off.provenance["settings"] and "minutes" not in on.provenance["settings"]

    stored = json.loads((tmp_path / "on" / "estimate.json").read_text())
    assert not (tmp_path / "off" / "estimate.json").exists()
    assert [stage["name"] for stage in stored["stages"]] == STAGES
    assert [stage["steps"] for stage in stored["stages"]][:1] == [8] and stored["stages"][4]["steps"] == 100
    assert all(stage["taken"] is not None for stage in stored["stages"])
    assert stored["taken"] > sum(stage["taken"] for stage in stored["stages"]) and stored["memory_gib"]["cpu"] > 0.1
    for words in (
        "\nestimate ",
        "\nmemory: at least ",
        "seconds estimated/taken: teacher ",
        "s were estimated), at most",
    ):
        assert words in printed
    assert "s were estimated)" in (tmp_path / "on" / "report.html").read_text()
    # What has ended, and what is small, is not estimated.
    launch("distill", *given, tmp_path / "on")
    launch("distill", *FEW, "--output", tmp_path / "small")
    assert "\nestimate " not in capsys.readouterr().out
    assert json.loads((tmp_path / "on" / "estimate.json").read_text()) == stored


@pytest.mark.slow
def test_a_run_of_few_steps_is_estimated_where_each_is_long(launch, tmp_path, capsys):
    experts = "{experts: 1, expert_epochs: 2, expert_steps: 2, max_start: 1, match_epochs: 1, unroll: 2}"
    labels = ["--targets.of", "labels", "--targets.transform", "none", "--targets.dim", "null"]
    given = [*SMOKE, *labels, "--output", tmp_path / "run"]
    launch("distill", *given, "--distiller.steps", "10", "--method.name", "mtt", "--method.args", experts)
    printed = capsys.readouterr().out
    stages = dict(re.findall(r"^(warm-up|distillation) +(\d+) +[\d.]+$", printed, re.M))
    assert stages == {"warm-up": "4", "distillation": "10"}
    # Its learned step size is that of the last step.
    last = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rate = next(record["step_size"] for record in reversed(last) if record["stage"] == "distill")
    card = (tmp_path / "run" / "distilled" / "README.md").read_text()
    assert DistilledSet.load(tmp_path / "run" / "distilled").provenance["learned"] == {"learning_rate": rate}
    assert rate != 0.01 and f"| Learned | learning rate: {rate:.6g} |" in card


@pytest.mark.slow
def test_an_interrupted_run_keeps_the_steps_that_its_minutes_chose(
    launch, refuse, kill_when, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "run"
    killed = Running(RECIPES / "distill.py", *SIZED, "--run.threads", "1", "--output", folder)
    kill_when(killed, (folder / "checkpoints" / "teacher" / "step-00000004.safetensors").exists)
    begun = (folder / "config.yaml").read_bytes()
    settings = yaml.safe_load(begun)
    assert settings["minutes"] is None and settings["distiller"]["steps"] == 100
    assert (settings["teacher_training"]["max_steps"], settings["teacher_training"]["epochs"]) == (20, 5)
    refuse(
        ["was sized for 10 minutes, not 9: give --minutes 10"], "distill", *FEW, "--minutes", "9", "--output", folder
    )
    refuse(["distiller.steps: 100 there, 10 now"], "distill", *FEW, "--output", folder)
    # A run that were sized anew would have other steps.
    monkeypatch.setattr(estimate, "MOST_TIMES", 2)
    launch("distill", *SIZED, "--output", folder)
    assert (folder / "config.yaml").read_bytes() == begun
    assert steps_of(folder) == {"teacher": 20, "distill": 100}
    stored = json.loads((folder / "estimate.json").read_text())
    options = {"teacher_training.epochs": 5, "teacher_training.max_steps": 20, "distiller.steps": 100}
    assert stored["minutes"] == 10 and stored["settings"] == options
    # Only what was left.
    assert {stage["name"]: stage["steps"] for stage in stored["stages"]}["teacher"] < 20

    # The options that are printed make the same set, and resume that run.
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    launch("distill", *SMOKE, *words, "--output", tmp_path / "again")
    assert (tmp_path / "again" / "log.jsonl").read_bytes() == (folder / "log.jsonl").read_bytes()
    capsys.readouterr()
    launch("distill", *SMOKE, *words, "--output", folder)
    refuse(
        ["minutes: None there, 10.0 now"], "distill", *SMOKE, *words, "--minutes", 10, "--output", tmp_path / "again"
    )


def test_minutes_that_do_not_suffice_leave_nothing(refuse, tmp_path):
    refuse(["--minutes 0.001 are 0 s", "give "], "distill", *FEW, "--minutes", "0.001", "--output", tmp_path / "run")
    words = ["minutes must be above 0", "minutes needs the estimate"]
    refuse(words[:1], "train_teacher", "--minutes", "0", "--output", tmp_path / "run")
    refuse(words[1:], "distill", *FEW, "--minutes", "1", "--run.estimate", "false", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_make_the_same_steps(tmp_path):
    for running in start_two(RECIPES / "distill.py", *SIZED, "--run.threads", "1", "--output", tmp_path / "run"):
        running.finish()
    assert steps_of(tmp_path / "run") == {"teacher": 20, "distill": 100}
    assert json.loads((tmp_path / "run" / "estimate.json").read_text())["settings"]["distiller.steps"] == 100


@pytest.mark.slow
def test_a_teacher_is_estimated_and_sized_with_its_scores(launch, tmp_path, capsys):
    small = [
        "--teacher.backbone",
        "ssdd_convnet3",
        "--teacher.model-args",
        "{widths: [8, 16]}",
        "--data.max-images",
        160,
    ]
    small += [
        "--teacher-training.workers",
        "1",
        "--teacher-training.batch-size",
        "32",
        "--teacher-training.epochs",
        "1",
    ]
    launch("train_teacher", *small, "--minutes", "10", "--output", tmp_path / "run")
    printed = capsys.readouterr().out
    assert (
        "without --minutes, the same steps by: --teacher-training.epochs 10 --teacher-training.max-steps 50" in printed
    )
    assert "seconds estimated/taken: teacher " in printed
    stages = json.loads((tmp_path / "run" / "estimate.json").read_text())["stages"]
    assert [(stage["name"], stage["steps"]) for stage in stages][0] == ("teacher", 50)
    assert stages[1]["name"] == "its scores" and stages[1]["seconds"] > 0


def test_the_calls_take_minutes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (ssdd_hub.distill, ssdd_hub.train_teacher):
        with pytest.raises(InputError, match="minutes must be above 0 and at most 527040, a year; got -1"):
            call("digits", minutes=-1)
