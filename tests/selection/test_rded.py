"""RDED beside a second implementation in plain loops: every crop of every image, resized and judged one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_selection import SMALL
from test_start import labelled as labelled  # a fixture

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.entries import Baselines, select
from ssdd_hub.seeds import derive_seed
from ssdd_hub.selection import rded
from ssdd_hub.selection.methods import train_expert
from ssdd_hub.selection.rded import draw_boxes, tile_crops
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.selection.start import start_from
from ssdd_hub.sets.distilled import DistilledSet

TILED = replace(SMALL, tile_factor=2, tile_crops=3)
SEED = 7


def resized(line, size):
    """A line of numbers at another length: means by triangles as wide as the larger step."""
    scale = len(line) / size
    wide, found = max(scale, 1.0), []
    for place in range(size):
        centre = (place + 0.5) * scale
        weights = [max(0.0, 1 - abs(number + 0.5 - centre) / wide) for number in range(len(line))]
        found.append(sum(w * value for w, value in zip(weights, line, strict=True)) / sum(weights))
    return found


def crop_of(image, box, side):
    """A crop of an image `(H, W)` of so many pixels a side, rounded."""
    top, left, size = box
    part = np.array([resized(row, side) for row in image[top : top + size, left : left + size].astype(float)])
    return np.round(np.array([resized(column, side) for column in part.T]).T)


def all_tiles(source, boxes):
    pixels = source.bank.pixels[:, 0].numpy()
    return [[crop_of(image, box, 8) for box in own] for image, own in zip(pixels, boxes.tolist(), strict=True)]


def large(tile):
    """A tile of 8 x 8 as it is seen, `(1, 1, 16, 16)`."""
    tile = np.array([[resized(row, 16)] for row in tile])[:, 0]
    return torch.tensor(np.array([resized(column, 16) for column in tile.T]).T / 255).float()[None, None]


def errors_of_crops(tiles, error):
    return np.array([[error(number, large(tile)) for tile in own] for number, own in enumerate(tiles)])


def check_tiles(made, places, tiles, best):
    """Each image has the best crop of each of its source images, from the top left."""
    for image, parts in zip(made[:, 0].numpy(), places.tolist(), strict=True):
        for corner, part in enumerate(parts):
            top, left = 8 * (corner // 2), 8 * (corner % 2)
            np.testing.assert_allclose(image[top : top + 8, left : left + 8], tiles[part][best[part]], atol=1)


def test_without_labels_crops_are_kept_that_are_for_the_teacher_what_their_image_is(source):
    given = source()
    images, targets, places = tile_crops(given, 3, SEED, TILED)
    tiles = all_tiles(given, draw_boxes(20, 3, 16, 16, SEED))

    def error(number, seen):
        return (given.transform(given.teacher(seen)) - given.targets[number : number + 1]).square().mean().item()

    errors = errors_of_crops(tiles, error)
    assert sorted(places.flatten().tolist()) == sorted(errors.min(1).argsort()[:12].tolist())
    check_tiles(images, places, tiles, errors.argmin(1))
    torch.testing.assert_close(targets, given.transform(given.teacher(images / 255)), rtol=1e-4, atol=1e-5)
    again = tile_crops(given, 3, SEED, TILED)
    assert all(map(torch.equal, again, (images, targets, places)))
    assert not torch.equal(tile_crops(given, 3, SEED + 1, TILED)[0], images)


def test_with_labels_the_cross_entropy_of_experts_to_the_class_decides(labelled):
    given = labelled((14, 12, 9))
    images, targets, places = tile_crops(given, 5, SEED, TILED)
    assert torch.equal(targets.argmax(1), torch.tensor([0, 1, 2, 0, 1]))
    assert torch.equal(given.bank.labels[places], targets.argmax(1)[:, None].expand(-1, 4))
    tiles = all_tiles(given, draw_boxes(35, 3, 16, 16, SEED))
    pairs = SourcePairs(given.bank, given.targets, given.pixel_space)
    experts = [train_expert(given, pairs, SEED, TILED, number) for number in range(2)]

    def error(number, seen):
        odds = [expert(given.pixel_space.normalise(seen))[0].detach().double().numpy() for expert in experts]
        own = int(given.bank.labels[number])
        return np.mean([np.log(np.exp(each).sum()) - each[own] for each in odds])

    errors = errors_of_crops(tiles, error)
    for number, count in enumerate((2, 2, 1)):
        rows = (given.bank.labels == number).nonzero()[:, 0].numpy()
        expected = rows[errors[rows].min(1).argsort()[: 4 * count]]
        assert sorted(places[targets.argmax(1) == number].flatten().tolist()) == sorted(expected.tolist())
    check_tiles(images, places, tiles, errors.argmin(1))


def test_crops_are_squares_inside_of_a_quarter_of_the_area_and_more():
    boxes = draw_boxes(500, 4, 16, 24, 0)
    top, left, side = boxes.flatten(0, 1).unbind(1)
    assert side.min() == 8 and side.max() == 16 and (top >= 0).all() and (left >= 0).all()
    assert (top + side).max() == 16 and (left + side).max() == 24
    assert ((side.double() / 16) ** 2).mean() == pytest.approx(0.625, abs=0.02)


def test_as_a_start_and_as_a_reference_they_are_the_same_images(source, tmp_path):
    given = source()
    images, targets, places = start_from("rded", given, 4, 3, TILED, torch.float64)
    made = select("rded", given, 4, derive_seed(3, "first images"), TILED)
    torch.testing.assert_close(given.pixel_space.denormalise(made.images), images.float(), rtol=0, atol=1e-6)
    assert torch.equal(made.targets, targets) and places.shape == (4, 4)
    assert made.labels is None and made.provenance["method"] == "selection/rded"
    assert len(places.unique()) == 16
    card = (made.save(tmp_path / "set") / "README.md").read_text("utf-8")
    assert "4 tiled images" in card and "cropped, shrunk and tiled" in card and "unchanged" not in card
    # Exact as pictures of 8 bits.
    entry = Baselines(tmp_path / "references", given, TILED, 0)
    entry.prepare(["rded"], [4], 1, progress=False)
    (found,) = entry.set_entries(["rded"], [4])
    stored = found.pairs(0).distilled
    assert found.size(0)["images"] == 4
    levels = stored.compact("uint8", "float32").packed.tensors["images"] / 255
    torch.testing.assert_close(given.pixel_space.denormalise(stored.images), levels, rtol=0, atol=1e-6)
    assert isinstance(DistilledSet.load(tmp_path / "set"), DistilledSet)


def test_few_crops_are_in_memory_at_a_time(source, monkeypatch):
    given = source()
    seen = []
    monkeypatch.setattr(rded, "_IMAGES", 4)
    whole = rded.crop
    monkeypatch.setattr(rded, "crop", lambda pixels, *rest: seen.append(len(pixels)) or whole(pixels, *rest))
    few = tile_crops(given, 3, SEED, TILED)
    assert max(seen) == 4 * 3 and len(seen) == 5 + 3
    monkeypatch.undo()
    assert torch.equal(few[0], tile_crops(given, 3, SEED, TILED)[0])


def test_what_cannot_be_tiled_is_refused_by_name(source, labelled):
    with pytest.raises(InputError, match="selection.tile_factor must divide the 16 x 16 pixels of images, got 3"):
        tile_crops(source(), 1, 0, replace(TILED, tile_factor=3))
    with pytest.raises(
        InputError, match="6 images of 4 tiles each take as many real ones, and there are 20 to choose"
    ):
        tile_crops(source(), 6, 0, TILED)
    with pytest.raises(InputError, match="and there are 8 to choose from: .* or raise selection.max_images"):
        tile_crops(source(), 3, 0, replace(TILED, max_images=8))
    with pytest.raises(
        InputError, match="2 images of class 1 of 4 tiles each take as many real ones, and there are 7"
    ):
        tile_crops(labelled(), 6, 0, TILED)
    with pytest.raises(InputError, match="crops diverges: lower --selection.expert-learning-rate"):
        tile_crops(labelled(), 1, 0, replace(TILED, expert_learning_rate=1e4, expert_steps=20))
