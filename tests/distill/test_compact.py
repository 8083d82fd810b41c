"""Images as sums of shared ones, and rounding to few bits in the loop, beside slow second implementations."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.compact_numpy import best_approximation, bits_with_gradients, gradients_of_sums, round_with_gradients
from reference.contract_cases import make_pairs

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations import build_parameterisation
from ssdd_hub.distill.parameterisations.bases import Bases, BasesSettings, principal_directions
from ssdd_hub.distill.parameterisations.dct import Dct, DctSettings
from ssdd_hub.distill.parameterisations.levels import bits_of_steps
from ssdd_hub.distill.parameterisations.quantised import best_range, round_to_levels
from ssdd_hub.errors import InputError

PAIRS = make_pairs(6, 3)


def close(ours, theirs):
    torch.testing.assert_close(ours.double(), torch.as_tensor(np.array(theirs)).double(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("images", "count"), [(6, 1), (6, 3), (6, 5), (6, 64), (400, 3), (400, 400)])
def test_bases_start_as_the_principal_components_of_the_images(images, count):
    """Of fewer images than pixels, and of more."""
    pairs = make_pairs(images, 3)
    rank = min(images - 1, pairs.images[0].numel())
    made = build_parameterisation("bases", pairs, {"bases": count})
    close(made().images.detach(), best_approximation(pairs.images.numpy(), min(count, rank + 1)))
    # As many as the rank, which is one less than the images where these are few, leave nothing out.
    exact = torch.allclose(made().images, pairs.images, rtol=0, atol=1e-10)
    assert exact == (count >= rank) and torch.equal(made().targets, pairs.targets)


def test_bases_of_images_that_are_nearly_of_lower_rank_are_orthonormal():
    """As smooth pictures are: singular values below the rounding of products, down to none."""
    drawn = torch.Generator().manual_seed(2)
    values = torch.randn(8, 8, generator=drawn, dtype=torch.float64) * torch.logspace(0, -20, 8)
    for rows in (values, values.repeat(9, 1)):
        parts = principal_directions(rows @ torch.linalg.qr(torch.randn(40, 8, generator=drawn).double()).Q.T, 8)
        torch.testing.assert_close(parts @ parts.T, torch.eye(8).double(), rtol=0, atol=1e-12)


def test_gradients_in_coefficients_and_bases_are_those_of_their_sums():
    made = build_parameterisation("bases", PAIRS, {"bases": 3})
    upstream = make_pairs(6, 4).images
    made().images.backward(upstream)
    parts = made.coefficients.detach().numpy(), made.bases.detach().flatten(1).numpy()
    found = gradients_of_sums(*parts, upstream.flatten(1).numpy())
    close(made.coefficients.grad, found[0])
    close(made.bases.grad.flatten(1), found[1])


@pytest.mark.parametrize("most", [3, 15, 255])
@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_gradients_of_rounding_are_those_of_the_papers(most, scale):
    values, upstream = (make_pairs(6, seed).targets.flatten() for seed in (5, 6))
    ranges = (torch.tensor(part, dtype=torch.float64) for part in (scale, -0.4))
    given = [part.clone().requires_grad_() for part in (values, *ranges)]
    rounded = round_to_levels(*given, most)
    found = torch.autograd.grad(rounded, given, upstream)
    expected, *gradients = round_with_gradients(values.tolist(), scale, -0.4, most, upstream.tolist())
    close(rounded.detach(), expected)
    for ours, theirs in zip(found, gradients, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("step", [0.1, 0.7])
def test_bits_and_their_gradients_are_those_of_the_entropies_of_the_columns(step):
    values = 3 * make_pairs(9, 5).targets
    values[:, 0] = 0.02  # of no bits
    values.requires_grad_()
    bits = bits_of_steps(values, step)
    bits.backward()
    expected, gradients = bits_with_gradients(values.tolist(), step)
    close(bits.detach(), expected)
    torch.testing.assert_close(values.grad, torch.from_numpy(gradients), rtol=1e-6, atol=1e-9)
    assert not values.grad[:, 0].any() and values.grad[:, 1:].any()
    # Numbers without steps take the bits of a float.
    assert bits_of_steps(values, 0.0) == 32 * values.shape[1]


def test_the_price_of_bits_is_that_of_images_and_targets_of_some_rows_alone():
    pairs, rows = make_pairs(6, 3), torch.tensor([4, 1])
    settings = {"step": 0.2, "target_step": 0.3}
    made = build_parameterisation("dct", pairs, {**settings, "rate": 0.5})
    penalty = made.penalty(rows)
    penalty.backward()
    parts = (made.coefficients, 0.2), (made.targets, 0.3)
    found = [bits_with_gradients(part[rows].tolist(), step) for part, step in parts]
    bits = sum(each for each, _ in found)
    close(penalty.detach(), 0.5 * np.log(bits))
    for (part, _), (_, gradients) in zip(parts, found, strict=True):
        expected = torch.zeros_like(part)
        expected[rows] = 0.5 / bits * torch.from_numpy(gradients)
        torch.testing.assert_close(part.grad, expected, rtol=1e-6, atol=1e-9)
    # Targets that a method leaves alone stay where they are.
    made.zero_grad()
    made.penalty(rows, moves_targets=False).backward()
    assert made.targets.grad is None and made.coefficients.grad.any()
    # Of coefficients without steps, nothing that moves has a price.
    steps = build_parameterisation("dct", pairs, {"step": 0.0, "target_step": 0.3, "rate": 0.5})
    assert not steps.penalty(moves_targets=False).requires_grad
    assert build_parameterisation("dct", pairs, settings).penalty() is None
    # Nothing costs nothing.
    empty = build_parameterisation("dct", Pairs(*(0 * part for part in pairs)), {**settings, "rate": 0.5})
    assert empty.penalty() == 0 and not torch.autograd.grad(empty.penalty(), empty.coefficients)[0].any()
    # Rows of views are those of their images.
    views = build_parameterisation("views", pairs, {"of": "dct", "of_args": {**settings, "rate": 0.5}})
    assert torch.equal(views.penalty(torch.tensor([4, 7, 10])), penalty.detach())


@pytest.mark.parametrize("per", ["channel", "set"])
@pytest.mark.parametrize("range", ["learned", "fixed"])
def test_gradients_reach_what_is_rounded_and_its_ranges(per, range):
    images = make_pairs(6, 7).images.expand(-1, 3, -1, -1) * torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    args = {"of": "pixels", "bits": 2, "target_bits": 3, "per": per, "range": range}
    made = build_parameterisation("quantised", PAIRS._replace(images=images), args)
    shown, upstream = made(), make_pairs(6, 8).images.expand(-1, 3, -1, -1)
    torch.autograd.backward([*shown], [upstream, PAIRS.targets])
    scale, offset = (part.expand(3, 1, 1).flatten().tolist() for part in (made.images_scale, made.images_offset))
    found = [
        round_with_gradients(
            images[:, channel].flatten().tolist(),
            scale[channel],
            offset[channel],
            3,
            upstream[:, channel].flatten().tolist(),
        )
        for channel in (0, 1, 2)
    ]
    for channel, (rounded, in_values, *_) in enumerate(found):
        close(shown.images[:, channel].flatten().detach(), rounded)
        close(made.of.images.grad[:, channel].flatten(), in_values)
    assert all(len(shown.images[:, channel].detach().unique()) <= 3 * 4 for channel in (0, 1, 2))
    learned = [name for name, _ in made.named_parameters() if not name.startswith("of.")]
    assert len(learned) == (4 if range == "learned" else 0)
    if range == "learned":
        for name, place in (("images_scale", 2), ("images_offset", 3)):
            by_channel = np.array([each[place] for each in found])
            expected = by_channel if per == "channel" else [by_channel.sum()]
            close(getattr(made, name).grad.flatten(), expected)


def test_the_first_range_leaves_the_least_error_of_those_tried():
    values = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = {}
    for share in torch.linspace(1, 0.25, 25).tolist():
        low, high = ((values.mean() + (end - values.mean()) * share).item() for end in (values.min(), values.max()))
        rounded, *_ = round_with_gradients(values.tolist(), (high - low) / 3, low, 3, [0.0] * 2000)
        errors[((high - low) / 3, low)] = sum((a - b) ** 2 for a, b in zip(rounded, values.tolist(), strict=True))
    found = best_range(values, 3).tolist()
    assert found == pytest.approx(min(errors, key=errors.get), rel=1e-9)
    # Two bits for a normal distribution: less than the whole range.
    assert found[0] * 3 < 0.8 * (values.max() - values.min())


def test_values_all_alike_have_levels_too():
    assert torch.equal(round_to_levels(torch.ones(4), *best_range(torch.ones(4), 15), 15), torch.ones(4))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"of": "quantised"}, "'quantised' is unknown or cannot be wrapped: use one of bases, dct, factor, pixels"),
        ({"bits": 1}, "bits must be at least 2, got 1"),
        ({"bits": 9}, "bits must be at most 8, got 9"),
        ({"target_bits": 1}, "target_bits must be 0 or at least 2, got 1"),
        ({"range": "wide"}, "range must be learned or fixed, got 'wide'"),
        ({"of_args": {"facto": 2}}, "parameterisation 'factor' has no setting 'facto'.*the nearest is factor"),
        ({"of": "dct"}, "coefficients would be rounded twice: set the step of dct to 0 in of_args"),
        (
            {"of": "dct", "of_args": {"step": 0, "rate": 1}},
            "rate needs a step or a target_step above 0, and both are 0",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(args, message):
    with pytest.raises(InputError, match=message):
        build_parameterisation("quantised", PAIRS, args)


def test_more_bases_than_can_be_computed_with_are_refused():
    images = torch.zeros(1, 1).expand(200, 3 * 600 * 600).view(200, 3, 600, 600)
    with pytest.raises(InputError, match=r"bases computes with pixels times bases, at most 67108864; got 70200000"):
        build_parameterisation("bases", PAIRS._replace(images=images, targets=torch.zeros(200, 2)), {})


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Dct, DctSettings(step=0.1)), (Bases, BasesSettings(step=0.1)), (Dct, DctSettings(step=0.0, target_step=1e-3))],
)
def test_values_that_no_number_of_steps_reaches_are_refused_with_a_step_that_does(kind, settings):
    pairs = Pairs(torch.full((4, 3, 8, 8), 2.0), torch.eye(4))
    setting = "step" if settings.step == 0.1 else "target_step"
    with pytest.raises(InputError, match=f"^{setting} .* stores values up to .*, or 0 for none$") as caught:
        kind.start(pairs, settings)
    enough = float(re.search("of at least ([0-9.e-]+),", str(caught.value)).group(1))
    made = kind.start(pairs, replace(settings, **{setting: enough}))
    for ours, theirs in zip(made(), pairs, strict=True):
        assert (ours - theirs).abs().max() <= enough
