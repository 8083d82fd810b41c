import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from test_distiller import D, build_distiller

from ssdd_hub.distill import sizes
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.distill.sizes import MemoryPlan, check_sizes, plan_memory
from ssdd_hub.errors import InputError
from ssdd_hub.models.build import build_student
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.pretraining import StudentTrainingSettings

RECIPES = Path(__file__).parents[2] / "recipes"
SHAPE = {"in_chans": 3, "image_size": 32}


def test_parts_are_those_of_the_settings_and_the_network():
    torch.manual_seed(0)
    distiller, other = build_distiller(num_images=6), build_distiller(num_images=12, max_age=2)
    state = torch.get_rng_state()
    small, large = plan_memory(distiller), plan_memory(other)
    assert torch.equal(state, torch.get_rng_state()), "it draws"
    assert all(buffer.eq(0).all() for name, buffer in distiller.pool.student(0).named_buffers() if "mean" in name)
    image, target = 8 * 64, 8 * distiller.targets.shape[1]
    # The gradient and two moments of all, and twice the images of a step.
    assert small.parts["set"] == 5 * 6 * (image + target)
    # Each image keeps itself, the input of both convolutions, of norms and of poolings, and the ReLUs' results.
    assert small.parts["inner step"] > small.parts["outer step"] > 6 * image
    for name in ("set", "inner step", "outer step"):
        assert large.parts[name] == pytest.approx(2 * small.parts[name])
    weights = sum(8 * part.numel() for part in distiller.pool.student(0).parameters())
    assert small.parts["students"] == weights * (2 * 2 + 2) == large.parts["students"]
    assert small.needed == pytest.approx(sum(small.parts.values()), rel=1e-12)
    gpu = MemoryPlan(small.parts, small.total, "cuda")
    assert gpu.needed == pytest.approx(small.needed - small.parts["outer step"], rel=1e-12)


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    alone = plan_memory(build_distiller(num_images=6))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert plan_memory(build_distiller(num_images=6)).total == alone.total // 4


def test_checkpointing_and_batches_of_the_set_lower_what_is_expected():
    usual = plan_memory(build_distiller(num_images=12))
    halves = plan_memory(build_distiller(num_images=12, set_batch=6))
    again = plan_memory(build_distiller(num_images=12, checkpointing=True))
    assert halves.parts["inner step"] == usual.parts["inner step"] / 2
    # What the first pass frees on the CPU is seldom what the second one takes.
    assert again.parts["inner step"] == usual.parts["inner step"]
    assert again.parts["outer step"] == usual.parts["outer step"]


def test_students_of_the_scores_count_where_their_batches_are_the_most():
    distiller = build_distiller(num_images=12)
    usual, few, many = (
        plan_memory(distiller, each and StudentTrainingSettings(batch_size=each)) for each in (None, 1, 256)
    )
    assert "scores" not in usual.parts
    few, many = (MemoryPlan(plan.parts, plan.total, "cuda") for plan in (few, many))
    halves = [usual.parts[name] for name in ("outer step", "inner step")]
    assert sum(few.parts.values()) - few.needed == pytest.approx(sum(halves), rel=1e-3)
    # Real images that one of them sees at a time, without activations to keep; and no more than there are images.
    shown = 512 * usual.parts["outer step"] / 1.3 / 12 / 2
    assert many.parts["scores"] - shown == pytest.approx(12 * (few.parts["scores"] - shown))
    assert sum(many.parts.values()) - many.needed == pytest.approx(sum(halves), rel=1e-3)
    # Students side by side, each with its own activations.
    three = plan_memory(distiller, StudentTrainingSettings(batch_size=256), students=3)
    assert three.parts["scores"] == pytest.approx(3 * many.parts["scores"])
    # A step of theirs is an inner step.
    assert many.parts["scores"] - shown == pytest.approx(usual.parts["inner step"])


def test_filters_that_winograd_transforms_count_in_float32_on_the_cpu():
    pool = StudentPool(partial(ConvNet, (128, 128), "batch", 1, 8, D), PoolSettings(size=1), 0)
    settings = {"precision": "float32", "steps": 1, "batch_size": 1, "lr_images": 1e-2, "lr_targets": 1e-2}

    def plan(**more):
        chosen = DistillerSettings(num_images=2, **settings, **more)
        pairs = torch.zeros(2, 1, 8, 8), torch.zeros(2, D)
        return plan_memory(Distiller(*pairs, pool, None, chosen, Accelerator(cpu=True))).parts

    # 36 numbers of a filter of 9, of the second layer alone: the first has one channel.
    filters = 36 * 128 * 128 * 4
    usual, plain, again = plan(), plan(winograd=False), plan(checkpointing=True)
    assert usual["outer step"] - plain["outer step"] == pytest.approx(2 * filters)
    assert usual["inner step"] - plain["inner step"] == pytest.approx(3 * filters)
    assert again["inner step"] == pytest.approx(plain["inner step"])


def test_a_budget_bounds_the_activations_of_the_outer_step():
    usual = plan_memory(build_distiller(num_images=12, memory_budget=1.0))
    one = plan_memory(build_distiller(num_images=12, memory_budget=1e-9))
    assert one.parts["outer step"] == pytest.approx(usual.parts["outer step"] / 12)


def test_what_does_not_fit_is_told_with_what_to_lower():
    parts = {"process": 1.0, "set": 2.0, "students": 1.0, "outer step": 3.0, "inner step": 60.0, "kernel": 1.0}
    told = str(
        MemoryPlan({name: size * 2**30 for name, size in parts.items()} | {"real images": 0}, 70 * 2**30, "cpu")
    )
    first, second = told.splitlines()
    assert first.startswith("memory: about 68.00 GiB of 70 (cpu): process 1.00, set 2.00, students 1.00, outer step")
    assert second == "it may not fit: lower --distiller.set-batch"
    on_gpu = MemoryPlan({"process": 1.0, "inner step": 60.0}, 60, "cuda")
    assert str(on_gpu).endswith("lower --distiller.set-batch (or pass --distiller.checkpointing true)")
    assert len(str(MemoryPlan(dict.fromkeys(parts, 1.0), 10 * 2**30, "cuda")).splitlines()) == 1


def test_what_fits_one_by_one_but_not_together_is_refused(monkeypatch):
    student = build_student("ssdd_convnet3", num_targets=1, **SHAPE, widths=(4, 5, 6))
    settings, image = DistillerSettings(num_images=100, batch_size=300), 4 * 3 * 32 * 32
    weights = sum(4 * part.numel() for part in student.parameters())
    needed = 300 * image + 100 * 4 * image + 20 * 2 * weights
    parts = (settings, PoolSettings(size=20), student, Accelerator(cpu=True))
    monkeypatch.setattr("ssdd_hub.runs.machine.total_memory", lambda device: needed)
    check_sizes(*parts, **SHAPE)
    monkeypatch.setattr("ssdd_hub.runs.machine.total_memory", lambda device: needed - 1)
    with pytest.raises(
        InputError, match=r"--distiller\.num-images 100, --distiller\.batch-size 300 and --pool\.size 20 "
    ):
        check_sizes(*parts, **SHAPE)


def test_methods_without_a_pool_are_not_planned():
    distiller = build_distiller()
    distiller.method = object()
    assert sizes.plan_memory(distiller) is None


_MEASURE = """
import re, runpy, sys
from ssdd_hub.distill import loop
from ssdd_hub.runs.machine import peak_memory
step = loop.Distiller.step
def measured(self):
    found = step(self)
    print(f"peak {peak_memory() / 2**30:.3f} {found['loss'].item():.6f}")
    return found
loop.Distiller.step = measured
sys.argv[0] = "distill.py"
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("ssdd_convnet4", ["--student.model-args", "{widths: [16, 32, 64, 128]}"]),
        ("resnet18", ["--pool.learning-rate", "0.02"]),
    ],
)
def test_64_px_students_learn_within_the_memory_that_was_told(name, more, tmp_path):
    words = [sys.executable, "-c", _MEASURE, RECIPES / "distill.py", "--config", RECIPES / "configs" / "smoke.yaml"]
    words += ["--output", tmp_path / "run", "--data.image-size", "64", "--student.name", name, *more]
    words += ["--data.max-images", "60", "--teacher-training.epochs", "1", "--teacher-training.batch-size", "30"]
    words += ["--distiller.num-images", "30", "--distiller.batch-size", "16", "--distiller.steps", "12"]
    words += ["--pool.max-age", "3", "--student-training.epochs", "1", "--evaluate.seeds", "1", "--run.threads", "1"]
    words += ["--evaluate.max-heldout", "20", "--distiller.lr-images", "0.05", "--distiller.lr-targets", "0.05"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
    told = float(re.search(r"memory: about ([\d.]+) GiB", done.stdout)[1])
    peaks, losses = zip(*((float(a), float(b)) for a, b in re.findall(r"peak (\S+) (\S+)", done.stdout)), strict=True)
    assert len(losses) == 12 and sum(losses[-4:]) < sum(losses[:4])
    assert told / 3 < peaks[-1] < 1.15 * told, (told, peaks)
