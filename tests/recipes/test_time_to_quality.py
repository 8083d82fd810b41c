"""Time to quality: copies at given seconds, and the recipe as a user launches it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference.warm import Running

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.teachers.teacher import TeacherSettings, build_teacher
from studies import time_to_quality
from studies.time_to_quality import START, QualitySettings, Snapshot, curves, label, quality_table, train
from time_to_quality import TimeToQualityConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "time_to_quality.py"
# The default file is of CIFAR-100, of which everything that is left out here would hold.
SETTINGS = """
data: {max_images: 60}
teacher: {backbone: "local-dir:TEACHER", pretrained: true}
targets: {transform: standardise}
student: {model_args: {widths: [4, 8]}}
pool: {size: 2, max_age: 4}
distiller: {num_images: 8, steps: 6, batch_size: 16, lr_images: 1e-2, lr_targets: 1e-2, augment: true}
student_training: {epochs: 3, augment: flip}
quality: {goal: 0.99, seconds: [0.001, 600], seeds: 2, max_heldout: 20}
"""


def test_what_cannot_be_timed_is_refused():
    with pytest.raises(SettingsError) as caught:
        QualitySettings(implementations=["best"], seconds=[0], goal=1.0, seeds=0, max_heldout=0)
    names = ("goal", "seeds", "max_heldout", "implementations", "seconds")
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [f"quality.{name}" for name in names]
    with pytest.raises(SettingsError, match="time starts with a ready-made teacher"):
        TimeToQualityConfig()
    TimeToQualityConfig(teacher=TeacherSettings(pretrained=True))


class FakeDistiller:
    """Takes known times: 10 s to be built, 1 s a warm-up step, 2 s an outer step."""

    def __init__(self, clock, diverges_at=None):
        self.clock, self.done, self.diverges_at = clock, 0, diverges_at
        clock.now += 10

    @property
    def images(self):
        return torch.full((2, 1, 8, 8), float("nan") if self.done == self.diverges_at else self.done)

    @property
    def targets(self):
        return torch.full((2, 3), float(self.done))

    def warm_up(self):
        for _ in range(3):
            self.clock.now += 1
            yield torch.zeros(())

    def step(self):
        self.clock.now, self.done = self.clock.now + 2, self.done + 1


@pytest.fixture
def fake(monkeypatch):
    """Trains fakes: returns the steps and seconds of their copies."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time_to_quality.time, "perf_counter", lambda: clock.now)

    def fake(seconds, steps, **options):
        taken = train("ours", lambda: FakeDistiller(clock, **options), steps, seconds, torch.device("cpu"))
        assert all((copy.images == copy.step).all() and (copy.targets == copy.step).all() for copy in taken)
        return [(copy.step, copy.seconds) for copy in taken]

    return fake


def test_a_copy_is_taken_after_the_first_step_at_or_after_each_time(fake):
    # 13 s before the first step, which ends at 15.
    assert fake([20, 15, 16.5], 100) == [(1, 15), (2, 17), (4, 21)]
    # Two times that pass in one step have one copy; the last step has one even if its time is not over.
    assert fake([15.5, 16, 1000], 3) == [(2, 17), (3, 19)]
    assert fake([11.5], 3) == []
    with pytest.raises(InputError, match="ours diverges before step 2: lower --distiller.lr-images"):
        fake([17, 30], 4, diverges_at=2)


def test_the_goal_is_reached_at_the_first_copy_at_or_below_it():
    copies = [Snapshot(step, 2.0 * step, torch.zeros(1), torch.zeros(1)) for step in (1, 2, 3)]
    means = {START: 1.0, **dict(zip([label("ours", copy) for copy in copies], (0.8, 0.7, 0.6), strict=True))}
    scores = {name: {"mean": mean, "std": 0.1, "n": 2, "values": [mean, mean]} for name, mean in means.items()}
    record = curves({"ours": copies, "plain": []}, scores, 0.3)
    assert record["goal_error"] == pytest.approx(0.7) and record["seconds_to_goal"] == {"ours": 4.0, "plain": None}
    table = quality_table(record)
    assert "ours: goal 0.7000 reached at 4.0 s" in table and "plain: goal 0.7000 not reached" in table


def test_both_implementations_are_scored_and_agree(tmp_path):
    teacher = build_teacher("ssdd_convnet3", pretrained=False, input_size=16, widths=(4, 6), in_chans=1)
    teacher.save(tmp_path / "teacher")
    (tmp_path / "small.yaml").write_text(SETTINGS.replace("TEACHER", str(tmp_path / "teacher")))
    output = tmp_path / "quality"
    printed = Running(RECIPE, "--config", tmp_path / "small.yaml", "--output", output).finish()
    results = json.loads((output / "time_to_quality.json").read_text())
    ours, plain = (results["curves"][name] for name in ("ours", "plain"))
    assert [point["step"] for point in ours] == [point["step"] for point in plain] == [1, 6]
    for left, right in zip(ours, plain, strict=True):
        assert left["n"] == 2 and right["values"] == pytest.approx(left["values"], rel=1e-3)
        assert f"{left['mean']:.4f} ± {left['std']:.4f}" in printed
    assert results["start"]["mean"] != ours[-1]["mean"] and ours[0]["seconds"] < ours[1]["seconds"]
    assert results["seconds_to_goal"] == {"ours": None, "plain": None}
    assert (output / "time_to_quality.png").read_bytes().startswith(b"\x89PNG")
    assert results["command"].startswith("accelerate launch recipes/time_to_quality.py --config")
    assert results["settings"]["distiller"]["num_images"] == 8 and "torch" in results["versions"]
