import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ssdd_hub.data.bank import ImageBank, draw_heldout, fingerprint_pixels
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.base import EvaluationProtocol, Pretrained
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform

CPU = torch.device("cpu")


class Linear(nn.Module):
    """A student whose features are its pixels, with timm's contract."""

    def __init__(self, pixels=4, width=3):
        super().__init__()
        self.head = nn.Linear(pixels, width)

    def forward_features(self, images):
        return images

    def forward_head(self, maps, pre_logits=False):
        return maps.flatten(1) if pre_logits else self.head(maps.flatten(1))

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def make_bank(pixels, labels=None):
    return ImageBank(pixels, labels, None, {"name": "made", "fingerprint": fingerprint_pixels(pixels)})


def draw_bank(count, labels=None, seed=0, size=2):
    pixels = torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(seed))
    return make_bank(pixels.to(torch.uint8), labels)


def make_data(train, heldout, targets=None):
    return RealData("made", train, heldout, PixelSpace((0.5,), (0.25,)), CPU, targets)


def exact(bank):
    """Returns a bank's images in the space of `make_data`, in float64."""
    return (bank.pixels.double() / 255 - 0.5) / 0.25


def ask(student, data, protocol=None):
    return (protocol or TeacherError())(Pretrained(student, Linear, None, 0), data)


# Labels


def test_there_are_labels_where_two_known_classes_can_be_learnt_and_something_scored():
    labelled = draw_bank(8, torch.arange(8) % 4)
    nothing, unknown, single = draw_bank(8), draw_bank(8, torch.full((8,), -1)), draw_bank(8, torch.zeros(8).long())
    two = draw_bank(8, torch.tensor([-1] * 6 + [0, 1]))
    one = draw_bank(8, torch.tensor([-1] * 7 + [3]))
    for train, heldout in ((labelled, labelled), (labelled, single), (two, one)):
        assert make_data(train, heldout).labelled is True
    pairs = [(nothing, labelled), (labelled, nothing), (unknown, labelled), (labelled, unknown)]
    for train, heldout in (*pairs, (single, labelled), (one, labelled)):
        assert make_data(train, heldout).labelled is False


def test_images_of_known_class_are_those_with_a_label():
    bank = draw_bank(5, torch.tensor([-1, 2, 0, -1, 7]))
    data = make_data(bank, draw_bank(2, torch.tensor([-1, -1])))
    assert data.known(data.train).tolist() == [1, 2, 4] and data.known(data.heldout).tolist() == []
    assert data.labels(data.train) is bank.labels


def test_labels_that_are_not_there_cannot_be_asked_for():
    data = make_data(draw_bank(2), draw_bank(2))
    for question in (data.known, data.labels):
        with pytest.raises(
            ValueError, match="labels of made are required, and it has none: check data.labelled first"
        ):
            question(data.train)


# Identity


def test_the_identity_changes_with_the_content_and_with_nothing_else():
    labels, targets = torch.arange(4) % 2, torch.randn(4, 3)
    train, heldout = draw_bank(6, torch.arange(6) % 3, seed=1), draw_bank(4, labels)
    data = make_data(train, heldout, targets)
    other = heldout.pixels.clone()
    other[3, 0, 1, 1] ^= 1
    changed = [
        replace(data, heldout=make_bank(other, labels)),
        replace(data, heldout=make_bank(heldout.pixels, 1 - labels)),
        replace(data, heldout=make_bank(heldout.pixels)),
        replace(data, train=train.subset(range(5))),
        replace(data, train=make_bank(train.pixels)),
        replace(data, train=heldout, heldout=train),
        replace(data, heldout_targets=targets + 1),
        replace(data, heldout_targets=targets.flip(0)),
        replace(data, heldout_targets=None),
        replace(data, pixel_space=PixelSpace((0.5,), (0.26,))),
    ]
    identities = [json.dumps(found.identity, sort_keys=True) for found in (data, *changed)]
    assert len(set(identities)) == len(identities)
    lazy = Targets(targets, TargetTransform.fit("none", targets))
    copy = make_bank(heldout.pixels.clone(), labels.clone())
    same = [replace(data, name="other"), replace(data, heldout=copy), replace(data, heldout_targets=lazy)]
    assert all(found.identity == data.identity for found in same)


def test_labels_in_another_memory_layout_are_the_same():
    labels = torch.stack([torch.arange(4), torch.zeros(4).long()], 1)[:, 0]
    pixels = draw_bank(4).pixels
    data, same = (make_data(make_bank(pixels, found), draw_bank(1)) for found in (labels, labels.contiguous()))
    assert data.identity == same.identity


# Images


def test_images_are_in_the_space_of_the_students():
    data = make_data(draw_bank(5), draw_bank(3, seed=1))
    found = data.images(data.heldout)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact(data.heldout), rtol=0, atol=1e-6)
    assert torch.equal(data.images(data.heldout, torch.tensor([2, 0])), found[[2, 0]])


def test_working_in_parts_changes_nothing():
    data, student, sizes = make_data(draw_bank(1100), draw_bank(1)), Linear(), []

    def watched(images):
        sizes.append(len(images))
        return student(images)

    found = data.apply(watched, data.train)
    assert sizes == [512, 512, 76] and not found.requires_grad and found.shape == (1100, 3)
    torch.testing.assert_close(found, student(data.images(data.train)).detach(), rtol=1e-5, atol=1e-6)
    rows = torch.tensor([1099, 3])
    torch.testing.assert_close(data.apply(student, data.train, rows), found[rows], rtol=1e-5, atol=1e-6)
    halves = data.apply(lambda images: student(images).bfloat16(), data.train, rows)
    assert halves.dtype == torch.float32
    assert torch.equal(halves, data.apply(student, data.train, rows).bfloat16().float())


# The error to the teacher


@pytest.mark.parametrize("size", [1, 5, 700])
def test_the_error_is_the_mean_square_over_images_and_dimensions(size):
    bank, student = draw_bank(size), Linear()
    targets = torch.randn(size, 3)
    images = exact(bank).flatten(1)
    weight, bias = student.head.weight.detach().double(), student.head.bias.detach().double()
    expected = (images @ weight.T + bias - targets).square().mean().item()
    (measure,) = ask(student, make_data(draw_bank(2), bank, targets))
    assert (measure.metric, measure.labels) == ("mse", None)
    assert measure.value == pytest.approx(expected, rel=1e-5)


def test_a_student_that_gives_the_targets_has_no_error():
    bank, student = draw_bank(9), Linear()
    targets = student(exact(bank).float()).detach()
    lazy = Targets(targets * 2 + 1, TargetTransform("centre", torch.ones(3).double(), 2 * torch.ones(3).double()))
    for given in (targets, lazy):
        assert ask(student, make_data(bank, bank, given))[0].value < 1e-11


def test_the_error_is_asked_for_where_targets_are_known():
    protocol, asked = TeacherError(), Pretrained(Linear(), Linear, None, 0)
    data = make_data(draw_bank(2), draw_bank(2))
    assert isinstance(protocol, EvaluationProtocol) and protocol.name == "teacher_error" and protocol.key(data) == {}
    assert protocol.applies(asked, replace(data, heldout_targets=torch.zeros(2, 3)))
    assert not protocol.applies(asked, data)
    with pytest.raises(ValueError, match="the teacher's targets of the held-out images are required"):
        protocol(asked, data)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_student_that_diverged_is_reported(value):
    student = Linear()
    nn.init.constant_(student.head.bias, value)
    with pytest.raises(InputError, match="a student diverges .* on the set: lower --use.learning-rate"):
        ask(student, make_data(draw_bank(2), draw_bank(2), torch.zeros(2, 3)))


# Held-out images


def test_held_out_images_are_drawn_by_seed_and_keep_their_order():
    bank = draw_bank(50, torch.arange(50))
    drawn, again, other = (draw_heldout(bank, 20, seed) for seed in (0, 0, 1))
    rows = drawn.labels
    assert len(rows.unique()) == 20 and torch.equal(rows, rows.sort().values)
    assert torch.equal(drawn.pixels, bank.pixels[rows]) and drawn.fingerprint != bank.fingerprint
    assert torch.equal(again.labels, rows) and not torch.equal(other.labels, rows)
    assert set(draw_heldout(bank, 5, 0).labels.tolist()) < set(rows.tolist())


def test_of_fewer_held_out_images_all_are_taken():
    bank = draw_bank(3, torch.arange(3))
    for most in (3, 10):
        drawn = draw_heldout(bank, most, 4)
        assert torch.equal(drawn.pixels, bank.pixels) and drawn.fingerprint == bank.fingerprint
