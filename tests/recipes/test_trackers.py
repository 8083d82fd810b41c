"""Trackers of a run: what they are told, those that are missing, TensorBoard and trackio where they are installed."""

import json
import sqlite3

import pytest
from accelerate import PartialState, tracking

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.launch import build_accelerator
from ssdd_hub.runs.run_settings import LaunchSettings, RunSettings, UntrackedSettings
from ssdd_hub.runs.trackers import start_trackers, track_scores

CONFIG = {"seed": 0, "student": {"name": "ssdd_convnet3", "model_args": {"widths": [4, 8]}}, "data": {"config": None}}
FLAT = {"seed": 0, "student.name": "ssdd_convnet3", "student.model_args.widths": "[4, 8]", "data.config": "null"}
RECORD = {"set": "distilled", "student": "convnet", "target": "digits", "protocol": "probe", "labels": 50}
SCORES = [{**RECORD, "metric": "accuracy", "mean": 0.5}, {**RECORD, "metric": "loss", "mean": None}]


@pytest.fixture
def notebook():
    """A tracker that somebody else wrote, registered with Accelerate; what it was told."""
    if not hasattr(tracking, "register_tracker_class"):
        pytest.skip("this version of accelerate registers no trackers")
    told = []

    class Notebook(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "notebook", False, None

        def __init__(self, run_name):
            super().__init__()
            told.append(("project", run_name))

        def store_init_configuration(self, values):
            told.append(("settings", values))

        def log(self, values, step=None, **_):
            told.append((step, values))

        def finish(self):
            told.append(("end", None))

    tracking.register_tracker_class(Notebook)
    yield told
    del tracking.LOGGER_TYPE_TO_CLASS["notebook"]


def follow(path, *trackers):
    """Begins a run or goes on with it, logs a loss and scores, and ends."""
    accelerator = build_accelerator(RunSettings(trackers=list(trackers)), path)
    run = RunFolder(path, CONFIG)
    run.start()
    start_trackers(accelerator, run)
    accelerator.log({"loss": 0.25}, step=2 + run.goes_on)
    track_scores(accelerator, SCORES, 4)
    accelerator.end_training()
    run.close()


def test_a_tracker_is_told_project_flat_settings_losses_and_scores(notebook, tmp_path):
    follow(tmp_path / "digits", "notebook")
    scores = {"scores/distilled/convnet/digits/probe/50/accuracy": 0.5}
    told = [("project", "ssdd_hub"), ("settings", FLAT), (2, {"loss": 0.25}), (4, scores), ("end", None)]
    assert notebook == told


def test_a_distillation_and_an_evaluation_tell_a_tracker(notebook, launch, tmp_path):
    few = ["--distiller.steps", "2", "--teacher-training.max-steps", "2", "--evaluate.seeds", "1"]
    few += ["--student-training.epochs", "1", "--config", "smoke", "--run.trackers", "notebook"]
    launch("distill", *few, "--output", tmp_path / "run")
    told = dict(notebook)
    assert told["settings"]["distiller.steps"] == 2 and notebook[-1] == ("end", None)
    names = {name for step, values in notebook if isinstance(step, int) for name in values}
    assert {"teacher/loss", "loss", "scores/none/ssdd_convnet3/digits/teacher_error/mse"} <= names
    notebook.clear()
    asked = ["--set", tmp_path / "run" / "distilled", "--references", "none", "--evaluate.seeds", "1"]
    asked += ["--protocol", "teacher_error", "--run.trackers", "notebook", "--output", tmp_path / "scores"]
    launch("evaluate", *asked)
    assert "scores/distilled/ssdd_convnet3/digits/teacher_error/mse" in dict(notebook)[0]


@pytest.mark.parametrize(
    ("name", "remedy"), [("trackio", "'ssdd-hub[track]'"), ("wandb", "wandb"), ("tensorboard", "'ssdd-hub[track]'")]
)
def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(refuse, monkeypatch, tmp_path, name, remedy):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    words = [f"--run.trackers {name}: not installed: pip install {remedy}, or leave it out"]
    refuse(words, "distill", "--run.trackers", name, "--output", tmp_path / "run")
    refuse(words, "train_teacher", "--run.trackers", name, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused_with_the_nearest_and_one_that_is_told_nothing_too():
    with pytest.raises(SettingsError, match=r"run.trackers must be some of .*wandb.*; the nearest is tensorboard$"):
        LaunchSettings(trackers=["tensorbord", "trackio"])
    with pytest.raises(SettingsError, match="run.trackers must be left out here: nothing is told to trackio"):
        UntrackedSettings(trackers=["trackio"])


def test_a_tracker_that_cannot_start_is_named(notebook, tmp_path, monkeypatch):
    def fail(self, values):
        raise RuntimeError("log in first\nlong help")

    monkeypatch.setattr(tracking.LOGGER_TYPE_TO_CLASS["notebook"], "store_init_configuration", fail)
    with pytest.raises(InputError, match=r"--run.trackers notebook cannot start: log in first: set it up, or leave"):
        follow(tmp_path / "run", "notebook")


def test_processes_but_the_main_one_start_none(notebook, tmp_path, monkeypatch):
    accelerator = build_accelerator(RunSettings(trackers=["notebook"]), tmp_path / "run")
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    start_trackers(accelerator, RunFolder(tmp_path / "run", CONFIG, is_main=False))
    assert notebook == [] and accelerator.trackers == []


def test_tensorboard_holds_losses_scores_and_settings_also_after_a_resume(tmp_path):
    reason = "tensorboard, of the extra `track`, is not installed"
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    for _ in range(2):
        follow(tmp_path / "digits", "tensorboard")
    found = events.EventAccumulator(str(tmp_path / "digits" / "trackers" / "ssdd_hub"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(2, 0.25), (3, 0.25)]
    assert found.Scalars("scores/distilled/convnet/digits/probe/50/accuracy")[-1].step == 4
    written = sorted((tmp_path / "digits").rglob("hparams.yml"))
    assert written and "student.model_args.widths: '[4, 8]'" in written[0].read_text()


def test_trackio_goes_on_with_the_run_of_the_folder_and_begins_another_for_a_new_one(tmp_path, monkeypatch):
    storage = pytest.importorskip("trackio.sqlite_storage", reason="trackio, of the extra `track`, is not installed")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    for folder in ("a", "a", "b"):
        follow(tmp_path / folder / "digits", "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "ssdd_hub.db") as database:
        rows = database.execute("select run_id, run_name, step, metrics from metrics order by id").fetchall()
    losses = [(run, name, step) for run, name, step, metrics in rows if "loss" in json.loads(metrics)]
    (first, _, _), (second, _, _), (third, _, _) = losses
    assert [entry[1:] for entry in losses] == [("digits", 2), ("digits", 3), ("digits", 2)]
    assert first == second != third
