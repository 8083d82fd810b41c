"""Accuracy from a set alone, beside a training written in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_cases import CPU, Linear, bright_bank, bright_data
from torch import nn

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluation.protocols.accuracy import Accuracy, AccuracySettings, check_labels, classification_loss, learn
from ssdd_hub.evaluation.protocols.base import Pretrained
from ssdd_hub.models.pretraining import StudentTrainingSettings
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import draw_batch, seeded
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs

SPACE, USE = PixelSpace((0.4,), (0.3,)), StudentTrainingSettings()


def build():
    with seeded(3, "student"):
        return Resettable(64).eval()


class Resettable(Linear):
    """A linear student, whose head can be replaced as timm's are."""

    def reset_classifier(self, num_classes):
        self.head = nn.Linear(64, num_classes)


def make_set(labels=(0, 1, 2) * 4, names=None, seed=5):
    bank = bright_bank(labels, seed)
    images = SPACE.normalise(bank.pixels.float() / 255)
    return DistilledSet(images, torch.eye(3)[bank.labels] - 1 / 3, SPACE, labels=bank.labels, label_names=names)


def named(data, names):
    return replace(data, train=replace(data.train, label_names=names))


def softmax(values):
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("loss", ["hard", "soft", "mse"])
def test_losses_and_gradients_are_those_of_the_formulas(loss):
    drawn = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(2, 5, 4, dtype=torch.float64, generator=drawn)
    labels = torch.tensor([0, 3, 1, 1, 2])
    settings = AccuracySettings(loss=loss, temperature=0.3 if loss == "soft" else 1.0)
    outputs.requires_grad_()
    value = classification_loss(outputs, targets, labels, settings)
    value.backward()
    own, wanted = outputs.detach().numpy(), targets.numpy()
    if loss == "mse":
        expected, slope = ((own - wanted) ** 2).mean(), 2 * (own - wanted) / own.size
    else:
        shares = np.eye(4)[labels] if loss == "hard" else softmax(wanted / 0.3)
        expected, slope = -(shares * np.log(softmax(own))).sum(1).mean(), (softmax(own) - shares) / len(own)
    assert abs(value.item() - expected) < 1e-12
    np.testing.assert_allclose(outputs.grad.numpy(), slope, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ["step", "constant", "cosine"])
def test_a_training_is_sgd_with_momentum_written_out(schedule):
    distilled = make_set()
    settings = AccuracySettings(epochs=6, batch_size=4, learning_rate=0.05, schedule=schedule, weight_decay=0.1)
    student = build().double()
    weight, bias = (student.get_parameter(f"head.{name}").detach().numpy().copy() for name in ("weight", "bias"))
    images, labels = distilled.images.double(), distilled.labels
    pairs = SetPairs(distilled)
    pairs._tensors = {name: tensor.double() for name, tensor in pairs._tensors.items()}
    learn(student, pairs, labels, settings, "none", 7)
    assert settings.num_steps(12) == 18
    flat, speeds = images.flatten(1).numpy(), [np.zeros_like(weight), np.zeros_like(bias)]
    for step in range(18):
        rows = draw_batch(12, 4, 7, "labels of the set", step)
        seen = flat[rows]
        slope = (softmax(seen @ weight.T + bias) - np.eye(3)[labels[rows]]) / 4
        rate = {"step": 0.05 if step <= 9 else 0.005, "constant": 0.05}.get(schedule)
        rate = rate or 0.05 * (1 + np.cos(np.pi * step / 18)) / 2
        for number, (part, grown) in enumerate(((weight, slope.T @ seen), (bias, slope.sum(0)))):
            speeds[number] = 0.9 * speeds[number] + grown + 0.1 * part
            part -= rate * speeds[number]
    for name, part in (("weight", weight), ("bias", bias)):
        np.testing.assert_allclose(student.get_parameter(f"head.{name}").detach().numpy(), part, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", ["hard", "soft", "mse"])
@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip", "dsa"])
def test_a_set_teaches_the_classes_of_its_labels(loss, augment):
    data, distilled = bright_data(), make_set()
    settings = AccuracySettings(loss=loss, epochs=150, learning_rate=0.02, augment=augment)
    [measure] = Accuracy(settings, USE)(Pretrained(build(), build, SetPairs(distilled), 1), data)
    assert (measure.metric, measure.labels) == ("accuracy", None) and measure.value > 0.6
    assert len(measure.by_class) == 3 and abs(np.mean(measure.by_class) - measure.value) < 1e-3
    # Wrong labels teach wrong classes.
    turned = replace(distilled, labels=(distilled.labels + 1) % 3, targets=distilled.targets.roll(1, 1))
    [wrong] = Accuracy(settings, USE)(Pretrained(build(), build, SetPairs(turned), 1), data)
    assert wrong.value < 0.4


def test_the_student_is_left_as_it_is_and_the_same_call_gives_the_same_number():
    data, student = bright_data(), build()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    protocol = Accuracy(AccuracySettings(epochs=20, augment="dsa"), USE)
    given = Pretrained(student, build, SetPairs(make_set()), 1)
    assert protocol(given, data) == protocol(given, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    # What the student was pre-trained to does not matter.
    other = Pretrained(Resettable(64), build, given.pairs, 1)
    assert protocol(other, data) == protocol(given, data)


def test_the_augmentation_is_that_of_the_set_unless_given():
    data = bright_data()
    for augment, use, meant in (("own", "flip", "flip"), ("dsa", "flip", "dsa"), ("own", "views", "views")):
        protocol = Accuracy(AccuracySettings(augment=augment), StudentTrainingSettings(augment=use))
        assert protocol.key(data)["augment"] == meant


def test_it_applies_to_sets_with_labels_of_the_same_classes():
    protocol, data = Accuracy(AccuracySettings(), USE), named(bright_data(), ["a", "b", "c"])

    def applies(distilled, data=data):
        return protocol.applies(Pretrained(build(), build, SetPairs(distilled), 0), data)

    assert applies(make_set()) and applies(make_set(names=["a", "b", "c"]))
    assert applies(make_set(names=["x", "y", "z"]), named(data, None))
    assert not applies(make_set(names=["x", "y", "z"])) and not applies(replace(make_set(), labels=None))
    unknown = make_set().labels.clone()
    unknown[2] = -1
    assert not applies(replace(make_set(names=["a", "b", "c"]), labels=unknown))
    whole = SourcePairs(data.train, torch.zeros(60, 3), SPACE, CPU)
    assert protocol.applies(Pretrained(build(), build, whole, 0), data)
    assert not protocol.applies(Pretrained(build(), build, None, 0), data)


def test_sets_without_labels_and_targets_of_no_classes_are_refused():
    with pytest.raises(InputError, match="mine has none, or not of every image.*--targets.of labels"):
        check_labels("mine", replace(make_set(), labels=None))
    check_labels("mine", make_set())
    narrow = replace(make_set(), targets=torch.zeros(12, 2))
    protocol = Accuracy(AccuracySettings(loss="mse"), USE)
    with pytest.raises(InputError, match="not of the classes of made: give --accuracy.loss hard"):
        protocol(Pretrained(build(), build, SetPairs(narrow), 0), bright_data())
    with pytest.raises(SettingsError, match="temperature is for --accuracy.loss soft"):
        AccuracySettings(temperature=2.0)


def test_soft_labels_and_the_learning_rate_are_those_that_the_record_states():
    def states(**learned):
        return {"learned": learned}

    datm, own = states(label_scale=10.0, learning_rate=0.03), AccuracySettings(loss="soft", learned_rate=True)
    found = own.of_sets({"mine": datm})
    assert (found.temperature, found.learning_rate, found.learned_rate) == (0.1, 0.03, False)
    # DATM trains on the softmax of 10 times its labels: of ten classes, first labels give the class e^10 / (e^10 + 9).
    labels = torch.eye(10, dtype=torch.float64) - 0.1
    outputs = torch.zeros(10, 10, dtype=torch.float64)
    outputs[:, 0] = 1.0
    loss = classification_loss(outputs[:1], labels[:1], torch.tensor([0]), found)
    share = np.exp(10) / (np.exp(10) + 9)
    assert loss.item() == pytest.approx(np.log(np.e + 9) - share, rel=1e-12) and share == pytest.approx(
        0.9996, abs=5e-5
    )
    given = AccuracySettings(loss="soft", temperature=1.0).of_sets({"mine": datm})
    assert (given.temperature, given.learning_rate) == (1.0, 0.01)
    assert AccuracySettings(loss="soft").of_sets({"mine": {}}).temperature == 1
    assert AccuracySettings().of_sets({"mine": datm}) == AccuracySettings()
    # Scores that were stored before are those of the same settings.
    key = Accuracy(AccuracySettings(), USE).key(bright_data())
    assert key["temperature"] == 1.0 and "learned_rate" not in key
    for wrong in (None, -0.1, 0, float("inf"), float("nan"), 1e9, "0.1", True, [0.1]):
        record = states(**({} if wrong is None else {"learning_rate": wrong}))
        told = "must state learned.learning_rate, a number from 1e-06 to 10000, and that of mine states"
        with pytest.raises(InputError, match=f"{told} .*: give --accuracy.learned-rate false --accuracy"):
            AccuracySettings(learned_rate=True).of_sets({"mine": record})
    both = {"mine": datm, "yours": states(label_scale=5)}
    with pytest.raises(InputError, match=r"different numbers as learned.label_scale \(mine 10, yours 5\)"):
        AccuracySettings(loss="soft").of_sets(both)


def test_a_training_that_diverges_is_named():
    protocol = Accuracy(AccuracySettings(epochs=80, learning_rate=1e30), USE)
    with pytest.raises(InputError, match="diverges at step .* lower --accuracy.learning-rate"):
        protocol(Pretrained(build(), build, SetPairs(make_set()), 0), bright_data())
