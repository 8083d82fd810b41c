"""What a distilled set starts from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_selection import SMALL

from ssdd_hub.errors import InputError
from ssdd_hub.seeds import derive_seed, generator
from ssdd_hub.selection.clusters import Clusters
from ssdd_hub.selection.methods import CHOICES, _expert_features
from ssdd_hub.selection.start import INITS, start_from
from ssdd_hub.targets.labels import OneHot
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers import build_teacher


def test_a_random_start_is_that_of_the_first_runs(source):
    given = source()
    rows = torch.randperm(20, generator=generator(3, "first images"))[:6]
    images, _, places = start_from("random", given, 6, 3, SMALL)
    assert torch.equal(images, given.bank.pixels[rows] / 255) and torch.equal(places, rows)


@pytest.mark.parametrize("init", INITS)
def test_every_start_gives_images_with_their_targets(source, init):
    given = source()
    images, targets, places = start_from(init, given, 6, 3, SMALL, torch.float64)
    assert images.dtype == torch.float64 and images.shape == (6, 1, 16, 16)
    torch.testing.assert_close(targets, given.transform(given.teacher(images.float())), rtol=1e-3, atol=1e-4)
    assert all(map(torch.equal, start_from(init, given, 6, 3, SMALL, torch.float64)[:2], (images, targets)))
    # A crop may be all of an image.
    real = init != "rded" and bool(
        (images[:, None] == given.bank.pixels.double() / 255).flatten(2).all(2).any(1).all()
    )
    assert real == (init not in ("noise", "mixed", "rded"))
    assert (init == "noise") == (places is None)
    assert not real or torch.equal(given.bank.pixels[places].double() / 255, images)


def test_a_mixed_start_is_the_average_of_four_images_that_differ(source):
    given = source()
    images, _, places = start_from("mixed", given, 30, 3, SMALL)
    assert places.shape == (30, 4) and all(len(set(row)) == 4 for row in places.tolist())
    expected = [sum(given.bank.pixels[place].double() for place in row) / (4 * 255) for row in places.tolist()]
    torch.testing.assert_close(images.double(), torch.stack(expected), rtol=0, atol=1e-6)


def test_noise_may_be_more_than_the_source_and_real_images_not(source):
    assert len(start_from("noise", source(), 30, 0, SMALL)[0]) == 30
    with pytest.raises(InputError, match="30 images are to be selected, and there are only 20: select fewer"):
        start_from("kcenter", source(), 30, 0, SMALL)


@pytest.mark.parametrize("init", CHOICES)
def test_a_balanced_start_has_as_many_images_of_each_cluster(source, init):
    given = source()
    numbers = Clusters.find(given, 3, 5).numbers
    assert torch.bincount(numbers).min() >= 2
    images, targets, places = start_from(init, given, 5, 5, replace(SMALL, balance=3))
    assert torch.bincount(numbers[places], minlength=3).tolist() == [2, 2, 1] and len(places.unique()) == 5
    assert torch.equal(images, given.bank.pixels[places] / 255) and torch.equal(targets, given.targets[places])


def test_a_cluster_that_is_too_small_for_a_balanced_start_is_named(source):
    with pytest.raises(InputError, match="7 first images of each of 3 clusters are to be chosen, and cluster . has"):
        start_from("random", source(), 19, 5, replace(SMALL, balance=3))


@pytest.fixture
def labelled(source):
    """Builds a source whose targets are its classes: `sizes` images of each."""

    def build(sizes=(9, 7, 4)):
        given = source(sum(sizes))
        classes = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        classes = classes[torch.randperm(len(classes), generator=generator(0, "classes"))]
        bank = replace(given.bank, labels=classes, label_names=[*"abcdefgh"[: len(sizes)]])
        vectors = OneHot(classes, len(sizes))
        transform = TargetTransform.fit("centre", vectors)
        return replace(given, bank=bank, teacher=None, targets=Targets(vectors, transform), transform=transform)

    return build


@pytest.mark.parametrize("init", INITS)
def test_a_start_by_classes_has_equally_many_of_each(labelled, init):
    given = labelled()
    images, targets, places = start_from(init, given, 12, 3, SMALL)
    assert images.shape == (12, 1, 16, 16) and torch.equal(targets.argmax(1), torch.arange(3).repeat(4))
    expected = torch.eye(3) - torch.tensor([9, 7, 4]) / 20
    torch.testing.assert_close(targets, expected.repeat(4, 1))
    if init in ("mixed", "rded"):
        expected = torch.arange(3).repeat(4)[:, None].expand_as(places)
        assert torch.equal(given.bank.labels[places], expected) and places.shape[1] == (4 if init == "mixed" else 1)
    elif init != "noise":
        assert torch.equal(given.bank.labels[places], targets.argmax(1)) and len(set(places.tolist())) == 12
        assert torch.equal(images, given.bank.pixels[places] / 255)
    assert torch.equal(start_from(init, given, 12, 3, SMALL)[0], images)


@pytest.mark.parametrize("init", [name for name in INITS if name not in ("noise", "mixed", "rded")])
def test_a_class_with_few_images_gives_all_of_them(labelled, init):
    given = labelled((9, 1, 5))
    chosen = start_from(init, given, 10, 3, SMALL)[1].argmax(1)
    assert torch.bincount(chosen).tolist() == [5, 1, 4]
    assert chosen.tolist() == [0, 1, 2, 0, 2, 0, 2, 0, 2, 0]


def test_herding_within_a_class_goes_by_the_features_of_a_trained_network(labelled):
    given = labelled()
    rows = start_from("herding", given, 6, 3, SMALL)[2]
    others = start_from("herding", given, 6, 3, replace(SMALL, expert_learning_rate=1.0))[2]
    assert not torch.equal(rows, others)
    # The first of a class is the one nearest to the mean of its class.
    features = _expert_features(given, derive_seed(3, "first images"), SMALL).double()
    own = (given.bank.labels == 0).nonzero()[:, 0]
    distances = (features[own] - features[own].mean(0)).square().sum(1)
    assert int(rows[0]) == int(own[distances.argmin()])


def test_herding_within_a_class_may_go_by_the_features_of_a_frozen_network(labelled):
    place = Path(__file__).parents[2] / "model_cards" / "cifar100-barlow-twins"
    settings, given = replace(SMALL, backbone=f"local-dir:{place}", backbone_size=32), labelled()
    rows = start_from("herding", given, 3, 3, settings)[2]
    network = build_teacher(settings.backbone)
    features = network(given.bank.pixels / 255).double()
    for number, row in enumerate(rows.tolist()):
        own = (given.bank.labels == number).nonzero()[:, 0]
        assert row == int(own[(features[own] - features[own].mean(0)).square().sum(1).argmin()])
