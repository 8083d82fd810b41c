"""What a distilled set starts from."""

from dataclasses import replace

import pytest
import torch
from test_selection import SMALL

from ssdd_hub.errors import InputError
from ssdd_hub.seeds import generator
from ssdd_hub.selection.clusters import Clusters
from ssdd_hub.selection.methods import CHOICES
from ssdd_hub.selection.start import INITS, start_from


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
    real = bool((images[:, None] == given.bank.pixels.double() / 255).flatten(2).all(2).any(1).all())
    assert real == (init not in ("noise", "mixed"))
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
