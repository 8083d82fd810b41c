"""Groups of real images and of the set."""

import logging
from dataclasses import replace

import pytest
import torch
from reference.contract_cases import D, M, build, make_pairs, make_source

from ssdd_hub.distill.groups import Groups
from ssdd_hub.errors import InputError

LABELS = torch.arange(21) % D


@pytest.fixture
def problem(accelerator):
    """Builds a problem whose real images have targets of a teacher, or class labels."""

    def make(labels=None, **changed):
        source = replace(make_source(labels=labels), **changed)
        return build("dm", "pixels", accelerator, source=source).method.problem

    return make


def test_classes_are_the_groups_of_class_labels(problem):
    targets = torch.nn.functional.one_hot(torch.tensor([2, 0, 0, 2, 1, 0]), D).double() - 0.4
    groups = Groups.find(problem(LABELS), targets, count=9)
    assert groups.are_classes and groups.present == [0, 1, 2]
    assert torch.equal(groups.of_source, LABELS) and groups.of_set.tolist() == [2, 0, 0, 2, 1, 0]
    assert groups.rows(0).tolist() == [1, 2, 5]
    shown = groups.as_classes(make_pairs(6, 0), groups.of_set).targets
    assert shown.argmax(1).tolist() == groups.of_set.tolist() and shown.sum() == 6


def test_clusters_are_those_of_k_means_and_each_image_of_the_set_is_in_the_nearest(problem):
    given, pairs = problem(), make_pairs(M, 99)
    groups = Groups.find(given, pairs.targets, count=3)
    assert not groups.are_classes
    real = given.source.targets
    centres = torch.stack([real[groups.of_source == number].mean(0) for number in range(3)])
    # The fixed point of Lloyd's iteration.
    assert torch.equal(torch.cdist(real, centres).argmin(1), groups.of_source)
    assert torch.equal(torch.cdist(pairs.targets, centres).argmin(1), groups.of_set)
    again = Groups.find(given, pairs.targets, count=3)
    assert torch.equal(again.of_source, groups.of_source)
    loaded = Groups.load(given, groups.state_dict())
    assert torch.equal(loaded.of_source, groups.of_source) and torch.equal(loaded.of_set, groups.of_set)


def test_groups_without_an_image_of_the_set_are_left_out_and_said(problem, caplog):
    targets = torch.nn.functional.one_hot(torch.tensor([2, 2]), D).double()
    with caplog.at_level(logging.WARNING):
        groups = Groups.find(problem(LABELS), targets, count=1)
    assert groups.present == [2] and "2 of 3 groups have no image of the set and are left out" in caplog.text
    caplog.clear()
    Groups.find(problem(LABELS), torch.eye(D), count=1)
    assert not caplog.text


def test_an_image_of_a_group_without_real_images_is_refused(problem):
    with pytest.raises(
        InputError, match=r"images of groups \[2\], and there is no real image of these: start from re"
    ):
        Groups.find(problem(LABELS % 2), torch.eye(D), count=1)


def test_a_problem_without_its_source_is_refused(problem):
    with pytest.raises(InputError, match="this method needs all real images, not only batches: give Problem"):
        Groups.find(replace(problem(), source=None), torch.zeros(M, D), count=2)


@pytest.mark.parametrize("same", [3, 21])
def test_equal_targets_leave_no_group_without_real_images(problem, same):
    targets = make_source().targets.clone()
    targets[:same] = targets[0]
    targets[same:] = targets[-1]
    groups = Groups.find(problem(targets=targets), make_pairs(M, 99).targets, count=4)
    counts = torch.bincount(groups.of_source, minlength=4)
    assert all(counts[number] > 0 for number in groups.present)
    # All alike, they are dealt out.
    assert len(groups.present) == (4 if same == 21 else groups.of_set.unique().numel())


def test_real_images_of_a_group_are_drawn_by_step_without_one_twice(problem):
    given = problem(LABELS)
    groups = Groups.find(given, torch.eye(D), count=1)
    drawn = [groups.real(1, 3, step) for step in range(3)]
    assert all(pairs.images.shape == (3, 1, 8, 8) for pairs in drawn)
    assert all(torch.equal(pairs.targets.argmax(1), torch.ones(3, dtype=torch.int64)) for pairs in drawn)
    # Seven of this class: two batches share none.
    seen = torch.cat([drawn[0].images, drawn[1].images]).flatten(1)
    assert len(seen.unique(dim=0)) == 6
    assert torch.equal(groups.real(1, 3, 2).images, drawn[2].images)
    assert len(groups.real(1, 100, 0).images) == 7
    pairs, numbers = groups.any_real(10, "any", 4)
    assert torch.equal(pairs.targets.argmax(1), numbers) and len(numbers) == 10
    expected = given.source.images(torch.arange(21))
    assert all((expected - image).abs().flatten(1).amax(1).min() < 1e-5 for image in pairs.images)
