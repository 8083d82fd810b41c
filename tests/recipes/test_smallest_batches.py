"""Batches on which a student cannot be trained are found before any work, however few images there are."""

import json
from pathlib import Path

import pytest
import torch

from ssdd_hub import DistilledSet, InputError, PixelSpace, build_student, pretrain_student
from ssdd_hub.models.pretraining import check_batches
from ssdd_hub.sets.release import plan_students
from ssdd_hub.teachers import Teacher
from ssdd_hub.teachers.training import new_backbone

SMOKE = Path(__file__).parents[2] / "recipes" / "configs" / "smoke.yaml"
# Its last norms see one pixel of each image.
DEEP = "resnet10t"
SHORT = ["--distiller.steps", "2", "--student-training.epochs", "2", "--teacher-training.max-steps", "2"]
SHORT += ["--evaluate.seeds", "1"]


def make_set(count):
    targets = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    space = PixelSpace((0.5,), (0.5,))
    provenance = {"use": {"epochs": 1, "batch_size": 49}, "student": {"name": DEEP, "model_args": {}}}
    return DistilledSet(torch.zeros(count, 1, 16, 16), targets, space, provenance=provenance)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--distiller.num-images", "1"], ["batches of 1 image(s)", "--distiller.num-images", "norm instance"]),
        (["--student-training.batch-size", "1"], ["batches of 1 image(s)", "--student-training.batch-size"]),
        (["--distiller.set-batch", "1"], ["batches of 1 image(s)", "--distiller.set-batch"]),
        (
            ["--method", "mkdt", "--distiller.num-images", "5", "--method.args.unroll_batch", "2"],
            ["batches of 1 image(s)", "--method.args.unroll_batch"],
        ),
        (
            ["--method", "dc", "--method.args.training_batch", "1"],
            ["batches of 1 image(s)", "--method.args.training_batch"],
        ),
    ],
)
def test_a_distillation_refuses_batches_of_one_before_it_starts(refuse, tmp_path, given, words):
    student = ["--student.name", DEEP, "--student.model-args", "{}"]
    refuse(words, "distill", "--config", SMOKE, "--output", tmp_path / "run", *student, *given)
    assert not (tmp_path / "run").exists()


ONE_BY_ONE = ["--selection.expert", DEEP, "--selection.expert-args", "{}", "--selection.expert-batch-size", "1"]


def test_experts_of_the_start_and_of_references_are_tried_before_any_work(refuse, tmp_path):
    words = ["batches of 1 image(s)", "--selection.expert-batch-size"]
    refuse(words, "distill", "--config", SMOKE, "--output", tmp_path / "run", "--init", "high_loss", *ONE_BY_ONE)
    make_set(20).save(tmp_path / "set")
    backbone, space = new_backbone("ssdd_convnet3", 1, 16, 0, widths=(4, 6)), PixelSpace((0.5,), (0.5,))
    Teacher(backbone, space, 16, "made").save(tmp_path / "teacher", {})
    asked = ["--set", tmp_path / "set", "--source.name", "digits", "--source.max-images", "40", "--protocol", "knn"]
    asked += ["--teacher.backbone", f"local-dir:{tmp_path / 'teacher'}", "--teacher.pretrained"]
    asked += ["--references", "high_loss", "--output", tmp_path / "run"]
    refuse(words, "evaluate", *asked, *ONE_BY_ONE)
    assert not (tmp_path / "run").exists()


def test_one_image_is_distilled_by_a_student_that_can(launch, tmp_path):
    given = ["--distiller.num-images", "1", "--student-training.batch-size", "1", *SHORT]
    launch("distill", "--config", SMOKE, "--output", tmp_path / "run", *given)
    assert len(DistilledSet.load(tmp_path / "run" / "distilled").images) == 1


@pytest.mark.parametrize(
    ("count", "given", "words"),
    [
        (1, [], ["--student-training.batch-size 49 on a set of 1"]),
        (20, ["--student-training.batch-size", "1"], ["--student-training.batch-size 1 on a set of 20"]),
        (20, ["--protocol", "finetune", "--finetune.batch-size", "1"], ["--finetune.batch-size"]),
    ],
)
def test_an_evaluation_refuses_batches_of_one_before_it_starts(refuse, tmp_path, count, given, words):
    make_set(count).save(tmp_path / "set")
    asked = ["--set", tmp_path / "set", "--datasets", "digits", "--references", "none", "--output", tmp_path / "run"]
    asked += ["--protocol", "knn"]
    refuse([DEEP, "batches of 1", *words], "evaluate", *asked, *given)
    assert not (tmp_path / "run").exists()


def test_students_to_publish_are_tried_and_a_student_that_cannot_be_trained_is_named(tmp_path):
    make_set(1).save(tmp_path / "set")
    with pytest.raises(InputError, match="batches of 1 image.* the recipe of the set makes"):
        plan_students(["own"], {}, tmp_path / "set", "me/set")
    shape = {"in_chans": 1, "image_size": 16}
    student = build_student(DEEP, num_targets=3, **shape)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(InputError, match=r"--student-training.batch-size 49 on 1 image\(s\)"):
        pretrain_student(student, make_set(1))
    state = torch.get_rng_state()
    check_batches(student, {"two": 2}, **shape)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_last_batch_of_an_epoch_is_as_large_as_the_others():
    student = build_student(DEEP, num_targets=3, in_chans=1, image_size=16)
    sizes = []
    student.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(inputs[0])))
    pretrain_student(student, make_set(50), epochs=3)
    # One image first, to compare widths.
    assert sizes == [1, 49, 49, 49]


@pytest.mark.parametrize("init", ["noise", "mixed"])
def test_a_set_of_more_images_than_the_source_is_compared_with_all_of_them(launch, tmp_path, init):
    given = ["--init", init, "--data.max-images", "70", "--distiller.num-images", "90", *SHORT]
    launch("distill", "--config", SMOKE, "--output", tmp_path / "run", *given)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    images = {record["set"]: record["images"] for record in scores["records"] if "images" in record}
    assert images == {"distilled": 90, "random": 70}
