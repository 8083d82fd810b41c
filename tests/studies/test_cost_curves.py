import json
import signal
import time
from pathlib import Path

import pytest
import torch

from ssdd_hub.configs.studies import CostCurvesConfig
from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.engine.timing import PARTS
from ssdd_hub.errors import SettingsError
from ssdd_hub.models.build import StudentSettings
from ssdd_hub.runs.folder import LaunchSettings, RunLog
from ssdd_hub.studies.apart import ApartError, call_apart
from ssdd_hub.studies.benchmark import BenchmarkSettings
from ssdd_hub.studies.cost_curves import (
    CostCurvesSettings,
    forget_rows,
    map_rows,
    measure_curves,
    measure_point,
    plan_points,
)
from ssdd_hub.studies.cost_curves_report import curves_markdown, curves_table, fit_curves, fit_exponent, render_curves

M, B, D, WIDTHS, SIDE, N = 6, 10, 5, [4, 8], 16, 20
NOTHING = {"num_images": [], "batch_size": [], "widths": [], "image_size": [], "num_source": []}


def vary(**values):
    return CostCurvesSettings(**{**NOTHING, **values})


def plan(settings):
    return plan_points(
        settings,
        BenchmarkSettings(image_size=SIDE, num_targets=D, num_source=N),
        DistillerSettings(num_images=M, batch_size=B),
        StudentSettings(model_args={"widths": WIDTHS, "norm": "batch"}),
    )


def measure(settings, log):
    return measure_curves(plan(settings), settings, 0, LaunchSettings(), log, progress=False)


def record(axis="num_images", place=0, value=1, seconds=1.0, gib=2.0, **more):
    found = {"seconds": seconds, "memory_gib": gib, "start_gib": 1.0, "part_size": 128, "recompute": False}
    return {"stage": axis, "step": place, "value": value, "num_features": 32, **found, **more}


@pytest.fixture
def within(monkeypatch):
    """Measures in this process; points of two images fail. The points are noted."""
    measured = []

    def call(function, point, *arguments, timeout):
        measured.append((point.axis, point.value))
        if point.distiller.num_images == 2:
            raise ApartError("it is too small")
        return function(point, *arguments)

    monkeypatch.setattr("ssdd_hub.studies.cost_curves.call_apart", call)
    return measured


# Exponents


@pytest.mark.parametrize("power", [-1, 0, 0.5, 1, 2.75])
def test_the_exponent_of_a_power_is_found(power):
    sizes = [3, 10, 50, 400]
    assert fit_exponent(sizes, [7 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_the_exponent_is_that_of_least_squares():
    sizes, costs = torch.tensor([1.0, 2, 4, 8, 16]).double(), torch.tensor([1.0, 3, 3, 9, 20]).double()
    columns = torch.stack([sizes.log(), torch.ones(5).double()], 1)
    expected = torch.linalg.lstsq(columns, costs.log()[:, None]).solution[0].item()
    assert fit_exponent(sizes.tolist(), costs.tolist()) == pytest.approx(expected)


def test_there_is_no_exponent_without_two_sizes_that_cost_something():
    assert fit_exponent([], []) is fit_exponent([4], [2]) is fit_exponent([4, 4], [2, 3]) is None
    assert fit_exponent([4, 8], [0, 3]) is None


def test_a_constant_cost_hides_the_exponent_less_in_the_upper_half():
    sizes = [100, 300, 1000, 3000, 10_000]
    # In no order, as when a log is put together.
    points = [record(value=size, seconds=1 + size / 500, gib=1.1 + size**2 / 1e6) for size in sizes[::-1]]
    fitted = fit_curves(points)["num_images"]
    assert 0.3 < fitted["seconds"]["all"] < fitted["seconds"]["upper"] < 1
    upper = [size**2 / 1e6 + 0.1 for size in sizes[2:]]
    assert fitted["memory"]["upper"] == pytest.approx(fit_exponent(sizes[2:], upper))


def test_widths_are_fitted_over_the_features_that_they_give_and_failures_are_left_out():
    points = [record("widths", n, [n], seconds=2.0**n, num_features=4**n) for n in (1, 2, 3)]
    points.append({"stage": "widths", "step": 3, "value": [4], "failed": "it took longer than 1 s"})
    assert fit_curves(points)["widths"]["seconds"]["all"] == pytest.approx(0.5)


# Points


def test_one_size_is_varied_at_a_time():
    points = plan(vary(num_images=[3], batch_size=[4], widths=[[2, 3]], image_size=[8], num_source=[30, 40]))
    shapes = [
        (
            *(point.distiller.num_images, point.distiller.batch_size, point.student.model_args["widths"]),
            *(point.benchmark.image_size, point.benchmark.num_source),
        )
        for point in points
    ]
    assert shapes == [
        (3, B, WIDTHS, SIDE, N),
        (M, 4, WIDTHS, SIDE, N),
        (M, B, [2, 3], SIDE, N),
        (M, B, WIDTHS, 8, N),
        # The images of a large source are small.
        (M, B, WIDTHS, 8, 30),
        (M, B, WIDTHS, 8, 40),
    ]
    assert [(point.axis, point.place) for point in points][-2:] == [("num_source", 0), ("num_source", 1)]
    assert all(point.student.model_args["norm"] == "batch" for point in points)
    assert plan(vary(num_source=[9], source_image_size=None))[0].benchmark.image_size == SIDE


def test_a_point_is_timed_and_its_memory_known():
    (point,) = plan(vary(widths=[[4, 6]], steps=3))
    found = measure_point(point, 3, 1, 0, LaunchSettings())
    assert len(found["steps_seconds"]) == 3 and sorted(found["steps_seconds"])[1] == found["seconds"] > 0
    assert list(found["parts"]) == list(PARTS)
    assert 0 < sum(found["parts"].values()) <= sum(found["steps_seconds"]) / 3
    assert 0 < found["start_gib"] <= found["memory_gib"]
    assert found["num_features"] == 6 * (SIDE // 4) ** 2
    assert found["part_size"] >= 1 and found["recompute"] is False and found["threads"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_the_source_is_mapped_and_as_drawn():
    drawn = []

    def draw(rows):
        drawn.append(torch.rand(rows, 2, 3))
        return drawn[-1]

    rows, mapped = map_rows(draw, 600)
    assert [len(part) for part in drawn] == [256, 256, 88] and torch.equal(rows, torch.cat(drawn))
    forget_rows(mapped)
    assert torch.equal(rows, torch.cat(drawn))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_only_rows_that_are_read_take_memory_and_that_until_they_are_forgotten():
    def resident():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024

    def read(count):
        rows, mapped = map_rows(lambda number: torch.ones(number, 2**14, dtype=torch.uint8), count)
        before = resident()
        assert rows[[1, count // 2]].sum() == 2**15
        few = resident() - before
        assert rows.sum() == count * 2**14
        everything = resident() - before
        forget_rows(mapped)
        return few, everything, resident() - before

    read(4)  # loads what torch needs for it
    few, everything, forgotten = read(2**11)
    assert max(few, forgotten) < 2**21 and everything > 2**24


# The sweep


def test_a_sweep_gives_all_points_and_exponents_and_is_drawn(within, tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    records = measure(vary(num_images=[4, 8], image_size=[8, 16]), log)
    assert within == [("num_images", 4), ("num_images", 8), ("image_size", 8), ("image_size", 16)]
    assert log.read() == records
    fitted = fit_curves(records)
    assert list(fitted) == ["num_images", "image_size"]
    assert fitted["image_size"]["seconds"]["all"] is not None and fitted["image_size"]["seconds"]["upper"] is None
    render_curves(tmp_path / "curves.png", records)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_goes_on_where_it_stopped(within, tmp_path):
    settings, log = vary(num_images=[4, 8], batch_size=[5, 6]), RunLog(tmp_path / "log.jsonl")
    records = measure(settings, log)
    whole = log.path.read_text()
    lines = whole.splitlines(keepends=True)
    log.path.write_text("".join(lines[:2]) + lines[2][:30])
    within.clear()
    assert measure(settings, log)[:2] == records[:2]
    assert within == [("batch_size", 5), ("batch_size", 6)]
    within.clear()
    assert [entry["value"] for entry in measure(settings, log)] == [4, 8, 5, 6]
    assert within == [] and log.path.read_text().splitlines()[:2] == whole.splitlines()[:2]


def test_a_point_that_fails_is_recorded_and_the_sweep_goes_on(within, tmp_path):
    settings, log = vary(num_images=[2, 4]), RunLog(tmp_path / "log.jsonl")
    failed, measured = measure(settings, log)
    assert failed == {"stage": "num_images", "step": 0, "value": 2, "failed": "it is too small"}
    assert measured["seconds"] > 0
    # The same command twice finds the same.
    within.clear()
    assert measure(settings, log) == [failed, measured] and within == []


def test_a_picture_without_a_single_point_can_be_drawn(tmp_path):
    failed = [{"stage": axis, "step": 0, "value": 3, "failed": "no"} for axis in ("num_images", "num_source")]
    render_curves(tmp_path / "curves.png", failed)
    assert "not measured: no" in curves_table(failed)


# Tables

POINTS = [
    record("num_images", 0, 100, seconds=0.1, gib=1.25),
    record("num_images", 1, 200, seconds=0.2, gib=1.5, recompute=True),
    {"stage": "num_images", "step": 2, "value": 300, "failed": "it took | longer than 1 s"},
    record("widths", 0, [4, 8], num_features=2048),
]


def test_the_table_holds_points_exponents_and_reasons():
    assert curves_table(POINTS).splitlines() == [
        "varied              value                 ms a step  GiB   GiB above start  images at a time",
        "------------------  --------------------  ---------  ----  ---------------  ----------------",
        "distilled images M  100                   100.0      1.25  0.250            128",
        "distilled images M  200                   200.0      1.50  0.500            128, recomputed",
        "distilled images M  300                   not measured: it took | longer than 1 s",
        "distilled images M  exponent, all points  1.00             1.00",
        "distilled images M  exponent, upper half  -                -",
        "feature width F     2048 (4-8)            1000.0     2.00  1.000            128",
        "feature width F     exponent, all points  -                -",
        "feature width F     exponent, upper half  -                -",
    ]


def test_the_markdown_table_has_the_same_cells():
    lines = curves_markdown(POINTS).splitlines()
    assert lines[0] == "| varied | value | ms a step | GiB | GiB above start | images at a time |"
    assert lines[3] == "| distilled images M | 200 | 200.0 | 1.50 | 0.500 | 128, recomputed |"
    assert lines[4] == "| distilled images M | 300 | not measured: it took \\| longer than 1 s |  |  |  |"
    assert len(lines) == len(curves_table(POINTS).splitlines())


# Processes


def test_a_call_that_takes_too_long_is_ended():
    started = time.perf_counter()
    with pytest.raises(ApartError, match=r"it took longer than 0\.01 s"):
        call_apart(time.sleep, 100, timeout=0.01)
    assert time.perf_counter() - started < 30


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no such signal")
def test_a_process_that_the_system_ends_is_told_apart():
    with pytest.raises(ApartError, match=r"the system ended its process \(SIGKILL\), as when memory is full"):
        call_apart(signal.raise_signal, signal.SIGKILL, timeout=300)


def test_a_point_apart_tells_why_it_failed():
    (impossible,) = plan(vary(image_size=[2]))
    with pytest.raises(ApartError, match="needs at least 4 pixels a side, got 2"):
        call_apart(measure_point, impossible, 1, 1, 0, LaunchSettings(), timeout=300)


# Settings


def test_every_wrong_setting_is_named():
    with pytest.raises(SettingsError) as caught:
        CostCurvesSettings(
            num_images=[0, 3], batch_size=[4, 4], widths=[[4, 0], []], image_size=[-1], steps=0, warm_up=0, timeout=0
        )
    assert caught.value.problems == [
        "curves.num_images must be at least 1, got [0, 3]",
        "curves.widths must be at least 1, got [[4, 0], []]",
        "curves.image_size must be at least 1, got [-1]",
        "curves.widths must each name the channels of a block, got [[4, 0], []]",
        "curves.batch_size must differ from each other, got [4, 4]",
        "curves.steps must be at least 1, got 0",
        "curves.warm_up must be at least 1, got 0",
        "curves.timeout must be above 0, got 0",
    ]
    with pytest.raises(SettingsError, match="curves.source_image_size must be at least 1, got 0"):
        CostCurvesSettings(source_image_size=0)
    with pytest.raises(SettingsError, match="curves must vary something"):
        vary()


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(SettingsError, match="benchmark.rounds is not used here"):
        CostCurvesConfig(benchmark=BenchmarkSettings(rounds=3))
    with pytest.raises(SettingsError, match="networks are timed in float32"):
        CostCurvesConfig(distiller=DistillerSettings(precision="float64"))
