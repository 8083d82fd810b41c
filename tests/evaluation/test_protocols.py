"""What all protocols have in common, the real images that they measure on, and the error to the teacher."""

import json
from dataclasses import replace

import pytest
import torch
from evaluation_cases import CPU, Linear, MadePairs, draw_bank, make_bank
from torch import nn

from ssdd_hub.data.bank import draw_heldout
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluation.evaluation import EvaluateSettings
from ssdd_hub.evaluation.protocols.accuracy import Accuracy, AccuracySettings
from ssdd_hub.evaluation.protocols.base import EvaluationProtocol, Pretrained
from ssdd_hub.evaluation.protocols.finetune import FinetuneSettings, FineTuning
from ssdd_hub.evaluation.protocols.kd import KdSettings, KnowledgeDistillation
from ssdd_hub.evaluation.protocols.knn import KnnSettings, NearestNeighbours
from ssdd_hub.evaluation.protocols.krr import KernelRegression, KrrSettings
from ssdd_hub.evaluation.protocols.linear_probe import LinearProbe, MkdtProbe, ProbeSettings
from ssdd_hub.evaluation.protocols.rank import RankSettings
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.pretraining import StudentTrainingSettings
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform


def make_data(train, heldout, targets=None):
    return RealData("made", train, heldout, PixelSpace((0.5,), (0.25,)), CPU, targets)


def exact(bank):
    """Returns a bank's images in the space of `make_data`, in float64."""
    return (bank.pixels.double() / 255 - 0.5) / 0.25


def ask(student, data, protocol=None):
    return (protocol or TeacherError())(Pretrained(student, Linear, None, 0), data)


# All protocols

VOTE = {"neighbours": 200, "temperature": 0.1, "max_images": 50000}
SHARES = {"labels": [0.01, 0.05, 0.1, 0.5, 1.0], "draws": 3}
# The defaults are those of the papers.
KEYS = {
    "accuracy": {"loss": "hard", "temperature": 1.0, "epochs": 300, "max_steps": None, "batch_size": 256}
    | {"learning_rate": 0.01, "schedule": "step", "momentum": 0.9, "weight_decay": 5e-4, "augment": "flip"},
    "probe": SHARES | {"balanced": False, "heldout": 0.2, "ridges": [1e-4, 1e-3, 1e-2, 1e-1, 1.0], "max_iter": 1000},
    "probe_mkdt": SHARES,
    "finetune": {"steps": 10000, "batch_size": 256, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    | {"augment": "crop-flip", "labels": [1.0]},
    "knn": VOTE,
    "krr": {"ridge": 1e-6, "max_pairs": 50000, "vote": VOTE},
    "kd": {"classifier": "probe", "ridge": 1e-3, "epochs": 1000, "max_steps": None, "batch_size": 512}
    | {"learning_rate": 1e-4, "weight_decay": 0.0, "temperature": 1.0, "augment": "dsa", "student_mode": "eval"},
    "teacher_error": {},
}


@pytest.fixture
def protocols(small_teacher):
    teacher = small_teacher()
    KEYS["kd"]["network"] = teacher.identity()
    return [
        Accuracy(AccuracySettings(), StudentTrainingSettings(augment="flip")),
        LinearProbe(ProbeSettings()),
        MkdtProbe(ProbeSettings()),
        FineTuning(FinetuneSettings()),
        NearestNeighbours(KnnSettings()),
        KernelRegression(KrrSettings()),
        KnowledgeDistillation(KdSettings(), teacher),
        TeacherError(),
    ]


def test_the_key_of_each_protocol_is_its_settings(protocols):
    data = make_data(draw_bank(4, torch.arange(4) % 2), draw_bank(2, torch.arange(2)))
    assert all(isinstance(protocol, EvaluationProtocol) for protocol in protocols)
    assert {protocol.name: protocol.key(data) for protocol in protocols} == KEYS
    unlabelled = replace(data, heldout=draw_bank(2))
    assert "vote" not in KernelRegression(KrrSettings()).key(unlabelled)


@pytest.mark.parametrize("pairs", [None, MadePairs(torch.zeros(1, 1, 2, 2))])
@pytest.mark.parametrize("labels", [None, [0, 0, 0, 0], [0, 1, -1, -1]])
@pytest.mark.parametrize("targets", [None, torch.zeros(2, 3)])
def test_protocols_apply_where_they_have_labels_pairs_or_targets(protocols, pairs, labels, targets):
    bank = draw_bank(4, labels if labels is None else torch.tensor(labels))
    data, student = make_data(bank, draw_bank(2, torch.arange(2)), targets), Pretrained(Linear(), Linear, pairs, 0)
    labelled, known, paired = labels == [0, 1, -1, -1], targets is not None, pairs is not None
    expected = dict.fromkeys(("probe", "probe_mkdt", "finetune", "knn"), labelled) | {"teacher_error": known}
    expected |= {"accuracy": False, "kd": labelled and paired, "krr": (labelled or known) and paired}
    assert {protocol.name: protocol.applies(student, data) for protocol in protocols} == expected


def test_what_a_protocol_lacks_is_named(protocols):
    messages = {
        "krr": "kernel ridge regression needs pairs",
        "accuracy": "trained on a set with labels, and this one has none",
        "kd": "check applies first",
        "teacher_error": "the teacher's targets of the held-out images are required",
    }
    data = make_data(draw_bank(4, torch.arange(4) % 2), draw_bank(2, torch.arange(2)))
    for protocol in protocols:
        if protocol.name in messages:
            with pytest.raises(ValueError, match=messages[protocol.name]):
                ask(Linear(), data, protocol)


OUT_OF_RANGE = {
    EvaluateSettings: {"seeds": 0, "max_heldout": 0},
    ProbeSettings: {"labels": [1.5], "draws": 0, "heldout": 1.0, "ridges": [0.0], "max_iter": 0},
    AccuracySettings: {"loss": "kl", "temperature": 0, "epochs": 0, "max_steps": 0, "batch_size": 0}
    | {"learning_rate": 0, "schedule": "linear", "momentum": 1, "weight_decay": -1, "augment": "views"},
    FinetuneSettings: {"steps": 0, "batch_size": 0, "learning_rate": 0, "momentum": 1, "weight_decay": -1}
    | {"augment": "dsa", "labels": [0.5, 1.5]},
    KdSettings: {"ridge": 0, "epochs": 0, "max_steps": 0, "batch_size": 0, "learning_rate": 0, "weight_decay": -1}
    | {"temperature": 0, "augment": "crop", "student_mode": "train"},
    KnnSettings: {"neighbours": 0, "temperature": 0, "max_images": 0},
    KrrSettings: {"ridge": 0, "max_pairs": 0},
    RankSettings: {"by": "teacher", "variants": [{"name": "ssdd_convnet3"}] * 2},
}


@pytest.mark.parametrize("settings", OUT_OF_RANGE)
def test_settings_out_of_range_are_all_named(settings):
    values = OUT_OF_RANGE[settings]
    with pytest.raises(SettingsError) as caught:
        settings(**values)
    assert [problem.split(" must be ")[0] for problem in caught.value.problems] == [
        f"{settings.section}.{name}" for name in values
    ]


def test_numbers_of_labels_differ():
    with pytest.raises(SettingsError, match=r"probe\.labels must differ from each other, got \[0.5, 0.5\]"):
        ProbeSettings(labels=[0.5, 0.5])


@pytest.mark.parametrize("settings", [ProbeSettings, FinetuneSettings])
@pytest.mark.parametrize("labels", [[], [0.0], [-1.0], [2.5], [float("nan")], [float("inf")]])
def test_numbers_of_labels_are_shares_or_counts(settings, labels):
    with pytest.raises(SettingsError, match=rf"{settings.section}\.labels must be"):
        settings(labels=labels)


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


@pytest.mark.parametrize("method", ["known", "labels"])
def test_labels_that_are_not_there_are_missed(method):
    data = make_data(draw_bank(2), draw_bank(2))
    with pytest.raises(ValueError, match="labels of made are required, and it has none: check data.labelled first"):
        getattr(data, method)(data.train)


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_student_that_diverged_is_reported(value):
    student = Linear()
    nn.init.constant_(student.head.bias, value)
    with pytest.raises(InputError, match="a student diverges .* on the set: lower --student-training.learning-rate"):
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
    # Of fewer, all are taken.
    for most in (50, 90):
        drawn = draw_heldout(bank, most, 4)
        assert torch.equal(drawn.pixels, bank.pixels) and drawn.fingerprint == bank.fingerprint
