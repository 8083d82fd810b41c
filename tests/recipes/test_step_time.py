"""The time of an outer step: what is counted, and the recipe as a user launches it."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from reference.warm import Running

from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.engine.timing import PARTS
from ssdd_hub.models.build import StudentSettings
from studies.step_time import Benchmark, BenchmarkSettings, benchmark_table, duration, render_benchmark

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmark.py"
M, B, D, WIDTHS, SIDE = 6, 10, 5, (4, 8), 16


def build(**settings):
    settings = {"image_size": SIDE, "num_targets": D, "num_source": 20, "teacher": "ssdd_convnet3", **settings}
    return Benchmark(
        BenchmarkSettings(**settings),
        DistillerSettings(num_images=M, batch_size=B, steps=100),
        StudentSettings(model_args={"widths": list(WIDTHS)}),
        0,
        Accelerator(cpu=True),
    )


def convolution_flops():
    """Of one image forward: of the first layer, and of all."""
    first = 2 * 9 * 3 * WIDTHS[0] * SIDE**2
    return first, first + 2 * 9 * WIDTHS[0] * WIDTHS[1] * (SIDE // 2) ** 2


def test_operations_are_those_of_the_formulas():
    """Nothing is computed that the method does not need: a guard against work that creeps in."""
    counted = build().count_flops()
    first, forward = convolution_flops()
    width = WIDTHS[-1] * (SIDE // 4) ** 2
    # Forward: real and distilled images in the outer step, distilled ones in the inner one.
    assert counted["aten.convolution"] == (B + 2 * M) * forward
    # Backward: to the images in the outer step; in the inner step to the weights, and to all maps but the images.
    assert counted["aten.convolution_backward"] == M * forward + M * (2 * forward - first)
    kernels = 2 * width * (M * M + B * M)
    # Of the kernels, to the distilled features of both sides of one and of one of the other.
    kernels_backward = 2 * width * (2 * M * M + B * M)
    predictions, head = 2 * B * M * D, 2 * M * width * D
    # The head's weights, and the features below it.
    assert counted["aten.mm"] + counted["aten.addmm"] == pytest.approx(
        kernels + kernels_backward + 3 * predictions + 3 * head, rel=0.02
    )


def test_both_implementations_are_timed_in_turns_and_the_numbers_agree():
    lines = []
    record = build(rounds=3, warm_up=1).run(lines.append)
    assert lines[1:] == [f"round {number} of 3" for number in (1, 2, 3)]
    for name in ("fast", "plain"):
        assert len(record[name]["seconds"]) == 3 and list(record[name]["parts"]) == list(PARTS)
        measured = sum(record[name]["parts"].values())
        assert 0 < measured <= sum(record[name]["seconds"]) / 3
    assert record["plain"]["parts"]["teacher"] > 0 == record["fast"]["parts"]["teacher"]
    assert 0 < record["ratios"]["without_teacher"] < record["ratios"]["whole"]
    total = sum(record["flops"].values())
    assert record["achieved"] == pytest.approx(total / record["fast"]["median"])
    assert 0 < record["share"] < 1 and record["memory_gib"] > 0


def test_ours_can_be_timed_alone(tmp_path):
    record = build(rounds=1, warm_up=1, plain=False).run()
    assert "plain" not in record and "ratios" not in record
    table = benchmark_table(record, 1000)
    assert "ssdd_hub" in table and "plain" not in table and "1000 steps: " in table
    render_benchmark(tmp_path / "benchmark.png", record)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_the_recipe_prints_draws_and_records_what_it_measured(tmp_path):
    small = ["--benchmark.image-size", "16", "--benchmark.num-targets", "5", "--benchmark.num-source", "20"]
    small += ["--benchmark.teacher", "ssdd_convnet3", "--benchmark.rounds", "2", "--benchmark.warm-up", "1"]
    small += ["--student.model-args", "{widths: [4, 8]}", "--distiller.num-images", "6", "--distiller.steps", "1000"]
    small += ["--distiller.batch-size", "8", "--distiller.compile", "false", "--output"]
    output = tmp_path / "run"
    status, _, errors = Running(RECIPE, *small, output, "--benchmark.rounds", "0").wait()
    assert status == 2 and "benchmark.rounds must be at least 1, got 0" in errors and not output.exists()
    printed = Running(RECIPE, *small, output).finish()
    results = json.loads((output / "benchmark.json").read_text())
    assert f"{results['fast']['median']:10.4f}{results['plain']['median']:10.4f}" in printed
    assert f"{results['ratios']['whole']:.2f} times as fast as plain" in printed and "1000 steps: " in printed
    assert (output / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert results["settings"]["distiller"]["num_images"] == 6 and results["settings"]["benchmark"]["rounds"] == 2
    assert results["machine"]["processes"] == 1 and "torch" in results["versions"]
    assert results["command"].startswith("accelerate launch recipes/benchmark.py --benchmark.image-size 16")
    assert str(tmp_path) not in json.dumps(results["command"])


DURATIONS = {
    0.4: "0 s",
    59.4: "59 s",
    60: "1 min",
    61: "1 min 1 s",
    3600: "1 h",
    10925: "3 h 2 min",
    241300: "2 d 19 h",
}


@pytest.mark.parametrize(("seconds", "words"), DURATIONS.items())
def test_times_are_written_as_people_read_them(seconds, words):
    assert duration(seconds) == words
