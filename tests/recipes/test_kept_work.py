"""Finished work that a later step must not lose, and the words that say where it is."""

from pathlib import Path

import pytest
import torch

from ssdd_hub import DistilledSet
from ssdd_hub.distill import Distiller
from ssdd_hub.errors import InputError
from ssdd_hub.record import read_metadata
from ssdd_hub.runs.launch import keeping

SMOKE = Path(__file__).parents[2] / "recipes" / "configs" / "smoke.yaml"
SHORT = ["--distiller.steps", "2", "--student-training.epochs", "2", "--teacher-training.max-steps", "2"]


def fail(*_, **__):
    raise InputError("a student diverges")


@pytest.fixture
def distil(launch, refuse, tmp_path):
    """Distils in one folder, well or to an error that holds some words."""

    def distil(words=None, *more):
        arguments = ["distill", "--config", SMOKE, "--output", tmp_path / "run", *SHORT, *more]
        return refuse(words, *arguments) if words else launch(*arguments)

    return distil


def test_a_set_is_saved_before_it_is_scored_and_the_same_command_only_scores_it(distil, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "distilled"
    hint = f"the distilled set is kept in {folder}: the same command goes on from there"
    with monkeypatch.context() as broken:
        broken.setattr("distill.evaluate", fail)
        distil(["a student diverges", hint])
    kept = DistilledSet.load(folder)
    assert len(kept.images) == 20 and "scores" not in kept.provenance and kept.provenance["hardware"]["cpus"]
    assert not (tmp_path / "run" / "scores.json").exists()
    monkeypatch.setattr(Distiller, "step", fail)
    with monkeypatch.context() as broken:
        broken.setattr("distill.save_distillation", fail)
        distil([hint])
    distil()
    scored = DistilledSet.load(folder)
    assert torch.equal(scored.images, kept.images) and scored.provenance["scores"]
    assert "probe" in (folder / "README.md").read_text()
    # What was recorded since is kept, and told on the card.
    audit = {"pixels": {"auc": [0.75, 0.7, 0.8]}}
    scored.provenance["audit"] = audit
    scored.save(folder)
    distil()
    assert DistilledSet.load(folder).provenance["audit"] == audit
    assert "AUC 0.75" in (folder / "README.md").read_text(encoding="utf-8")
    # Nor does a later failure take the scores away.
    monkeypatch.setattr("distill.evaluate", fail)
    distil([hint])
    assert DistilledSet.load(folder).provenance["scores"] == scored.provenance["scores"]


def test_a_set_that_float16_does_not_hold_is_stored_in_float32_without_a_further_step(distil, tmp_path, monkeypatch):
    monkeypatch.setattr("ssdd_hub.sets.storage._LARGEST_HALF", 0.1)
    distil(["--storage.targets float32"], "--storage.targets", "float16")
    monkeypatch.setattr(Distiller, "step", fail)
    distil()
    made = DistilledSet.load(tmp_path / "run" / "distilled")
    assert made.targets.abs().max() > 0.1 and made.provenance["settings"]["storage"]["targets"] == "float32"
    assert "storage" not in read_metadata(made.folder) and made.provenance["scores"]
    # And as fewer bytes.
    distil(None, "--storage.targets", "int8")
    small = DistilledSet.load(made.folder)
    assert read_metadata(made.folder)["tensors"]["targets"]["dtype"] == "int8"
    assert (small.targets - made.targets).abs().max() <= made.targets.abs().max() / 127 * 0.501
    assert small.provenance["settings"]["storage"]["targets"] == "int8"
    first = small.provenance["scores"][0]
    assert first["bytes"] == sum(small.num_bytes().values()) < made.provenance["scores"][0]["bytes"]


def test_a_teacher_outlives_its_card_and_its_scores(launch, refuse, tmp_path, monkeypatch):
    arguments = ["train_teacher", "--teacher.backbone", "ssdd_convnet3", "--teacher.model-args", "{widths: [4, 8]}"]
    arguments += ["--teacher-training.max-steps", "2", "--teacher-training.workers", "0", "--data.max-images", "150"]
    arguments += ["--teacher-training.objective-args", "{hidden_dim: 8, output_dim: 8}", "--watch.probe", "20"]
    arguments += ["--output", tmp_path / "run"]
    with monkeypatch.context() as broken:
        broken.setattr("ssdd_hub.teachers.folder.render_teacher_card", fail)
        refuse([f"the trained network is kept in {tmp_path / 'run' / 'checkpoints' / 'teacher'}"], *arguments)
    monkeypatch.setattr("ssdd_hub.teachers.training.Pretraining._step", fail)
    with monkeypatch.context() as broken:
        broken.setattr("train_teacher.LinearProbe", fail)
        refuse([f"the teacher is kept in {tmp_path / 'run' / 'teacher'}"], *arguments)
    launch(*arguments)
    assert (tmp_path / "run" / "scores.json").exists()


def test_an_evaluation_without_its_report_keeps_its_scores(distil, launch, refuse, tmp_path, monkeypatch):
    distil()
    arguments = ["evaluate", "--set", tmp_path / "run" / "distilled", "--references", "none", "--protocol", "knn"]
    arguments += ["--teacher.backbone", "none", "--evaluate.seeds", "1", "--output", tmp_path / "scored"]
    with monkeypatch.context() as broken:
        broken.setattr("evaluate.save_evaluation", fail)
        refuse([f"every score so far is kept in {tmp_path / 'scored' / 'scores'}"], *arguments)
    monkeypatch.setattr("ssdd_hub.evaluation.evaluation.fit_student", fail)
    launch(*arguments)
    assert (tmp_path / "scored" / "report.html").exists()


def test_an_unexpected_error_keeps_its_traceback_and_says_the_same(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="^out of memory$"), keeping("the set", tmp_path):
        raise RuntimeError("out of memory")
    assert capsys.readouterr().err.startswith(f"the set is kept in {tmp_path}: the same command goes on")
    with pytest.raises(InputError, match="^no$"), keeping("the set", tmp_path / "absent"):
        raise InputError("no")
