import numpy as np
import pytest
import torch
from evaluation_cases import CPU, make_bank, pretrained as pretrain
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.linear_probe import (
    LinearProbe,
    MkdtProbe,
    ProbeSettings,
    draw_order,
    fit_mkdt,
    fit_probe,
    take_labelled,
)
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator


class Pixels(nn.Module):
    """A student whose features are the pixels."""

    def forward_features(self, images):
        return images

    def forward_head(self, maps, pre_logits=False):
        return maps.flatten(1)


def pretrained(student=None, seed=0):
    return pretrain(student or Pixels(), seed=seed)


def make_data(train, heldout):
    return RealData("digits", train, heldout, PixelSpace.raw(1), CPU)


@pytest.fixture
def data(digits):
    return make_data(digits[0].subset(range(300)), digits[1].subset(range(150)))


# The draws


LABELS = torch.tensor([0] * 30 + [1] * 12 + [2] * 2)


def test_a_draw_is_a_permutation_of_its_own():
    orders = [draw_order(LABELS, seed, draw) for seed, draw in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(orders[0].sort().values, torch.arange(44))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[3])


def test_balanced_draws_take_class_by_class():
    order = draw_order(LABELS, 0, 0, balanced=True)
    assert torch.equal(order.sort().values, torch.arange(44))
    for count, expected in ((1, [0, 0, 1]), (3, [1, 1, 1]), (6, [2, 2, 2]), (12, [2, 5, 5]), (30, [2, 12, 16])):
        assert sorted(torch.bincount(LABELS[order[:count]], minlength=3).tolist()) == expected


def test_plain_draws_follow_the_classes():
    shares = [torch.bincount(LABELS[draw_order(LABELS, 0, draw)[:11]], minlength=3) for draw in range(200)]
    measured = torch.stack(shares).double().mean(0) / 11
    torch.testing.assert_close(measured, torch.tensor([30, 12, 2]).double() / 44, atol=0.03, rtol=0)


@pytest.mark.parametrize("balanced", [False, True])
def test_smaller_subsets_are_parts_of_larger_ones(balanced):
    order = draw_order(LABELS, 0, 3, balanced)
    subsets = [{*take_labelled(order, LABELS, amount).tolist()} for amount in (0.05, 5, 0.5, 30, 1.0)]
    assert [len(subset) for subset in subsets] == [2, 5, 22, 30, 44]
    assert all(small <= large for small, large in zip(subsets, subsets[1:], strict=False))


def test_a_subset_has_two_images_and_two_classes():
    """Class 1 comes at place 6 only."""
    labels = torch.tensor([0] * 6 + [1] + [0] * 3)
    taken = [take_labelled(torch.arange(10), labels, amount).tolist() for amount in (0.01, 4, 6, 7, 99)]
    assert taken == [[0, 6], [0, 1, 2, 6], [0, 1, 2, 3, 4, 6], [0, 1, 2, 3, 4, 5, 6], list(range(10))]


# The ridge


def test_the_ridge_that_is_known_to_be_right_is_chosen():
    numbers = generator(0, "known ridge")
    labels = (torch.rand(200, generator=numbers) < 0.3).long()
    features = 0.3 * torch.randn(200, 20, generator=numbers)
    features[:, 0] = 2.0 * labels
    settings = ProbeSettings(ridges=[1e4, 1e-2])
    # With the huge ridge every image is given the larger class, and a part of those held out is of the other one.
    linear, ridge = fit_probe(features, labels, 2, settings)
    assert ridge == 1e-2
    assert ((features @ linear[0].T + linear[1]).argmax(1) == labels).all()
    # Labels that are noise are best answered by the larger class, which small ridges do not.
    noise = torch.randn(120, 100, generator=generator(0, "noise"))
    labels = (torch.arange(120) % 5 == 0).long()
    assert fit_probe(noise, labels, 2, settings)[1] == 1e4


def test_of_equal_accuracies_the_lower_loss_decides():
    """Classes far apart are told at every ridge, with the more certainty the smaller it is."""
    labels = torch.arange(40) % 2
    features = torch.stack([10.0 * labels, torch.zeros(40)], 1)
    assert fit_probe(features, labels, 2, ProbeSettings(ridges=[1e-3, 1e-1, 1e-2]))[1] == 1e-3


@pytest.mark.parametrize(
    ("labels", "heldout"),
    [([0, 1, 0, 1], 0.2), ([0, 1, 2, 3, 4, 5], 0.2), ([0, 0, 0, 0, 1], 0.2), ([0, 1] * 5, 0.0)],
    ids=["too few", "every class once", "rest of one class", "nothing held out"],
)
def test_without_a_choice_it_is_the_middle_ridge(labels, heldout):
    features, labels = torch.randn(len(labels), 3, generator=generator(0, "few")), torch.tensor(labels)
    assert fit_probe(features, labels, 6, ProbeSettings(heldout=heldout, ridges=[1.0, 1e-4, 1e-2]))[1] == 1e-2
    assert fit_probe(features, labels, 6, ProbeSettings(heldout=heldout, ridges=[1e-4, 1.0]))[1] == 1.0


def test_all_images_are_fitted_with_the_ridge_and_it_refers_to_scaled_features(digits):
    bank = digits[0].subset(range(200))
    features = bank.pixels.flatten(1).double()
    (weight, bias), ridge = fit_probe(features, bank.labels, 10, ProbeSettings())
    centred = features - features.mean(0)
    scaled = (centred / centred.square().mean().sqrt()).numpy()
    expected = LogisticRegression(C=1 / (ridge * 200), max_iter=5000, tol=1e-8).fit(scaled, bank.labels.numpy())
    ours = (features @ weight.T + bias).softmax(1)
    np.testing.assert_allclose(ours, expected.predict_proba(scaled), atol=0.01)


# The protocols


def test_the_measure_is_the_mean_accuracy_of_all_draws(data):
    settings = ProbeSettings(labels=[0.1, 50, 1.0], draws=2, ridges=[1e-2])
    measures = LinearProbe(settings)(pretrained(seed=7), data)
    features, test = (bank.pixels.flatten(1) / 255 for bank in (data.train, data.heldout))
    accuracies = []
    for amount in (0.1, 50, 1.0):
        found = []
        for draw in range(2):
            chosen = take_labelled(draw_order(data.train.labels, 7, draw), data.train.labels, amount)
            part = features[chosen].double()
            centre, scale = part.mean(0), (part - part.mean(0)).square().mean().sqrt()
            regression = LogisticRegression(C=100 / len(chosen), max_iter=5000, tol=1e-8)
            regression.fit(((part - centre) / scale).numpy(), data.train.labels[chosen].numpy())
            found.append(regression.score(((test - centre) / scale).numpy(), data.heldout.labels.numpy()))
        accuracies.append(np.mean(found))
    assert [measure.metric for measure in measures] == ["accuracy"] * 3
    assert [measure.labels for measure in measures] == [0.1, 50, 1.0]
    assert isinstance(measures[1].labels, int)
    assert [measure.value for measure in measures] == pytest.approx(accuracies, abs=0.004)
    assert accuracies[0] < accuracies[1] < accuracies[2]


@pytest.mark.parametrize("protocol", [LinearProbe, MkdtProbe])
def test_images_of_unknown_class_are_left_out(data, protocol):
    def more(bank, count):
        labels = torch.cat([torch.full((count,), -1), bank.labels])
        return make_bank(torch.cat([torch.full_like(bank.pixels[:count], 255), bank.pixels]), labels)

    probe = protocol(ProbeSettings(labels=[40], draws=1))
    with_unknown = make_data(more(data.train, 50), more(data.heldout, 30))
    assert probe(pretrained(), with_unknown) == probe(pretrained(), data)


def test_all_images_are_drawn_once_and_features_are_computed_once(data):
    seen, student = [], Pixels()
    student.forward_features = lambda images: seen.append(len(images)) or images
    measures = LinearProbe(ProbeSettings(labels=[20, 1.0], draws=2, ridges=[1e-2]))(pretrained(student), data)
    assert sum(seen) == 300 + 150
    assert measures[1].value * 150 == pytest.approx(round(measures[1].value * 150))
    seen.clear()
    LinearProbe(ProbeSettings(labels=[20], draws=1, ridges=[1e-2]))(pretrained(student), data)
    assert sum(seen) == 20 + 150


@pytest.mark.parametrize("protocol", [LinearProbe, MkdtProbe])
def test_features_that_are_not_finite_are_the_students_fault(data, protocol):
    class Diverged(Pixels):
        def forward_head(self, maps, pre_logits=False):
            return maps.flatten(1) * torch.nan

    with pytest.raises(
        InputError, match="a student diverges when it is pre-trained on the set: lower --student-training"
    ):
        protocol(ProbeSettings())(pretrained(Diverged()), data)


def test_mkdts_layer_is_that_of_a_loop_by_hand(data):
    """The loop is the two-loop recursion on flat weights, with a short first step and steps of 1 after it."""
    features, labels = data.train.pixels[:60].flatten(1).double() / 255, data.train.labels[:60]
    weight, bias = fit_mkdt(features, labels, 10, seed=3, calls=2)
    start = fit_mkdt(features, labels, 10, seed=3, calls=0)
    assert not torch.equal(weight, start[0])

    def gradient_of(flat):
        flat = flat.clone().requires_grad_()
        weights = flat.view(10, -1)
        odds = features @ weights[:, :-1].T + weights[:, -1]
        loss = functional.cross_entropy(odds, labels) + 1e-3 * (weights[:, :-1] ** 2).sum()
        return torch.autograd.grad(loss, flat)[0]

    flat = torch.cat([start[0], start[1][:, None]], 1).flatten()
    gradient, pairs = gradient_of(flat), []
    moved = -gradient * min(1.0, 1.0 / gradient.abs().sum().item())
    for _ in range(40):
        flat, before = flat + moved, gradient
        gradient = gradient_of(flat)
        pairs.append((moved, gradient - before))
        moved = -two_loops(pairs, gradient)
    torch.testing.assert_close(torch.cat([weight, bias[:, None]], 1).flatten(), flat, atol=1e-6, rtol=1e-5)


def two_loops(pairs, gradient):
    direction, weights = gradient.clone(), []
    for moved, change in reversed(pairs):
        weights.append((moved @ direction) / (change @ moved))
        direction = direction - weights[-1] * change
    direction = direction * (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ pairs[-1][1])
    for (moved, change), weight in zip(pairs, reversed(weights), strict=True):
        direction = direction + moved * (weight - (change @ direction) / (change @ moved))
    return direction


def test_mkdts_measure_is_that_of_its_layer_on_raw_features(data):
    measure = MkdtProbe(ProbeSettings(labels=[30], draws=1, balanced=True))(pretrained(), data)[0]
    labels = data.train.labels
    chosen = take_labelled(draw_order(labels, 0, 0), labels, 30)
    features, test = (bank.pixels.flatten(1) / 255 for bank in (data.train, data.heldout))
    # From any start the end is nearly the same, that of a ridge of twice the penalty.
    regression = LogisticRegression(C=1 / (2e-3 * 30), max_iter=5000).fit(features[chosen], labels[chosen])
    score = regression.score(test, data.heldout.labels)
    assert (measure.value, measure.labels) == (pytest.approx(score, abs=0.02), 30)


def test_pre_logits_are_what_is_probed(data, small_backbone):
    """A probe of the student is a probe of its pre-logits in eval mode, computed at once."""
    student, settings, banks = small_backbone().eval(), ProbeSettings(labels=[1.0]), (data.train, data.heldout)
    with torch.no_grad():
        features, test = (pre_logits(student, PixelSpace.raw(1).normalise(bank.pixels / 255)) for bank in banks)
    order = take_labelled(draw_order(data.train.labels, 0, 0), data.train.labels, 1.0)
    (weight, bias), _ = fit_probe(features[order], data.train.labels[order], 10, settings)
    right = (test @ weight.T + bias).argmax(1) == data.heldout.labels
    assert LinearProbe(settings)(pretrained(student), data)[0].value == pytest.approx(right.double().mean().item())
