"""The statistics of sampled gradients, against normal numbers whose bias is known."""

import math

import pytest
import torch

from ssdd_hub.seeds import generator
from studies.gradient_bias import bias_table, error_curve, measure_bias, render_bias


def random(*shape, purpose="numbers"):
    return torch.randn(*shape, generator=generator(0, purpose), dtype=torch.float64)


def test_without_a_bias_z_is_a_standard_normal_number():
    exact = torch.ones(10, dtype=torch.float64)
    draws = exact + random(500, 64, 10, purpose="unbiased") * torch.arange(1, 11)
    scores = torch.tensor([measure_bias(exact, part)["z"] for part in draws])
    assert abs(scores.mean()) < 0.15 and scores.std() == pytest.approx(1, abs=0.12)
    covered = [measure_bias(exact, part)["interval"] for part in draws]
    assert sum(low <= 0 <= high for low, high in covered) / 500 == pytest.approx(0.95, abs=0.03)


def test_a_known_bias_is_found():
    exact = torch.full((4,), 2.0, dtype=torch.float64)  # length 4
    offset = torch.tensor([0.0, 0.0, 1.2, 1.6], dtype=torch.float64)  # length 2
    record = measure_bias(exact, exact + offset + 3 * random(20000, 4, purpose="biased"))
    assert (record["draws"], record["exact_norm"]) == (20000, 4)
    assert record["bias"] == pytest.approx(0.5, abs=0.02) and record["std"] == pytest.approx(1.5, rel=0.02)
    assert record["projection"] == pytest.approx(0.5, abs=0.03)
    assert record["standard_error"] == pytest.approx(0.75 / 100, rel=0.05)
    low, high = record["interval"]
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * record["standard_error"])
    assert record["z"] == pytest.approx(record["projection"] / record["standard_error"])
    # (2, 2, 3.2, 3.6) and (2, 2, 2, 2).
    assert record["cosine"] == pytest.approx(21.6 / (4 * math.sqrt(31.2)), abs=0.01)


def test_draws_that_are_all_the_same_have_no_z():
    exact = random(5)
    for sampled in (exact.expand(8, 5), (1 + 1e-15) * exact.expand(8, 5)):
        record = measure_bias(exact, sampled)
        assert record["z"] is None and record["bias"] < 1e-14 and record["error"] < 1e-14
    assert measure_bias(exact, 2 * exact.expand(8, 5))["projection"] == pytest.approx(1)


def test_the_curve_is_that_of_a_plain_loop():
    exact, sampled = random(2, 3), random(11, 2, 3, purpose="sampled")
    curve = error_curve(exact, sampled)
    assert [number for number, _ in curve] == [1, 2, 4, 8]
    for number, error in curve:
        blocks = [sampled[start : start + number].mean(0) for start in range(0, 11 - number + 1, number)]
        squares = [float((block - exact).square().sum() / exact.square().sum()) for block in blocks]
        assert error == pytest.approx(math.sqrt(sum(squares) / len(squares)))


def test_the_table_and_the_picture_show_what_is_random_and_what_is_not(tmp_path):
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    records = [
        {"loss": "drawn", **measure_bias(exact, exact + random(64, 2, purpose="table") + 1)},
        {"loss": "fixed", **measure_bias(exact, exact.expand(64, 2))},
    ]
    header, drawn, fixed = bias_table(records).splitlines()
    assert header.split()[:3] == ["inner", "loss", "draws"]
    assert f"[{records[0]['interval'][0]:.3f}, {records[0]['interval'][1]:.3f}]" in drawn
    assert f"{records[0]['z']:.1f}" in drawn
    assert fixed.split() == ["fixed", "64", "0.000", "0.000", "none", "0.000", "1.000"]
    for chosen in (records, records[:1]):
        render_bias(tmp_path / "bias.png", chosen)
        assert (tmp_path / "bias.png").read_bytes().startswith(b"\x89PNG")
