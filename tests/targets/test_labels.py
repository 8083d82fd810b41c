"""Class labels as targets: one-hot vectors, their centring, and images without a class."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssdd_hub.data.bank import DataSettings
from ssdd_hub.distill.batches import build_batches
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.inputs import fingerprint_labels
from ssdd_hub.targets.compute import compute_targets
from ssdd_hub.targets.labels import with_classes
from ssdd_hub.targets.targets import TargetSettings


@pytest.mark.parametrize("kind", ["none", "centre", "standardise", "standardise-each"])
def test_targets_are_centred_one_hot_vectors_whose_largest_entry_is_the_class(digits, accelerator, tmp_path, kind):
    source, heldout = digits
    settings = TargetSettings(of="labels", transform=kind)
    cache, targets = compute_targets(None, source, settings, tmp_path, accelerator)
    vectors = np.eye(10)[source.labels.numpy()]
    expected = vectors - vectors.mean(0)
    if kind == "standardise":
        expected /= np.sqrt((expected**2).mean())
    if kind == "standardise-each":
        expected /= np.sqrt((expected**2).mean(0))
    np.testing.assert_allclose(targets[:].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(targets[:].argmax(1), source.labels) and targets.width == 10
    rows = torch.tensor([5, 3, 5])
    assert torch.equal(targets[rows], targets[:][rows]) and not list(tmp_path.iterdir())
    back = targets.transform.inverse(targets[:])
    torch.testing.assert_close(back, torch.eye(10)[source.labels], rtol=0, atol=1e-6)
    assert torch.equal(cache.features(heldout)[:].argmax(1), heldout.labels)


def test_a_class_without_images_keeps_its_place(digits, accelerator, tmp_path):
    source = digits[0].subset((digits[0].labels != 9).nonzero()[:, 0])
    targets = compute_targets(None, source, TargetSettings(of="labels"), tmp_path, accelerator)[1]
    assert targets.width == 10 and torch.equal(targets[:].argmax(1), source.labels)


@pytest.mark.parametrize("views", [0, 2])
def test_augmented_images_keep_their_class(digits, accelerator, tmp_path, views):
    source = digits[0]
    cache, targets = compute_targets(None, source, TargetSettings(of="labels"), tmp_path, accelerator)
    common = {"batch_size": 32, "seed": 3, "views": views}
    space = PixelSpace.of(source.pixels)
    plain = build_batches(source, cache, targets, space, **{**common, "views": 0}, augment=False)
    moved = build_batches(source, cache, targets, space, **common, augment=True)
    (images, wanted), (crops, found) = plain(4), moved(4)
    assert torch.equal(found, wanted) and images.shape == crops.shape
    changed = (images != crops).flatten(1).any(1)
    assert changed.sum() > 20
    halves = [moved(4, rank, 2) for rank in range(2)]
    assert all(
        torch.equal(torch.cat(parts), whole)
        for parts, whole in zip(zip(*halves, strict=True), (crops, found), strict=True)
    )


def test_images_without_a_class_are_refused_or_left_out_and_listed(digits):
    labels = digits[0].labels.clone()
    labels[[4, 7]] = -1
    given = replace(digits[0], labels=labels)
    with pytest.raises(InputError, match="2 of 1397 images .* have no class.*on_corrupt skip"):
        with_classes(given, DataSettings())
    left = with_classes(given, DataSettings(on_corrupt="skip"))
    assert len(left) == 1395 and torch.equal(left.labels, labels[labels >= 0])
    assert torch.equal(left.pixels[4], given.pixels[5])
    about = left.provenance
    assert about["num_skipped"] == 2 and about["skipped"] == ["image 4: no class", "image 7: no class"]
    assert about["labels"] == fingerprint_labels(left.labels) and "labels" not in given.provenance
    assert about["num_images"] == 1395 and about["fingerprint"] != given.fingerprint
    with pytest.raises(InputError, match="have none: name their column by label_column"):
        with_classes(replace(given, labels=None), DataSettings())


def test_classes_are_not_projected():
    with pytest.raises(SettingsError, match="a dimension for each class.*got 'pca'"):
        TargetSettings(of="labels", transform="pca")
