from dataclasses import replace

import pytest
import torch
from evaluation_cases import CPU, MadePairs, make_bank
from lightly.utils.benchmarking.knn import knn_predict
from torch import nn
from torch.nn import functional

from ssdd_hub.distill.krr import predict
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.base import Measure, Pretrained
from ssdd_hub.evaluation.protocols.knn import KnnSettings, NearestNeighbours
from ssdd_hub.evaluation.protocols.krr import KernelRegression, KrrSettings, regress
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.teachers.monitor import knn_accuracy


@pytest.fixture
def data(digits):
    banks = digits[0].subset(range(200)), digits[1].subset(range(80))
    return RealData("digits", *banks, PixelSpace.of(banks[0].pixels), CPU)


def with_labels(data, train, heldout):
    return replace(data, train=make_bank(data.train.pixels, train), heldout=make_bank(data.heldout.pixels, heldout))


def pretrained(small_backbone, pairs=None, seed=0):
    return Pretrained(small_backbone(1).eval(), lambda: small_backbone(0).eval(), pairs, seed)


@torch.no_grad()
def features_of(student, data, bank):
    return pre_logits(student.eval(), data.images(bank))


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed, "test of closed forms"), dtype=dtype)


# Nearest neighbours


def test_the_vote_is_that_of_lightly(data, small_backbone):
    trained = pretrained(small_backbone)
    measures = NearestNeighbours(KnnSettings(neighbours=20, temperature=0.2))(trained, data)
    voters, tests = (
        functional.normalize(features_of(trained.student, data, bank)) for bank in (data.train, data.heldout)
    )
    expected = knn_predict(tests, voters.T, data.train.labels, 10, knn_k=20, knn_t=0.2)[:, 0]
    share = (expected == data.heldout.labels).double().mean().item()
    labels = data.heldout.labels
    right = [(expected[labels == label] == label).double().mean().item() for label in range(10)]
    shares = [pytest.approx(part, abs=1e-4) for part in right]
    assert measures == [Measure("accuracy", pytest.approx(share), None, shares)]
    assert 0.3 < share < 1


def test_images_of_unknown_class_neither_vote_nor_count(data, small_backbone):
    train, heldout = data.train.labels.clone(), data.heldout.labels.clone()
    train[150:], heldout[::2] = -1, -1
    trained, protocol = pretrained(small_backbone), NearestNeighbours(KnnSettings(neighbours=3))
    voters, tests = (features_of(trained.student, data, bank) for bank in (data.train, data.heldout))
    expected = knn_accuracy(voters[:150], train[:150], tests[1::2], heldout[1::2], 3)
    (measure,) = protocol(trained, with_labels(data, train, heldout))
    assert (measure.metric, measure.value) == ("accuracy", pytest.approx(expected))


def test_at_most_so_many_images_vote_and_the_seed_draws_them(data, small_backbone):
    few = KnnSettings(neighbours=1, max_images=12)
    voters = [few.voters(data, seed) for seed in (0, 0, 1)]
    assert len(voters[0].unique()) == 12 and torch.equal(voters[0], voters[1])
    assert not torch.equal(voters[0], voters[2])
    trained = pretrained(small_backbone, seed=1)
    vectors, tests = (features_of(trained.student, data, bank) for bank in (data.train, data.heldout))
    expected = knn_accuracy(vectors[voters[2]], data.train.labels[voters[2]], tests, data.heldout.labels, 1)
    assert NearestNeighbours(few)(trained, data)[0].value == pytest.approx(expected)
    assert torch.equal(KnnSettings().voters(data, 0), torch.arange(200))


# The regression


@pytest.mark.parametrize(
    ("count", "width"), [(1, 6), (5, 6), (7, 6), (8, 6), (40, 6)], ids=["one", "few", "M = F + 1", "M > F + 1", "many"]
)
@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_both_forms_are_the_prediction_of_the_method(count, width, ridge):
    features, targets, real = draw(count, width), draw(count, 3, seed=1), draw(9, width, seed=2)
    parts = list(zip(torch.split(features, 3), torch.split(targets, 3), strict=True))
    weights = regress(parts, count, ridge)
    expected = predict(features, targets, real, ridge)
    torch.testing.assert_close(real @ weights[:-1] + weights[-1], expected, atol=1e-6, rtol=1e-6)
    halves = [(part.float(), truth.float()) for part, truth in parts]
    torch.testing.assert_close(regress(halves, count, ridge), weights, atol=1e-4, rtol=1e-3)


def test_more_pairs_than_features_need_the_memory_of_the_features_alone(monkeypatch):
    """The system that is solved has F + 1 rows, however many pairs there are."""
    rows = []
    solve = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda left, right: rows.append(len(left)) or solve(left, right))
    for count in (4, 5, 6, 50):
        regress([(draw(count, 4), draw(count, 2))], count)
    assert rows == [4, 5, 5, 5]


@pytest.mark.parametrize("count", [15, 120])
def test_the_measures_are_those_of_the_methods_prediction(data, small_backbone, count):
    pairs = MadePairs(data.images(data.train)[:count], draw(count, 6, dtype=torch.float32))
    targets = draw(80, 6, seed=1, dtype=torch.float32)
    settings, vote = KrrSettings(ridge=1e-4), KnnSettings(neighbours=5)
    measures = KernelRegression(settings, vote)(
        pretrained(small_backbone, pairs), replace(data, heldout_targets=targets)
    )
    fresh = small_backbone(0).eval()
    train, test = (features_of(fresh, data, bank).double() for bank in (data.train, data.heldout))
    guesses = [predict(train[:count], pairs.targets.double(), part, 1e-4).float() for part in (train, test)]
    accuracy = knn_accuracy(guesses[0], data.train.labels, guesses[1], data.heldout.labels, 5)
    error = (guesses[1] - targets).square().mean().item()
    assert [measure.metric for measure in measures] == ["mse", "accuracy"]
    assert [measure.value for measure in measures] == [pytest.approx(error, rel=1e-4), pytest.approx(accuracy)]


def test_only_what_is_known_is_measured(data, small_backbone):
    pairs, targets = MadePairs(data.images(data.train)[:9], draw(9, 6).float()), draw(80, 6).float()
    unlabelled = with_labels(data, None, None)
    for case, metrics in (
        (data, ["accuracy"]),
        (replace(data, heldout_targets=targets), ["mse", "accuracy"]),
        (replace(unlabelled, heldout_targets=targets), ["mse"]),
    ):
        measures = KernelRegression(KrrSettings())(pretrained(small_backbone, pairs), case)
        assert [measure.metric for measure in measures] == metrics


def test_a_predicted_target_tells_the_class_where_the_targets_do(data, small_backbone):
    """Targets that are the classes: the vote among predictions beats chance by far without a label in the set."""
    pairs = SourcePairs(data.train, functional.one_hot(data.train.labels, 10).float(), data.pixel_space)
    accuracy = KernelRegression(KrrSettings())(pretrained(small_backbone, pairs), data)[0].value
    shuffled = SourcePairs(data.train, pairs.targets.roll(1, 0), data.pixel_space)
    assert accuracy > 0.6
    assert KernelRegression(KrrSettings(ridge=1e6))(pretrained(small_backbone, shuffled), data)[0].value < accuracy


def test_at_most_so_many_pairs_are_regressed_on(data, small_backbone):
    targets = draw(200, 4, dtype=torch.float32)
    pairs = SourcePairs(data.train, targets, data.pixel_space)
    known = replace(data, heldout_targets=draw(80, 4, seed=1, dtype=torch.float32))
    values = [
        KernelRegression(KrrSettings(max_pairs=pairs_used))(pretrained(small_backbone, pairs, seed), known)[0].value
        for pairs_used, seed in ((10, 0), (10, 0), (10, 1), (200, 0), (999, 1))
    ]
    assert values[0] == values[1] and values[0] != values[2]
    assert values[3] == values[4]
    chosen = torch.randperm(200, generator=generator(0, "regressed pairs"))[:10]
    fresh = small_backbone(0).eval()
    train, test = (features_of(fresh, data, bank).double() for bank in (data.train, data.heldout))
    guess = predict(train[chosen], targets[chosen].double(), test)
    assert values[0] == pytest.approx((guess - known.heldout_targets).square().mean().item(), rel=1e-4)


def test_pairs_that_are_not_finite_are_refused(data, small_backbone):
    pairs = MadePairs(data.images(data.train)[:9], torch.full((9, 4), torch.nan))
    with pytest.raises(InputError, match="targets predicted from the set are not finite"):
        KernelRegression(KrrSettings())(pretrained(small_backbone, pairs), data)


def test_features_that_are_not_finite_are_refused(data, small_backbone):
    trained = pretrained(small_backbone)
    nn.init.constant_(next(trained.student.parameters()), torch.nan)
    with pytest.raises(InputError, match="a student diverges"):
        NearestNeighbours(KnnSettings())(trained, data)
