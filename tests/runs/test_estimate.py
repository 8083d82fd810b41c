"""The arithmetic of an estimate, what it leaves alone, and the steps that minutes choose."""

import json
import logging
import random
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.warm import start_two

from ssdd_hub.errors import InputError, require
from ssdd_hub.runs import estimate as module
from ssdd_hub.runs.estimate import Stage, as_sized, estimate, fill, minutes_checks, time_steps, with_settings
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.progress import StepBar
from ssdd_hub.runs.run_settings import EstimatedSettings
from ssdd_hub.teachers.training import TeacherTrainingSettings

WORKER = Path(__file__).parents[1] / "reference" / "estimate_worker.py"


@dataclass(frozen=True)
class Config:
    teacher_training: TeacherTrainingSettings = field(default_factory=TeacherTrainingSettings)
    run: EstimatedSettings = field(default_factory=EstimatedSettings)
    minutes: float | None = None
    output: str = "run"


def teacher(steps, seconds):
    return Stage("teacher", steps, seconds, lambda n: {"teacher_training.epochs": -(-n // 10), "a": n})


def distillation(steps, seconds):
    return Stage("distillation", steps, seconds, lambda n: {"distiller.steps": n})


def test_minutes_are_shared_in_the_ratio_of_the_settings_after_what_is_fixed():
    stages = [teacher(100, 20.0), Stage("evaluation", 15, 30.0), distillation(1000, 60.0)]
    filled, chosen = fill(stages, 2.0, spent=10.0)
    # 120 s less 40 s leave 80, which is what the settings take.
    assert chosen == {"teacher_training.epochs": 10, "a": 100, "distiller.steps": 1000}
    assert filled[1] is stages[1]
    half, chosen = fill(stages, 80 / 60, spent=10.0)
    assert chosen == {"teacher_training.epochs": 5, "a": 50, "distiller.steps": 500}
    assert sum(stage.seconds for stage in half) == pytest.approx(70.0)


def test_a_ready_teacher_leaves_all_to_the_distillation_which_may_become_longer_within_bounds():
    ready = [Stage("teacher", 0, 0.0), distillation(1000, 60.0)]
    assert fill(ready, 3.0, spent=0.0)[1] == {"distiller.steps": 3000}
    assert fill(ready, 60.0, spent=0.0)[1] == {"distiller.steps": 1000 * module.MOST_TIMES}


def test_minutes_that_do_not_suffice_are_refused_with_the_numbers(caplog):
    stages = [distillation(1000, 600.0), Stage("evaluation", 15, 50.0), Stage("start", 0, 0.0)]
    said = r"--minutes 1 are 60 s.*start and images 20 s, evaluation 50 s: give 2.2 minutes or more, or lower "
    said += "--data.max-images, --evaluate.seeds or --student-training.epochs"
    with pytest.raises(InputError, match=said):
        fill(stages, 1.0, spent=20.0)
    with pytest.raises(InputError, match="none is left or wanted: leave out --minutes"):
        fill([Stage("teacher", 0, 0.0), Stage("evaluation", 15, 50.0)], 1.0, spent=0.0)
    with caplog.at_level(logging.WARNING):
        assert fill(stages, 2.0, spent=20.0)[1] == {"distiller.steps": 83}
    assert "leave 8 % of the steps" in caplog.text


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), 1e9])
def test_minutes_out_of_range_are_refused(minutes):
    with pytest.raises(InputError, match="minutes must be above 0 and at most 527040, a year; got"):
        require(*minutes_checks(minutes, True))


def test_minutes_without_an_estimate_are_refused():
    with pytest.raises(InputError, match="leave out --run.estimate false"):
        require(*minutes_checks(5, False))
    require(*minutes_checks(None, False), *minutes_checks(5, True))


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7, 100, 10_000])
def test_timing_takes_a_small_part_of_the_steps(steps, accelerator):
    done = []
    seconds = time_steps(lambda: done.append(time.sleep(0.002)), steps, accelerator)
    assert len(done) <= min(steps, max(4, 3 + 0.02 * steps, 1)) and len(done) <= 60
    assert seconds >= 0.002 if steps else seconds == 0.0


def test_first_steps_do_not_count(accelerator):
    waits = iter([0.1, 0.1, 0.1, *[0.001] * 1000])
    assert time_steps(lambda: time.sleep(next(waits)), 1000, accelerator) < 0.05


def run_of(folder, config):
    return RunFolder(folder, {"minutes": config.minutes})


def test_an_estimate_changes_no_generator_and_tells_time_and_memory(tmp_path, accelerator, capsys):
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def stages():
        torch.rand(3), random.random(), np.random.rand()
        yield Stage("teacher", 20, 30.0)
        yield Stage("report", 0, 2.0)

    config, run = Config(), run_of(tmp_path, Config())
    found, made = estimate(config, run, accelerator, time.perf_counter() - 8, stages)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert found is config and 40 <= made.seconds < 100
    printed = capsys.readouterr().out
    assert "teacher                20      30.0" in printed and "total" in printed and "memory: at least" in printed
    run.start()
    made.done("teacher")
    line = made.finish("report")
    assert re.fullmatch(r"seconds estimated/taken: teacher 30.0/\d+.\d, report 2.0/\d+.\d", line)
    stored = json.loads((tmp_path / "estimate.json").read_text())
    assert stored["minutes"] is None and stored["taken"] >= 8 and stored["stages"][0]["seconds"] == 30.0
    assert stored["stages"][1]["taken"] is not None and stored["memory_gib"]["cpu"] > 0.05


def test_what_does_not_fit_the_memory_is_said(tmp_path, accelerator, capsys, monkeypatch):
    monkeypatch.setattr(module, "total_memory", lambda device: 2**20)
    estimate(Config(), run_of(tmp_path, Config()), accelerator, 0.0, lambda: [Stage("teacher", 20, 30.0)])
    assert "it may not fit: lower --teacher-training.batch-size" in capsys.readouterr().out


def sized(folder, accelerator, minutes, steps=100):
    """Begins a run of some minutes as recipes do; returns its settings."""
    config = as_sized(Config(minutes=minutes, output=str(folder)))
    run = RunFolder(folder, {"minutes": config.minutes, "max_steps": config.teacher_training.max_steps})
    stages = [Stage("teacher", steps, 60.0, lambda n: {"teacher_training.max_steps": n})]
    config, _ = estimate(config, run, accelerator, time.perf_counter(), lambda: stages)
    run.config = {"minutes": config.minutes, "max_steps": config.teacher_training.max_steps}
    run.start()
    run.close()
    return config


def test_a_run_keeps_the_steps_that_its_minutes_chose(tmp_path, accelerator):
    first = sized(tmp_path, accelerator, 2.0)
    assert first.minutes is None and first.teacher_training.max_steps <= 200
    # Another estimate would choose other steps.
    assert sized(tmp_path, accelerator, 2.0, steps=500) == first
    # So does the record of a start whose estimate is of what was left.
    assert sized(tmp_path, accelerator, 2.0, steps=500) == first
    with pytest.raises(InputError, match="was sized for 2 minutes, not 3: give --minutes 2"):
        sized(tmp_path, accelerator, 3.0)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"minutes": 2}',
        '{"minutes": 2, "settings": {"seed": 3}}',
        '{"minutes": 2, "settings": {"distiller.steps": "x"}}',
        '{"minutes": true, "settings": []}',
    ],
)
def test_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "estimate.json").write_text(content)
    with pytest.raises(InputError, match="estimate.json cannot be read.*leave out --minutes"):
        as_sized(Config(minutes=2, output=str(tmp_path)))


def test_a_start_that_was_killed_before_its_settings_were_written_is_no_run(tmp_path, accelerator):
    (tmp_path / "estimate.json").write_text('{"minutes": 7, "settings": {}}')
    assert sized(tmp_path, accelerator, 2.0).teacher_training.max_steps <= 200


def test_settings_are_replaced_by_dotted_name():
    changed = with_settings(Config(), {"teacher_training.max_steps": 5, "minutes": 3.0})
    assert changed == replace(Config(minutes=3.0), teacher_training=TeacherTrainingSettings(max_steps=5))


def test_two_processes_decide_alike(tmp_path):
    for running in start_two(WORKER, tmp_path):
        running.finish()
    first, second = (json.loads((tmp_path / f"process-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first["seconds"] > 40 and first["steps"] > 800


def test_the_remaining_time_of_a_bar_is_that_of_the_mean_step_without_the_slow_first_ones(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    bar = StepBar(range(10, 100), "teacher", 100, initial=10)
    bar._time = lambda: now[0]
    told = []
    for number, _ in enumerate(bar):
        now[0] += 50.0 if number < 3 else 1.0 if number % 10 else 11.0
        if number >= 5:
            told.append((bar.format_dict["elapsed"] + 0.0) / (number + 1 - 3))
    assert max(told) < 5 and told[-1] == pytest.approx(2.0, abs=0.2)
    assert [*StepBar(range(3), "teacher", 3, disable=True)] == [0, 1, 2]
