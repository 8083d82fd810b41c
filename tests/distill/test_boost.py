"""What makes KRR-ST Boost: bases of targets, components of the source, rotations, networks fitted to their shift."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.compact_numpy import best_approximation, fit_by_adam, gradients_of_sums, network
from reference.contract_cases import D, make_pairs
from wrapped import Boost, BoostSettings

from ssdd_hub.data.augment import show_views
from ssdd_hub.distill.parameterisations.base import Real
from ssdd_hub.distill.parameterisations.bases import Bases, BasesSettings
from ssdd_hub.distill.parameterisations.registry import PARAMETERISATIONS, build_parameterisation
from ssdd_hub.distill.parameterisations.views import Views, ViewsSettings
from ssdd_hub.errors import InputError

COUNT, K = 6, 3
PAIRS = make_pairs(COUNT, 3)
REAL = Real(lambda count: make_pairs(20, 4), lambda images: images.flatten(1)[:, :D] * 2)


def near(ours, theirs, rtol=1e-8):
    theirs = theirs if isinstance(theirs, torch.Tensor) else torch.as_tensor(np.array(theirs))
    torch.testing.assert_close(ours.detach().double(), theirs, rtol=rtol, atol=1e-12)


def disturbed(settings):
    """Returns views of which nothing is as it started."""
    made = Boost.start(PAIRS, settings)
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in made.parameters():
            part.add_(0.3 * torch.randn(part.shape, dtype=part.dtype, generator=source))
    return made


@pytest.mark.parametrize("count", [1, 2, 64])
def test_targets_start_as_their_principal_components(count):
    made = Bases.start(PAIRS, BasesSettings(target_bases=count))
    near(made().targets, best_approximation(PAIRS.targets.numpy(), min(count, D)))
    assert made.targets.shape == (COUNT, 1 + min(count, D)) and made.target_bases.shape == (1 + min(count, D), D)
    near(made.encoded(PAIRS.targets), made.targets.detach())


def test_components_of_the_source_are_those_of_all_its_images_and_targets():
    made = Bases.start(PAIRS, BasesSettings(bases=3, target_bases=1, components="source", real=REAL))
    for shown, own, all_of in zip(made(), PAIRS, make_pairs(20, 4), strict=True):
        flat, mean = own.flatten(1).numpy(), all_of.flatten(1).numpy().mean(0)
        rows = all_of.flatten(1).numpy() - mean
        _, directions = np.linalg.eigh(rows.T @ rows)
        best = directions[:, ::-1][:, : 3 if own is PAIRS.images else 1]
        near(shown.flatten(1), mean + (flat - mean) @ best @ best.T)


def test_what_is_missing_of_the_source_is_told():
    with pytest.raises(InputError, match="there are no real images to find components of: take components of the set"):
        Bases.start(PAIRS, BasesSettings(components="source"))
    for real in (None, REAL._replace(teach=None)):
        with pytest.raises(InputError, match="there is no teacher of the first targets of views: take first image"):
            Views.start(PAIRS, ViewsSettings(first="teacher", real=real))
    with pytest.raises(InputError, match="factor of bases must divide the 8 x 8 pixels of the images, got 3"):
        Bases.start(PAIRS, BasesSettings(factor=3))
    for name in ("real", "black"):
        with pytest.raises(InputError, match=f"has no setting '{name}'"):
            PARAMETERISATIONS.settings("views", {name: None}, {})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"views": 4}, "views must be at most 3 rotations, got 4"),
        ({"kind": "rotation"}, "kind must be one of crops, rotations, got 'rotation'"),
        ({"first": "teach"}, "first must be one of image, teacher"),
        ({"fit_steps": 0}, "fit_steps must be at least 1, got 0"),
        ({"of": "bases", "of_args": {"target_bases": -1}}, "target_bases must be at least 0, got -1"),
        ({"of": "bases", "of_args": {"components": "teacher"}}, "components must be one of set, source"),
    ],
)
def test_settings_that_cannot_be_are_refused(args, message):
    with pytest.raises(InputError, match=message):
        build_parameterisation("views", PAIRS, {"kind": "rotations", **args})


def test_rotations_are_of_square_images_alone():
    wide = PAIRS._replace(images=PAIRS.images[:, :, :4])
    with pytest.raises(InputError, match="are of square images, and these have 4 x 8 pixels"):
        Views.start(wide, ViewsSettings(kind="rotations"))


@pytest.mark.parametrize("shift", ["fitted", "predicted"])
def test_a_method_sees_rotations_with_sums_of_targets_and_what_it_finds_goes_back(shift):
    made = disturbed(BoostSettings(shift=shift, of_args={"bases": 4, "target_bases": 2}))
    shown, weights = made(), make_pairs(COUNT * (1 + K), 2)
    torch.autograd.backward([*shown], [*weights])
    bases, codes = made.of.target_bases.detach().numpy(), made.of.targets.detach().numpy()
    flat = made.of.bases.detach().flatten(1).numpy()
    pixels = (made.of.coefficients.detach().numpy() @ flat).reshape(COUNT, 8, 8)
    given, in_codes = weights.targets.numpy(), np.zeros_like(codes)
    in_pixels, in_bases = weights.images[:COUNT].numpy().copy(), np.zeros_like(bases)
    for image in range(COUNT):
        for turn in range(1 + K):
            place = image + COUNT * turn
            seen = np.array([[pixels[image][_turned(i, j, turn)] for j in range(8)] for i in range(8)])
            near(shown.images[place, 0], seen)
            for i in range(8):
                for j in range(8):
                    if turn:
                        in_pixels[image, 0][_turned(i, j, turn)] += weights.images[place, 0, i, j].item()
            code = codes[image].copy()
            if turn and shift == "fitted":
                code = made.view_targets.detach()[image, turn - 1].numpy()
            elif turn:
                parts = (made.shift_hidden.detach().numpy(), made.shift_output.detach().numpy())
                code = code + network(code, *(part.reshape(K, -1, part.shape[1])[turn - 1] for part in parts))[1]
            near(shown.targets[place], code @ bases)
            in_bases += np.outer(code, given[place])
            if turn == 0:
                in_codes[image] += bases @ given[place]
            elif shift == "fitted":
                near(made.view_targets.grad[image, turn - 1], bases @ given[place])
    near(made.of.target_bases.grad, in_bases)
    if shift == "fitted":
        near(made.of.targets.grad, in_codes)
    else:  # through the networks, whose own loops are those of `fit_by_adam`
        assert (made.of.targets.grad - torch.as_tensor(in_codes)).abs().max() > 1e-3
    found = gradients_of_sums(made.of.coefficients.detach().numpy(), flat, in_pixels.reshape(COUNT, -1))
    near(made.of.coefficients.grad, found[0])
    near(made.of.bases.grad.flatten(1), found[1])


def _turned(row, column, turns):
    """Where a pixel of an image of 8 x 8 comes from that was turned anticlockwise."""
    for _ in range(turns):
        row, column = column, 7 - row
    return row, column


def test_networks_that_are_stored_are_fitted_by_adam():
    made = disturbed(BoostSettings(lr_shift=0.02, fit_steps=25))
    stored = made.stored()
    assert stored.settings.shift == "predicted" and stored.shift_hidden.shape == (K * 4, 4)
    start = Boost.start(PAIRS, BoostSettings(shift="predicted"))
    codes, aims = made.of.targets.detach().numpy(), made.view_targets.detach().numpy()
    for number in range(K):
        first = [part.detach().chunk(K)[number].numpy() for part in (start.shift_hidden, start.shift_output)]
        # The mean is over the views of all networks.
        expected = fit_by_adam(codes, aims[:, number], *first, rate=0.02, steps=25, count=aims.size)
        for ours, theirs in zip((stored.shift_hidden, stored.shift_output), expected, strict=True):
            near(ours.chunk(K)[number], theirs)
    error = [
        (each.as_set()["view_targets"] - made.as_set()["view_targets"]).square().mean() for each in (start, stored)
    ]
    assert error[1] < 0.8 * error[0]


@pytest.mark.parametrize("kind", ["crops", "rotations"])
def test_views_start_with_what_they_change_for_the_teacher(kind):
    settings = ViewsSettings(kind=kind, first="teacher", real=REAL, black=[-1.5], fit_steps=400, lr_shift=0.05)
    made = Views.start(PAIRS, settings)
    for view in range(K):
        seen = show_views(PAIRS.images, made.crops[:, view], torch.full((1, 1, 1), -1.5), True)
        near(made.view_targets[:, view], PAIRS.targets + REAL.teach(seen) - REAL.teach(PAIRS.images))
    # Networks that learn with the set are fitted to them first.
    predicted = Views.start(PAIRS, replace(settings, shift="predicted", hidden=32)).as_set()["view_targets"]
    aim, image = made.view_targets.detach(), PAIRS.targets[:, None]
    assert (predicted - aim).square().mean() < 0.2 * (image - aim).square().mean()
