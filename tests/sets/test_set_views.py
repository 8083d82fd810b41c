import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_distilled import PARQUET, bits, make_set

from ssdd_hub.data.augment import crop_flip
from ssdd_hub.errors import InputError
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.pretraining import StudentTrainingSettings, fit_student
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.sets.views import add_views
from ssdd_hub.targets.transform import TargetTransform

RAW = PixelSpace.raw(1)
IDENTITY = torch.tensor([4, 4, 0])


def make_views(size=5, count=3, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(0, most, (size, count, 1), generator=generator) for most in (9, 9, 2)]
    targets = torch.randn(size, count, width, generator=generator)
    targets[0, 0, :2] = torch.tensor([-0.0, 1e-45])
    return {"views": torch.cat(parts, 2), "view_targets": targets}


@pytest.mark.parametrize("count", [1, 3])
def test_views_come_back_bit_for_bit(tmp_path, count):
    saved = make_set(**make_views(count=count))
    folder = saved.save(tmp_path / "set")
    loaded = DistilledSet.load(folder)
    assert torch.equal(loaded.views, saved.views) and loaded.views.dtype == torch.int64
    assert torch.equal(bits(loaded.view_targets), bits(saved.view_targets))
    assert f"Each image has {count} fixed views" in (folder / "README.md").read_text("utf-8")


def test_a_set_without_views_says_nothing_of_them(tmp_path):
    folder = make_set().save(tmp_path / "set")
    loaded = DistilledSet.load(folder)
    assert loaded.views is None and loaded.view_targets is None
    assert pq.read_schema(folder / PARQUET).names == ["id", "image", "pixels", "target"]
    assert json.loads((folder / "ssdd_hub.json").read_text())["tensors"].keys() == {"images", "targets"}
    assert "fixed views" not in (folder / "README.md").read_text("utf-8")


ZEROS = {"views": torch.zeros(5, 2, 3, dtype=torch.int64), "view_targets": torch.zeros(5, 2, 4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": None}, "belong together: give both views and view_targets, or neither"),
        ({"view_targets": None}, "belong together"),
        ({"views": ZEROS["views"].int()}, r"views must be \(5, K, 3\), int64, K at least 1; got .*torch\.int32"),
        ({"views": ZEROS["views"][:4]}, r"got \(4, 2, 3\)"),
        ({"views": ZEROS["views"][:, 0]}, r"got \(5, 3\)"),
        ({"views": ZEROS["views"][:, :0], "view_targets": ZEROS["view_targets"][:, :0]}, "K at least 1"),
        ({"view_targets": ZEROS["view_targets"].double()}, r"view_targets must be \(5, 2, 4\), float32; .*float64"),
        ({"view_targets": ZEROS["view_targets"][:, :1]}, r"got \(5, 1, 4\)"),
        ({"view_targets": ZEROS["view_targets"] * float("nan")}, "view_targets hold NaN"),
        (
            {"views": ZEROS["views"] - 1},
            r"two offsets in \[0, 8\] and a flip of 0 or 1, .* got .*\[-1, -1, -1\]",
        ),
        ({"views": ZEROS["views"] + torch.tensor([0, 9, 0])}, r"to \[0, 9, 0\]"),
        ({"views": ZEROS["views"] + torch.tensor([0, 0, 2])}, r"to \[0, 0, 2\]"),
    ],
)
def test_views_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_set(**{**ZEROS, **changes})


@pytest.fixture
def real(digits, small_teacher):
    """Builds a set of real images with their teacher's targets, the teacher and the transform."""

    def build(space=RAW, kind="standardise", size=7, dim=None):
        teacher, pixels = small_teacher(), digits[0].pixels[:size] / 255
        features = teacher(digits[0].pixels[:60] / 255)
        transform = TargetTransform.fit(kind, features, dim)
        made = DistilledSet(space.normalise(pixels), transform(teacher(pixels)), space)
        return made, teacher, transform, pixels

    return build


@pytest.mark.parametrize(("kind", "dim"), [("none", None), ("standardise", None), ("pca", 5)])
@pytest.mark.parametrize("space", [RAW, PixelSpace((0.3,), (0.2,))])
def test_the_target_of_a_real_view_is_the_teachers(real, kind, dim, space):
    made, teacher, transform, pixels = real(space, kind, dim=dim)
    viewed = add_views(made, teacher, transform, 3, 5)
    assert viewed.views.shape == (7, 3, 3) and len(viewed.views.flatten(0, 1).unique(dim=0)) > 10
    for view in range(3):
        expected = transform(teacher(crop_flip(pixels, viewed.views[:, view])))
        found = viewed.view_targets[:, view]
        if space is RAW:
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (found - made.targets).abs().max() > 1e-2
    assert torch.equal(viewed.images, made.images) and torch.equal(viewed.targets, made.targets)
    assert made.views is None


def test_views_may_be_rotations(real):
    made, teacher, transform, pixels = real()
    viewed = add_views(made, teacher, transform, 3, 5, "rotations")
    for view in range(3):
        turned = torch.from_numpy(np.rot90(pixels.numpy(), view + 1, (2, 3)).copy())
        torch.testing.assert_close(viewed.view_targets[:, view], transform(teacher(turned)), rtol=1e-4, atol=1e-4)
        shown, _ = SetPairs(viewed).view(torch.arange(7), torch.full((7,), view + 1))
        assert torch.equal(shown, turned)
    assert (SetPairs(viewed).view_kind, viewed.provenance["views"]["kind"]) == ("rotations", "rotations")
    assert SetPairs(add_views(made, teacher, transform, 3, 5)).view_kind == SetPairs(made).view_kind == "crops"
    with pytest.raises(InputError, match="must be at most 3 rotations, got 4"):
        add_views(made, teacher, transform, 4, 5, "rotations")


def test_a_learned_target_is_shifted_by_what_the_view_changes(real):
    made, teacher, transform, pixels = real()
    learned = replace(made, images=made.images * 3 - 1, targets=made.targets + 7)
    viewed = add_views(learned, teacher, transform, 2, 0)
    clamped = (pixels * 3 - 1).clamp(0, 1)
    for view in range(2):
        change = transform(teacher(crop_flip(clamped, viewed.views[:, view]))) - transform(teacher(clamped))
        torch.testing.assert_close(viewed.view_targets[:, view], learned.targets + change, rtol=1e-5, atol=1e-5)


def test_views_are_those_of_the_seed_and_do_not_depend_on_their_number(real):
    made, *rest, _ = real()
    two, three, other = (add_views(made, *rest, count, seed) for count, seed in ((2, 0), (3, 0), (3, 1)))
    assert torch.equal(two.views, three.views[:, :2]) and not torch.equal(three.views, other.views)
    assert torch.equal(add_views(other, *rest, 3, 0).view_targets, three.view_targets)
    assert three.provenance["views"] == {"count": 3, "seed": 0, "teacher": rest[0].weights_sha256()}


def test_views_of_many_images_are_made_in_batches(real, monkeypatch):
    made, *rest, _ = real()
    whole = add_views(made, *rest, 2, 0)
    monkeypatch.setattr("ssdd_hub.sets.views._BATCH", 2)
    torch.testing.assert_close(add_views(made, *rest, 2, 0).view_targets, whole.view_targets, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_the_set_is_refused(real, small_teacher):
    made, teacher, transform, _ = real()
    with pytest.raises(InputError, match="at least 1 view of each image, got 0"):
        add_views(made, teacher, transform, 0, 0)
    with pytest.raises(InputError, match="targets of the set's width 24, got 5"):
        add_views(made, teacher, TargetTransform.fit("pca", teacher(torch.rand(30, 1, 16, 16)), 5), 1, 0)
    stated = replace(made, provenance={"teacher": teacher.identity()})
    assert add_views(stated, teacher, transform, 1, 0).views is not None
    with pytest.raises(
        InputError, match="than small-1 .weights_sha256 is .*: give the teacher that the set was made with"
    ):
        add_views(stated, small_teacher(1), transform, 1, 0)
    teacher.interpolation = "bilinear"
    with pytest.raises(InputError, match="than small-0 .interpolation is recorded as 'bicubic', it is 'bilinear'"):
        add_views(stated, teacher, transform, 1, 0)


@pytest.mark.parametrize("space", [RAW, PixelSpace((0.3,), (0.2,))])
def test_pairs_give_the_image_or_the_view_that_is_asked_for(real, space):
    made, teacher, transform, pixels = real(space)
    viewed = add_views(made, teacher, transform, 2, 1)
    pairs = SetPairs(viewed)
    assert pairs.num_views == 2 and SetPairs(made).num_views == 0
    indices, views = torch.tensor([6, 0, 0, 3, 6]), torch.tensor([0, 1, 2, 2, 1])
    images, targets = pairs.view(indices, views)
    for row, (index, view) in enumerate(zip(indices.tolist(), views.tolist(), strict=True)):
        stored = viewed.views[index, view - 1 : view] if view else IDENTITY[None]
        seen = space.normalise(crop_flip(pixels[index : index + 1], stored))[0]
        torch.testing.assert_close(images[row], seen, rtol=1e-5, atol=1e-6)
        assert torch.equal(targets[row], viewed.view_targets[index, view - 1] if view else viewed.targets[index])


def train(made, augment, seed=0):
    torch.manual_seed(0)
    student = ConvNet((4, 4), "batch", 1, 16, made.targets.shape[1])
    settings = StudentTrainingSettings(epochs=4, batch_size=3, learning_rate=0.05, augment=augment)
    return fit_student(student, SetPairs(made), settings, seed).state_dict()


def test_a_view_that_changes_nothing_trains_as_no_view_does(real):
    # In raw space a black pixel is 0, so that cropping loses no digit.
    made, *_ = real(RAW)
    views = IDENTITY.expand(7, 1, 3).clone()
    same = replace(made, views=views, view_targets=made.targets[:, None].clone())
    expected, found = train(made, "none"), train(same, "views")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_view_trains_as_the_image_that_it_shows(real, monkeypatch):
    """Where view 1 is drawn always, training is that on the set of the views."""
    made, teacher, transform, pixels = real(RAW)
    viewed = add_views(made, teacher, transform, 1, 2)
    shown = DistilledSet(crop_flip(pixels, viewed.views[:, 0]), viewed.view_targets[:, 0], RAW)
    assert not torch.equal(train(viewed, "views")["head.weight"], train(shown, "none")["head.weight"])
    monkeypatch.setattr(
        "ssdd_hub.models.pretraining.torch.randint", lambda low, high, shape, generator: torch.ones(shape).long()
    )
    expected, found = train(shown, "none"), train(viewed, "views")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_views_that_are_not_there_cannot_be_used(real):
    with pytest.raises(InputError, match="student_training.augment is views, and the set holds none"):
        train(real()[0], "views")
