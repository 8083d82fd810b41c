"""Views as a parameterisation: what a method sees, and what it learns, against plain loops."""

import numpy as np
import pytest
import torch
from reference.contract_cases import make_pairs
from wrapped import ViewsOfDct, ViewsOfDctSettings

from ssdd_hub.distill.parameterisations.registry import build_parameterisation
from ssdd_hub.distill.parameterisations.views import MOST_VIEWS, Views, ViewsSettings, draw_fixed
from ssdd_hub.errors import InputError

COUNT, K, SIDE = 6, 3, 8


def crop(image, view, black):
    """An image `(C, H, W)` shifted in black and mirrored, pixel by pixel; and where each pixel comes from."""
    channels, height, width = image.shape
    down, right, flip = (int(number) for number in view)
    seen, origin = np.empty_like(image), {}
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                y, x = row + down - 4, (width - 1 - column if flip else column) + right - 4
                inside = 0 <= y < height and 0 <= x < width
                seen[channel, row, column] = image[channel, y, x] if inside else black[channel]
                if inside:
                    origin[channel, row, column] = channel, y, x
    return seen, origin


@pytest.mark.parametrize("black", [None, [-1.5]])
def test_a_method_sees_images_and_crops_and_what_it_finds_goes_back_to_the_pixels(black):
    pairs = make_pairs(COUNT, 1)
    made = Views.start(pairs, ViewsSettings(views=K, seed=3, black=black))
    with torch.no_grad():
        made.view_targets.add_(torch.randn(made.view_targets.shape, dtype=torch.float64))
    found, crops, targets = made(), draw_fixed(COUNT, K, 3), made.view_targets.detach().numpy()
    weights = make_pairs(len(made), 2)
    (found.images * weights.images).sum().add((found.targets * weights.targets).sum()).backward()
    pixels, expected = pairs.images.numpy(), np.zeros((COUNT, 1, SIDE, SIDE))
    given = weights.images.numpy()
    for image in range(COUNT):
        assert np.array_equal(found.images[image].detach().numpy(), pixels[image])
        assert torch.equal(found.targets[image], pairs.targets[image])
        expected[image] += given[image]
        for view in range(K):
            place = image + COUNT * (1 + view)
            seen, origin = crop(pixels[image], crops[image, view], black or [0.0])
            np.testing.assert_allclose(found.images[place].detach().numpy(), seen, rtol=0, atol=1e-12)
            assert np.array_equal(found.targets[place].detach().numpy(), targets[image, view])
            for here, there in origin.items():
                expected[image][there] += given[place][here]
    np.testing.assert_allclose(made.of.images.grad.numpy(), expected, rtol=0, atol=1e-10)
    assert torch.equal(made.of.targets.grad, weights.targets[:COUNT])
    assert torch.equal(made.view_targets.grad, weights.targets[COUNT:].unflatten(0, (K, COUNT)).transpose(0, 1))


def test_views_differ_from_their_image_and_each_other_and_hang_on_the_seed_alone():
    drawn = draw_fixed(5000, 7, 1)
    assert drawn.dtype == torch.int64 and drawn.amin((0, 1)).tolist() == [0, 0, 0]
    assert drawn.amax((0, 1)).tolist() == [8, 8, 1]
    assert torch.equal(draw_fixed(3, 7, 1), drawn[:3]) and torch.equal(draw_fixed(5000, 2, 1), drawn[:, :2])
    assert not torch.equal(draw_fixed(5000, 7, 2), drawn)
    every = draw_fixed(40, MOST_VIEWS, 0)
    for each in every:
        numbers = {tuple(view) for view in each.tolist()}
        assert len(numbers) == MOST_VIEWS == 161 and (4, 4, 0) not in numbers
    # All are as likely: each of 161, 35,000 times.
    counts = torch.bincount((drawn * torch.tensor([18, 2, 1])).sum(2).flatten(), minlength=162)
    assert counts.sum() == 35_000 and counts[80] == 0 and counts.sort().values[1] > 150 and counts.max() < 300
    # Written down, as sets are drawn from their seeds again for ever.
    assert draw_fixed(2, 2, 0).tolist() == [[[5, 5, 0], [1, 8, 0]], [[8, 2, 1], [0, 2, 1]]]


def test_predicted_targets_and_their_gradients_are_those_of_a_network_in_plain_loops():
    pairs, settings = make_pairs(COUNT, 1), ViewsSettings(views=K, seed=3, shift="predicted", hidden=4)
    made, crops = Views.start(pairs, settings), draw_fixed(COUNT, K, 3).numpy()
    assert torch.equal(made().targets, pairs.targets.repeat(1 + K, 1))  # at first nothing is added
    with torch.no_grad():
        made.shift_output.copy_(torch.randn(made.shift_output.shape, dtype=torch.float64))
    weights = make_pairs(len(made), 2).targets
    found = made().targets
    (found * weights).sum().backward()
    hidden, output = (part.detach().numpy() for part in (made.shift_hidden, made.shift_output))
    width, given = pairs.targets.shape[1], weights.numpy()
    in_hidden, in_output, in_targets = np.zeros_like(hidden), np.zeros_like(output), given[:COUNT].copy()
    for image in range(COUNT):
        target = pairs.targets[image].numpy()
        for view in range(K):
            down, right, flip = crops[image, view]
            inputs = [*target, (down - 4) / 4, (right - 4) / 4, 2 * flip - 1, 1]
            sums = [sum(row[n] * inputs[n] for n in range(width + 4)) for row in hidden]
            units = [*(max(each, 0) for each in sums), 1]
            expected = [target[d] + sum(output[d][n] * units[n] for n in range(5)) for d in range(width)]
            place = image + COUNT * (1 + view)
            np.testing.assert_allclose(found[place].detach().numpy(), expected, rtol=1e-12)
            for d in range(width):
                in_output[d] += given[place][d] * np.array(units)
                in_targets[image][d] += given[place][d]
            for unit in range(4):
                back = sum(given[place][d] * output[d][unit] for d in range(width)) * (sums[unit] > 0)
                in_hidden[unit] += back * np.array(inputs)
                in_targets[image] += back * hidden[unit][:width]
    for ours, theirs in (
        (made.shift_hidden, in_hidden),
        (made.shift_output, in_output),
        (made.of.targets, in_targets),
    ):
        np.testing.assert_allclose(ours.grad.numpy(), theirs, rtol=1e-8, atol=1e-10)
    rates = {id(part): group["lr"] for group in made.groups() for part in group["params"]}
    assert rates[id(made.shift_hidden)] == rates[id(made.shift_output)] == settings.lr_shift


def test_rates_and_steps_are_those_of_what_it_is_around():
    settings = ViewsOfDctSettings(lr_images=0.5, lr_targets=0.25)
    made = ViewsOfDct.start(make_pairs(COUNT, 1), settings)
    rates = {id(parameter): group["lr"] for group in made.groups() for parameter in group["params"]}
    assert [rates[id(part)] for part in (made.of.coefficients, made.of.targets, made.view_targets)] == [
        0.5,
        0.25,
        0.25,
    ]
    steps = {name: round(each.scale[0], 6) for name, each in made.levels().items()}
    assert steps == {"coefficients": 0.1, "targets": 0.05, "view_targets": 0.05}
    shown = made.as_set()["view_targets"] / 0.05
    torch.testing.assert_close(shown, shown.round(), rtol=0, atol=1e-6)
    own = ViewsSettings(of="dct", of_args={"lr_images": 0.125}, lr_images=0.5)
    assert Views.start(make_pairs(COUNT, 1), own).groups()[0]["lr"] == 0.125


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"views": 162}, "views must be at most 161, got 162"),
        ({"shift": "stord"}, "shift must be one of stored.*, got 'stord'; the nearest is stored"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"of": "dtc"}, "parameterisation 'dtc' is unknown or cannot be wrapped: use one of .*; the nearest is dct"),
        ({"of": "views"}, "parameterisation 'views' is unknown or cannot be wrapped: use one of bases"),
        ({"of": "factor", "of_args": {"factr": 2}}, "'factor' has no setting 'factr'.*; the nearest is factor"),
        ({"of": "factor", "of_args": {"factor": 3}}, "factor must divide the 8 x 8 pixels"),
        ({"of_args": 3}, "of_args must be a dictionary, got 3"),
    ],
)
def test_settings_that_cannot_be_are_refused(args, message):
    with pytest.raises(InputError, match=message):
        build_parameterisation("views", make_pairs(COUNT, 1), args)
