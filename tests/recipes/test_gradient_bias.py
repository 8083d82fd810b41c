"""Meta-gradients and their bias, against finite differences, full enumeration and cases whose bias is known."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from reference.warm import Running
from torch.nn import functional

from ssdd_hub.data.augment import PADDING, crop_flip, draw_views
from ssdd_hub.data.bank import DataSettings, load_images
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.seeds import generator
from studies.gradient_bias import (
    Bilevel,
    GradientBiasSettings,
    all_views,
    bias_table,
    build_problems,
    error_curve,
    measure_bias,
    regression_error,
    render_bias,
    sample_gradients,
)
from studies.inner_losses import LOSSES, InnerLoss, regression

RECIPE = Path(__file__).parents[2] / "recipes" / "gradient_bias.py"
NAMES = [*LOSSES, "mse_augmented", "mse"]
# As they are, flipped, and moved.
VIEWS = torch.tensor([[PADDING, PADDING, 0], [PADDING, PADDING, 1], [PADDING - 1, PADDING + 1, 0]])


def random(*shape, purpose="numbers"):
    return torch.randn(*shape, generator=generator(0, purpose), dtype=torch.float64)


def inner_loss(name, targets):
    return LOSSES[name] if name in LOSSES else regression(targets, name == "mse_augmented")


@pytest.fixture(scope="module")
def small():
    source, _ = load_images(DataSettings(image_size=8), progress=False)
    settings = GradientBiasSettings(num_images=4, real_images=24, dim=3, widths=[3, 4], inner_steps=2)
    return build_problems(source, settings, 0)


def linear_problem(loss, outer, steps=1, count=3, dim=2, views=VIEWS, rate=0.3):
    """A linear network on images of 3x3 pixels."""
    pixels = random(count, 1, 3, 3, purpose="pixels").sigmoid()

    def embed(weights, images):
        return images.flatten(1) @ weights["map"]

    return pixels, Bilevel(embed, {"map": random(9, dim, purpose="map")}, outer, loss, views, steps, rate)


COEFFICIENTS = random(9, 2, purpose="outer")


def linear_outer(weights):
    return (weights["map"] * COEFFICIENTS).sum()


def cubic_outer(weights):
    return (weights["map"] ** 3).sum()


def all_draws(problem, count):
    """Every draw `(num_views, M)`, each as likely as any other."""
    loss, width = problem.loss, count if problem.loss.expect else 1
    draws = itertools.product(range(len(problem.views)), repeat=loss.num_views * width)
    return torch.tensor(list(draws)).view(-1, loss.num_views, width).expand(-1, -1, count)


def all_sequences(problem, count):
    draws = all_draws(problem, count)
    steps = itertools.product(range(len(draws)), repeat=problem.inner_steps)
    return torch.stack([draws[list(numbers)] for numbers in steps])


# The gradient


@pytest.mark.parametrize("name", NAMES)
def test_meta_gradients_are_those_of_central_differences(small, name):
    pixels, problem = small[0], small[1][name]
    draws = problem.loss.draw((1, 2), len(problem.views), len(pixels), generator(1, "draws"))
    cases = [(problem.exact_gradient(pixels), None), (problem.sampled_gradients(pixels, draws)[0], draws[0])]
    for gradient, drawn in cases:
        for number in range(3):
            direction = random(*pixels.shape, purpose=f"direction {number}")
            ahead, behind = (problem.outer_loss(pixels + h * direction, drawn) for h in (1e-6, -1e-6))
            assert ((ahead - behind) / 2e-6).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_a_gradient_among_others_is_that_of_its_own_draws(small):
    pixels, problem = small[0], small[1]["spectral"]
    draws = problem.loss.draw((3, 2), len(problem.views), len(pixels), generator(2, "draws"))
    together = problem.sampled_gradients(pixels, draws)
    for number in range(3):
        alone = problem.sampled_gradients(pixels, draws[number : number + 1])[0]
        torch.testing.assert_close(together[number], alone, rtol=1e-9, atol=1e-14)
    assert (together[0] - together[1]).norm() > 0.1 * together[0].norm()


def test_the_inner_training_is_a_plain_descent():
    """With one linear map and a squared error the slope is known by hand."""
    targets = random(3, 2, purpose="targets")
    pixels, problem = linear_problem(regression(targets, False), cubic_outer, steps=3, views=VIEWS[:1])
    rows, weights = pixels.flatten(1), problem.weights["map"]
    for _ in range(3):
        weights = weights - 0.3 * 2 / 6 * rows.T @ (rows @ weights - targets)
    assert problem.outer_loss(pixels).item() == pytest.approx((weights**3).sum().item(), rel=1e-12)


# The average over draws


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_loss_is_the_mean_over_all_draws(name):
    targets = random(3, 2, purpose="targets")
    pixels, problem = linear_problem(inner_loss(name, targets), linear_outer, views=VIEWS[:2])
    draws, total = all_draws(problem, 3), 0.0
    assert len(draws) == {"spectral": 2**6, "mse": 2**3, "mse_augmented": 2**3}.get(name, 2**2)
    for draw in draws:
        drawn = [[crop_flip(pixels[m][None], problem.views[n][None])[0] for m, n in enumerate(row)] for row in draw]
        views = (torch.stack(view).flatten(1) @ problem.weights["map"] for view in drawn)
        total += problem.loss.compare(*views).item()
    expected = problem.expected_loss(problem.weights, pixels).item()
    assert expected == pytest.approx(total / len(draws), rel=1e-10)
    sampled = [problem.sampled_loss(problem.weights, pixels, draw).item() for draw in draws]
    assert expected == pytest.approx(sum(sampled) / len(draws), rel=1e-10)
    assert max(sampled) - min(sampled) > 1e-3


def test_the_spectral_loss_is_that_of_a_plain_loop():
    first, second = (functional.normalize(random(4, 3, purpose=purpose)) for purpose in ("first", "second"))
    alike = -2 * sum(float(first[i] @ second[i]) for i in range(4)) / 4
    apart = sum(float(first[i] @ second[j]) ** 2 for i in range(4) for j in range(4) if i != j) / 12
    assert LOSSES["spectral"].compare(5 * first, 0.1 * second).item() == pytest.approx(alike + apart)


@pytest.mark.parametrize("expect", [None, torch.mean])
def test_draws_are_uniform_and_shared_by_all_images_only_where_they_must_be(expect):
    loss = InnerLoss(functional.mse_loss, expect=expect)
    draws = loss.draw((2000, 1), 3, 4, generator(0, "draws"))
    assert draws.shape == (2000, 1, 2, 4)
    assert (torch.bincount(draws[:, 0, :, 0].flatten()) / 4000 - 1 / 3).abs().max() < 0.03
    same = (draws == draws[..., :1]).all(-1).float().mean()
    assert same == 1 if expect is None else same < 0.1
    # The two views of an image are drawn apart.
    assert (draws[:, 0, 0, 0] == draws[:, 0, 1, 0]).float().mean() == pytest.approx(1 / 3, abs=0.05)


# The bias


@pytest.mark.parametrize("name", NAMES)
def test_one_step_and_an_outer_loss_linear_in_the_weights_have_no_bias(name):
    pixels, problem = linear_problem(inner_loss(name, random(3, 2, purpose="targets")), linear_outer, views=VIEWS[:2])
    exact = problem.exact_gradient(pixels)
    everything = problem.sampled_gradients(pixels, all_sequences(problem, 3))
    torch.testing.assert_close(everything.mean(0), exact, rtol=1e-9, atol=1e-12)
    assert everything.std(0).max() > 1e-3
    record = measure_bias(exact, sample_gradients(problem, pixels, 400, 0, name, progress=False))
    assert abs(record["z"]) < 4 and record["error"] < 4 * record["std"] / math.sqrt(400)


@pytest.mark.parametrize(("name", "step", "count"), [("barlow_twins", 0.2, 800), ("mse_augmented", 2.0, 2000)])
def test_the_measured_bias_is_that_of_all_sequences_of_draws(name, step, count):
    loss = inner_loss(name, random(3, 2, purpose="targets"))
    pixels, problem = linear_problem(loss, cubic_outer, steps=2, views=VIEWS[:2])
    problem = problem.scaled(step, pixels)
    exact = problem.exact_gradient(pixels)
    everything = problem.sampled_gradients(pixels, all_sequences(problem, 3))
    assert len(everything) == len(all_draws(problem, 3)) ** 2
    scale, mean = exact.norm().item(), everything.mean(0)
    bias, std = (mean - exact).norm().item() / scale, everything.flatten(1).std(0, correction=0).norm().item() / scale
    sampled = sample_gradients(problem, pixels, count, 0, name, progress=False)
    record = measure_bias(exact, sampled)
    noise = std / math.sqrt(count)
    assert (sampled.mean(0) - mean).norm().item() / scale < 3 * noise < bias
    assert record["bias"] == pytest.approx(bias, abs=3 * noise) and record["z"] > 5
    assert record["projection"] < bias + 4 * record["standard_error"]
    assert record["std"] == pytest.approx(std, rel=0.1)


# The problem


@pytest.mark.parametrize("shift", [1, PADDING])
def test_the_augmentations_are_all_that_can_be_drawn(shift):
    views = all_views(shift)
    assert len(views.unique(dim=0)) == len(views) == 2 * (2 * shift + 1) ** 2
    drawn = draw_views(5000, generator(0, "views"))
    within = drawn[((drawn[:, :2] - PADDING).abs() <= shift).all(1)]
    assert torch.equal(within.unique(dim=0), views.unique(dim=0))


def test_the_outer_loss_is_a_ridge_regression_as_in_closed_form():
    features, targets = random(10, 3), random(10, 2, purpose="targets")
    rows = torch.cat([features, torch.ones(10, 1, dtype=torch.float64)], 1)
    # The penalty as further rows of an ordinary least-squares problem.
    more = math.sqrt(0.1 * 5) * torch.eye(4, dtype=torch.float64)
    inputs = torch.cat([rows[:5], more])
    outputs = torch.cat([targets[:5], torch.zeros(4, 2, dtype=torch.float64)])
    fitted = torch.linalg.lstsq(inputs, outputs).solution
    expected = (rows[5:] @ fitted - targets[5:]).square().mean().item()
    assert regression_error(features, targets, 0.1).item() == pytest.approx(expected, rel=1e-10)


def test_all_losses_start_alike_and_their_first_steps_are_of_one_length(small):
    pixels, problems = small
    assert list(problems) == NAMES and pixels.shape == (4, 1, 8, 8) and pixels.dtype == torch.float64
    for problem in problems.values():
        assert problem.outer(problem.weights) == problems["mse"].outer(problems["mse"].weights)
        slopes = torch.func.grad(problem.expected_loss)(problem.weights, pixels)
        slope, length = (torch.cat([v.flatten() for v in each.values()]).norm() for each in (slopes, problem.weights))
        assert (problem.learning_rate * slope / length).item() == pytest.approx(0.05)


def test_the_draws_depend_on_seed_and_loss_alone(small):
    pixels, problems = small
    first, again, other, renamed = (
        sample_gradients(problems["simclr"], pixels, 2, seed, name, progress=False)
        for seed, name in ((0, "simclr"), (0, "simclr"), (1, "simclr"), (0, "dcl"))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, renamed)


def test_a_diverging_training_and_too_few_images_are_named(small):
    pixels, problems = small
    wild = replace(problems["simclr"], learning_rate=1e200)
    with pytest.raises(InputError, match="the inner training on simclr diverges: lower --bias.step"):
        sample_gradients(wild, pixels, 4, 0, "simclr", progress=False)
    source, _ = load_images(DataSettings(image_size=8, max_images=20), progress=False)
    with pytest.raises(InputError, match="ask for 138 images, and there are 20: lower them"):
        build_problems(source, GradientBiasSettings(), 0)


def test_settings_out_of_range_are_all_named():
    with pytest.raises(SettingsError) as caught:
        GradientBiasSettings(["simclr", "byol"], 3, 1, 3, 1, norm="batch", inner_steps=0, step=0, shift=5, ridge=0)
    assert [problem.split(" must be ") for problem in caught.value.problems] == [
        ["bias.draws", "at least 4, got 3"],
        ["bias.num_images", "at least 2, got 1"],
        ["bias.real_images", "at least 4, got 3"],
        ["bias.dim", "at least 2, got 1"],
        ["bias.norm", "instance or none, got 'batch'"],
        ["bias.inner_steps", "at least 1, got 0"],
        ["bias.step", "above 0, got 0"],
        ["bias.shift", "in [1, 4], got 5"],
        ["bias.ridge", "above 0, got 0"],
        ["bias.losses", "some of barlow_twins, simclr, vicreg, spectral, got 'byol'"],
    ]


# The statistics, on normal numbers whose bias is known


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


# The recipe


def test_the_recipe_finds_the_bias_of_an_augmented_loss_and_none_of_the_regression(tmp_path):
    small = ["--bias.losses", "[simclr]", "--bias.draws", "48", "--bias.num-images", "4", "--bias.real-images", "32"]
    small += ["--bias.widths", "[4]", "--bias.dim", "4", "--bias.inner-steps", "2", "--output", tmp_path / "bias"]
    printed = Running(RECIPE, *small).finish()
    results = json.loads((tmp_path / "bias" / "results.json").read_text())
    augmented, drawn, fixed = results["records"]
    assert [record["loss"] for record in results["records"]] == ["simclr", "mse_augmented", "mse"]
    assert augmented["z"] > 5 and augmented["interval"][0] > 0 and augmented["bias"] > 0.1
    assert drawn["std"] > 0.1
    assert fixed["error"] < 1e-6 and fixed["std"] < 1e-6 and fixed["z"] is None
    assert {record["draws"] for record in results["records"]} == {48}
    # Everything is written and agrees.
    log = [json.loads(line) for line in (tmp_path / "bias" / "log.jsonl").read_text().splitlines()]
    curves = [[record["loss"], *point] for record in results["records"] for point in record["curve"]]
    assert [[entry["stage"], entry["step"], entry["error"]] for entry in log] == curves
    assert yaml.safe_load((tmp_path / "bias" / "config.yaml").read_text())["bias"]["draws"] == 48
    assert (tmp_path / "bias" / "gradient_bias.png").read_bytes().startswith(b"\x89PNG")
    assert f"{augmented['z']:.1f}" in printed
    assert results["machine"]["processes"] == 1 and "torch" in results["versions"]
    assert results["command"].startswith("accelerate launch recipes/gradient_bias.py --bias.losses")
    assert str(tmp_path) not in json.dumps(results)
