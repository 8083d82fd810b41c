import pytest
from accelerate import Accelerator

from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.engine.timing import PARTS
from ssdd_hub.errors import SettingsError
from ssdd_hub.models.build import StudentSettings
from studies.step_time import Benchmark, BenchmarkSettings, benchmark_table, duration, render_benchmark

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


def test_every_wrong_setting_is_named():
    with pytest.raises(SettingsError, match=r"benchmark.rounds must be at least 1, got 0"):
        BenchmarkSettings(rounds=0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3 * 3600 + 125, "3 h 2 min"),
        (2 * 86400 + 19 * 3600 + 100, "2 d 19 h"),
    ],
)
def test_times_are_said_as_people_read_them(seconds, said):
    assert duration(seconds) == said
