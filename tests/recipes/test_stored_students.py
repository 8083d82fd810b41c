"""Distillation with students that start from stored weights, and read other features than their classifier."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from timm.models import create_model

from ssdd_hub import DistilledSet
from ssdd_hub.record import read_metadata, section
from ssdd_hub.sets.card import render_dataset_card
from ssdd_hub.teachers.folder import write_folder

RECIPES = Path(__file__).parents[2] / "recipes"


def store(folder, seed):
    torch.manual_seed(seed)
    network = create_model("ssdd_convnet3", widths=(4, 8), img_size=16, in_chans=1, num_classes=3)
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder, network, {"mean": (0.25,), "std": (0.5,), "input_size": (1, 16, 16)}, "cc-by-nc-4.0")


@pytest.mark.slow
def test_students_of_stored_weights_are_recorded_and_pinned(launch, refuse, tmp_path, capsys):
    store(tmp_path / "net", 1)
    words = [
        "--config",
        RECIPES / "configs" / "smoke.yaml",
        "--output",
        tmp_path / "run",
        "--student.pretrained",
        "true",
    ]
    words += ["--student.name", f"local-dir:{tmp_path / 'net'}", "--student.model-args", "{}"]
    words += ["--student.features", "mean", "--distiller.checkpointing", "true", "--evaluate.seeds", "1"]
    words += ["--data.max-images", "60", "--teacher-training.batch-size", "30", "--teacher-training.epochs", "1"]
    launch("distill", *words)
    assert "memory: about " in capsys.readouterr().out
    distilled = DistilledSet.load(tmp_path / "run" / "distilled")
    student = distilled.provenance["student"]
    assert (
        student.pop("weights_sha256")
        == json.loads((tmp_path / "run" / "inputs.json").read_text())["inputs"]["student"]["weights_sha256"]
    )
    facts = {"name": "ssdd_convnet3", "model_args": {}, "features": "mean", "weights": "local-dir:net"}
    assert student == {**facts, "license": "cc-by-nc-4.0"}
    assert section(distilled.provenance, "settings")["student"]["name"] == "ssdd_convnet3"
    assert distilled.student_pixel_space.to_dict() == {"mean": [0.25], "std": [0.5]}
    assert distilled.provenance["license"] == "cc-by-nc-4.0", "that of the weights, above that of the digits"
    assert 'features="mean"' in render_dataset_card(read_metadata(tmp_path / "run" / "distilled"), "ann/set")
    refuse(
        ["started from the weights local-dir:net", "name these in place of own"],
        "evaluate",
        "--set",
        tmp_path / "run" / "distilled",
        "--references",
        "none",
        "--output",
        tmp_path / "scores",
    )
    store(tmp_path / "net", 2)
    refuse(["weights of the students: weights_sha256"], "distill", *words, "--evaluate.seeds", "2")
