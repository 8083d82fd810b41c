import copy
import math

import pytest
import torch
from evaluation_cases import SPACE, bright_data as make_data, make_network, pretrained
from torch import nn
from torch.nn import functional

from ssdd_hub.data.augment import crop_flip, draw_views
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.base import Measure
from ssdd_hub.evaluation.protocols.finetune import (
    FinetuneSettings,
    FineTuning,
    batch_statistics,
    fine_tune,
    score,
    with_new_head,
)
from ssdd_hub.evaluation.protocols.linear_probe import draw_order
from ssdd_hub.seeds import draw_batch, generator

QUICK = {"steps": 60, "batch_size": 16, "learning_rate": 0.02, "augment": "none"}


# What comes out


def test_classes_that_differ_in_brightness_are_told_apart():
    data = make_data([0, 1, 2] * 20, [0, 1, 2] * 10)
    protocol = FineTuning(FinetuneSettings(**QUICK))
    assert protocol(pretrained(make_network()), data) == [Measure("accuracy", 1.0, 1.0, [1.0, 1.0, 1.0])]


def test_labels_that_the_images_do_not_tell_leave_chance():
    data = make_data([0] * 60, [0] * 200)
    for bank in (data.train, data.heldout):
        bank.labels = torch.arange(len(bank)) % 2
    (found,) = FineTuning(FinetuneSettings(**QUICK))(pretrained(make_network()), data)
    # Five standard deviations of 200 coins.
    assert abs(found.value - 0.5) < 5 * 0.5 / math.sqrt(200)


def test_labels_that_are_no_classes_are_refused_before_they_are_sizes():
    with pytest.raises(InputError, match="must be classes from 0 on, at most 1048576 .* is 1000000000000"):
        make_data([0, 10**12] * 20).num_classes  # noqa: B018


def test_unknown_and_unheard_of_classes():
    # Class 1 has no image to learn from; class 7 is in the held-out images alone; -1 is neither learnt nor scored.
    data = make_data([0, 2, -1] * 20, [0, 2, 7, 1, -1] * 6)
    assert data.num_classes == 3
    (found,) = FineTuning(FinetuneSettings(**QUICK))(pretrained(make_network()), data)
    assert found.value == 0.5


def test_one_labelled_pair_and_one_held_out_image_are_enough():
    amounts = [2, 0.01, 500]
    settings = FinetuneSettings(**{**QUICK, "augment": "crop-flip", "steps": 3}, labels=amounts)
    found = FineTuning(settings)(pretrained(make_network()), make_data([0, 2] * 5, [2]))
    assert [(one.labels, type(one.labels)) for one in found] == [(amount, type(amount)) for amount in amounts]
    # A share of one image counts as two, and there are ten.
    assert found[0].value == found[1].value
    assert all(one.value in (0, 1) for one in found)


# How it is trained


def test_it_is_the_loop_written_by_hand():
    """SGD with momentum and weight decay at a cosine's rate, in float64, without torch's optimizer or schedule."""
    data = make_data([0, 1, 2, 1, 0, 2, 2, 1], [0])
    settings = FinetuneSettings(steps=4, batch_size=3, learning_rate=0.05, weight_decay=0.01)
    student = make_network().double()
    expected, indices = copy.deepcopy(student).train(), torch.tensor([7, 1, 2, 3, 4])
    labels = data.train.labels[indices]
    speeds = [torch.zeros_like(parameter) for parameter in expected.parameters()]
    for step in range(4):
        chosen = draw_batch(5, 3, 9, "fine-tuning", step)
        views = draw_views(3, generator(9, "augmentation of fine-tuning", step))
        pixels = crop_flip(data.train.pixels[indices[chosen]], views).double() / 255
        loss = -expected((pixels - 0.4) / 0.3).log_softmax(1)[range(3), labels[chosen]].mean()
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        rate = 0.05 * (1 + math.cos(math.pi * step / 4)) / 2
        with torch.no_grad():
            for parameter, gradient, speed in zip(expected.parameters(), gradients, speeds, strict=True):
                speed.mul_(0.9).add_(gradient + 0.01 * parameter)
                parameter -= rate * speed
    trained = fine_tune(student, data, indices, settings, seed=9)
    assert not trained.training
    for (name, value), wanted in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9, msg=name)


def test_all_that_is_drawn_follows_from_the_seed_and_not_from_the_set():
    data = make_data([0, 1, 2] * 4, [0, 1, 2] * 4)
    head = with_new_head(make_network(0), 3, 5).head
    assert torch.equal(head.weight, with_new_head(make_network(1), 3, 5).head.weight)
    assert not torch.equal(head.weight, with_new_head(make_network(0), 3, 6).head.weight)
    protocol = FineTuning(FinetuneSettings(steps=5, labels=[0.5, 4]))
    state = torch.random.get_rng_state()
    first, again = (protocol(pretrained(make_network(), seed=5), data) for _ in range(2))
    assert first == again
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_labelled_images_are_those_of_the_probe(monkeypatch):
    data, seen = make_data([0, -1, 1, 2, 1, 0, 2, 1, 0], [0]), []
    monkeypatch.setattr("ssdd_hub.evaluation.protocols.finetune.fine_tune", lambda *args: seen.append(args[2]))
    FineTuning(FinetuneSettings(labels=[0.5, 6]))(pretrained(make_network(), seed=3), data)
    known = torch.tensor([0, 2, 3, 4, 5, 6, 7, 8])
    order = draw_order(data.train.labels[known], 3, 0)
    for indices, count in zip(seen, (4, 6), strict=True):
        assert torch.equal(indices, known[order[:count]])


def test_a_new_head_keeps_the_body_and_the_student():
    student = make_network()
    before = copy.deepcopy(student.state_dict())
    copied = with_new_head(student, 7, 0)
    assert copied.head.out_features == 7 and student.head.out_features == 3
    body = {name: value for name, value in copied.state_dict().items() if not name.startswith("head")}
    assert all(torch.equal(value, before[name]) for name, value in body.items())
    FineTuning(FinetuneSettings(steps=2))(pretrained(student), make_data([0, 1] * 3, [0]))
    assert not student.training
    assert all(map(torch.equal, student.state_dict().values(), before.values()))


@pytest.mark.parametrize("kind", ["none", "flip"])
def test_images_are_shown_as_they_are_or_mirrored_half_of_the_time(kind):
    data, seen = make_data([0, 1] * 100, [0]), []
    student = make_network(norm="none")
    student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    settings = FinetuneSettings(steps=2, batch_size=200, augment=kind)
    fine_tune(student, data, torch.arange(200), settings, 0)
    for step, images in enumerate(seen):
        real = data.images(data.train, draw_batch(200, 200, 0, "fine-tuning", step))
        same, mirrored = ((images == shown).flatten(1).all(1) for shown in (real, real.flip(-1)))
        assert (same ^ mirrored).all()
        assert same.all() if kind == "none" else 65 < same.sum() < 135
    assert not torch.equal(seen[0], seen[1])


def test_borders_are_black():
    data, seen = make_data([2] * 30, [0]), []
    student = make_network(norm="none")
    student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    fine_tune(student, data, torch.arange(30), FinetuneSettings(steps=1, batch_size=30), 0)
    pixels = SPACE.denormalise(seen[0])
    # The images themselves are of 128 and more.
    outside = pixels < 0.3
    assert outside.any() and pixels[outside].abs().max() < 1e-6
    assert (pixels[~outside] > 0.5).all()


def test_divergence_is_reported():
    data, student = make_data([0, 1, 2] * 4, [0, 1, 2]), make_network()
    settings = FinetuneSettings(steps=40, learning_rate=1e30, augment="none")
    with pytest.raises(InputError, match=r"diverges at step \d+ on the target: lower --finetune\.learning-rate"):
        FineTuning(settings)(pretrained(make_network(norm="none")), data)
    student.head.bias.data[1] = torch.nan
    with pytest.raises(InputError, match=r"diverges on made: lower --kd\.learning-rate"):
        score(student, data, "kd")


# Scoring


def test_a_score_counts_what_is_right():
    def student(images):
        """Says of an image its class by brightness, wrongly of every third."""
        classes = (SPACE.denormalise(images).mean((1, 2, 3)) * 255 / 64).long()
        classes[::3] += 1
        return functional.one_hot(classes, 9).float()

    # Of the six that are known, the first and the fourth are mistaken.
    found = score(student, make_data([0, 1, 3], [0, 1, -1, 2, 1, 0, 2]), "finetune")
    assert found == Measure("accuracy", pytest.approx(4 / 6), None, [0.5, 0.5, 1.0, None])


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_batch_statistics_are_those_of_train_mode_and_leave_no_trace(norm):
    student = make_network(norm=norm)
    student.blocks.append(nn.Dropout(0.5).eval())
    images = torch.randn(6, 1, 8, 8, generator=generator(0, "images")) * 3 + 1
    before, expected = copy.deepcopy(student.state_dict()), copy.deepcopy(student)
    for module in expected.modules():
        module.train(not isinstance(module, nn.Dropout))
    alone = student(images)
    with batch_statistics(student):
        assert torch.equal(student(images), expected(images))
    assert all(map(torch.equal, student.state_dict().values(), before.values()))
    assert torch.equal(student(images), alone)
    assert torch.equal(alone, expected.eval()(images)) == (norm == "none")


def test_batch_statistics_end_with_an_error_too():
    student = make_network()
    with pytest.raises(RuntimeError), batch_statistics(student):
        student(torch.zeros(2, 3, 8, 8))
    assert not any(module.training for module in student.modules())
    assert all(m.track_running_stats for m in student.modules() if isinstance(m, nn.BatchNorm2d))
