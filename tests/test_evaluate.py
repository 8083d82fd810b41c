import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluate import EvaluateSettings, evaluate, fit_student
from ssdd_hub.images import ImageBank, fingerprint_pixels
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.protocols import RealData, draw_labelled, in_chunks, linear_probe, teacher_error
from ssdd_hub.streams import seeded
from ssdd_hub.students import ConvNet

SETTINGS = EvaluateSettings(seeds=2, epochs=5, batch_size=8, learning_rate=0.05, labels=20)
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


def make_data(source, heldout):
    targets, heldout_targets = (
        torch.randn(len(bank), 3, generator=torch.Generator().manual_seed(number))
        for number, bank in enumerate((source, heldout))
    )
    return RealData(source, targets, heldout, heldout_targets, PixelSpace((0.5,), (0.25,)), CPU)


@pytest.fixture
def data(digits, small_teacher):
    """Digits and the targets of a small teacher."""
    source, heldout = digits[0].subset(range(300)), digits[1].subset(range(100))
    teacher = small_teacher()
    targets = [teacher(bank.pixels.float() / 255) for bank in (source, heldout)]
    return RealData(source, targets[0], heldout, targets[1], PixelSpace((0.3,), (0.4,)), CPU)


def build_student():
    return ConvNet((4, 8), "batch", 1, 16, num_targets=24)


# Pre-training


def test_a_linear_student_reaches_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(shape, generator=generator) for shape in ((40, 1, 2, 2), (40, 3)))
    targets = images.flatten(1) @ torch.randn(4, 3, generator=generator) + 1 + 0.1 * noise
    settings = EvaluateSettings(epochs=600, batch_size=40, learning_rate=0.2, weight_decay=0.0)
    student = fit_student(Linear(), images, targets, settings, seed=0)
    augmented = np.concatenate([images.flatten(1).numpy(), np.ones((40, 1))], 1)
    solution, residuals, *_ = np.linalg.lstsq(augmented, targets.numpy(), rcond=None)
    np.testing.assert_allclose(student.head.weight.detach().numpy(), solution[:4].T, atol=1e-4)
    np.testing.assert_allclose(student.head.bias.detach().numpy(), solution[4], atol=1e-4)
    loss = nn.functional.mse_loss(student(images), targets).item()
    assert loss == pytest.approx(residuals.sum() / targets.numel(), rel=1e-4)


def test_pre_training_is_sgd_on_the_mean_squared_error_in_shuffled_passes():
    images, targets = torch.randn(6, 1, 2, 2), torch.randn(6, 3)
    settings = EvaluateSettings(epochs=2, batch_size=6, learning_rate=0.1, momentum=0.5, weight_decay=0.01)
    with seeded(0, "student"):
        student = Linear()
    with seeded(0, "student"):
        twin = Linear()
    fit_student(student, images, targets, settings, seed=0)
    velocity = {}
    for _ in range(2):  # a batch of all images has the same gradient in any order
        twin.zero_grad()
        (twin(images) - targets).square().mean().backward()
        for name, parameter in twin.named_parameters():
            gradient = parameter.grad + 0.01 * parameter.detach()
            velocity[name] = gradient if name not in velocity else 0.5 * velocity[name] + gradient
            parameter.data -= 0.1 * velocity[name]
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs", "steps"), [(6, 2, 3, 9), (6, 100, 3, 3), (5, 2, 2, 5), (1, 1, 4, 4)]
)
def test_an_epoch_shows_every_image_once(count, batch_size, epochs, steps):
    seen = []

    class Student(Linear):
        def forward(self, images):
            seen.append(images[:, 0, 0, 0].tolist())
            return super().forward(images)

    images = torch.arange(count).float()[:, None, None, None].expand(-1, 1, 2, 2)
    settings = EvaluateSettings(epochs=epochs, batch_size=batch_size, learning_rate=1e-3)
    fit_student(Student(), images, torch.zeros(count, 3), settings, seed=0)
    assert len(seen) == steps
    shown = sum(seen, [])
    for epoch in range(len(shown) // count):
        assert sorted(shown[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_pre_training_moves_batch_statistics():
    student = build_student().eval()
    fit_student(student, torch.randn(6, 1, 16, 16), torch.randn(6, 24), replace(SETTINGS, batch_size=3), seed=0)
    statistics = student.blocks[0][1]
    assert statistics.num_batches_tracked == 10 and statistics.running_mean.abs().max() > 0


def test_no_epochs_leave_the_student_as_it_is():
    student = build_student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    fitted = fit_student(student, torch.randn(6, 1, 16, 16), torch.randn(6, 24), replace(SETTINGS, epochs=0), 0)
    assert fitted is student and not student.training
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_pre_training_lowers_the_error_to_the_teacher_on_heldout_images(data):
    torch.manual_seed(0)
    student = build_student().eval()
    before = teacher_error(student, data)
    images, targets = data.random_pair(100, seed=0)
    fit_student(student, images, targets, replace(SETTINGS, epochs=30, batch_size=32), seed=0)
    assert not student.training
    assert teacher_error(student, data) < 0.5 * before


def test_the_order_of_the_images_is_a_function_of_the_seed(data):
    pair, states = data.random_pair(30, seed=0), []
    for seed in (0, 0, 1):
        with seeded(0, "student"):
            student = build_student()
        states.append(fit_student(student, *pair, SETTINGS, seed).head.weight)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


# The error to the teacher


def test_the_error_is_the_mean_square_over_images_and_dimensions():
    bank = draw_bank(5)
    data = make_data(bank, bank)
    student = Linear()
    nn.init.zeros_(student.head.weight), nn.init.constant_(student.head.bias, 2.0)
    assert teacher_error(student, data) == pytest.approx((data.heldout_targets - 2).square().mean().item())
    images = (bank.pixels.double() / 255 - 0.5) / 0.25
    exact = replace(data, heldout_targets=student.double()(images).float())
    assert teacher_error(student.float(), exact) < 1e-12


def test_working_in_chunks_changes_nothing():
    images = torch.randn(11, 1, 2, 2)
    student = Linear()
    assert not in_chunks(student, images, 4).requires_grad
    torch.testing.assert_close(in_chunks(student, images, 4), student(images).detach())


# Labelled images


def count_classes(labels, chosen):
    return torch.bincount(labels[chosen], minlength=int(labels.max()) + 1).tolist()


@pytest.mark.parametrize(("count", "expected"), [(12, [4, 4, 4]), (13, [4, 4, 5]), (2, [0, 1, 1]), (3, [1, 1, 1])])
def test_classes_differ_by_one_labelled_image_at_most(count, expected):
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 5)[torch.randperm(75)]
    assert sorted(count_classes(labels, draw_labelled(labels, count, seed=0))) == expected


def test_where_a_class_runs_out_the_others_fill_up():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 2)
    assert count_classes(labels, draw_labelled(labels, 30, seed=0)) == [14, 14, 2]


def test_of_fewer_images_than_asked_all_are_drawn_once():
    labels = torch.tensor([0, 1, 1])
    assert sorted(draw_labelled(labels, 10, seed=0).tolist()) == [0, 1, 2]


def test_the_draw_is_a_function_of_the_seed():
    labels = torch.arange(100) % 10
    first, again, other = (draw_labelled(labels, 20, seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(set(first.tolist())) == 20


# The probe


def test_the_probe_is_scikit_learns_logistic_regression_on_scaled_features(data):
    torch.manual_seed(0)
    student = build_student().eval()
    chosen = draw_labelled(data.source.labels, 30, seed=4)

    def features(bank, indices):
        images = (bank.pixels[indices].float() / 255 - 0.3) / 0.4
        with torch.no_grad():
            return student.features(images).double().numpy()

    train, test = features(data.source, chosen), features(data.heldout, slice(None))
    mean, std = train.mean(0), train.std()
    regression = LogisticRegression(max_iter=2000).fit((train - mean) / std, data.source.labels[chosen].numpy())
    predicted = regression.predict((test - mean) / std)
    expected = np.mean(predicted == data.heldout.labels.numpy())
    assert 0.2 < expected < 1
    assert linear_probe(student, data, 30, seed=4) == expected


def separable(count, seed=0):
    """Images whose class shows in which of their pixels is bright."""
    labels = torch.arange(count) % 4
    bank = draw_bank(count, labels, seed)
    pixels = (bank.pixels // 8).flatten(1)
    pixels[torch.arange(count), labels] = 255
    return make_bank(pixels.reshape(count, 1, 2, 2), labels)


def test_the_probe_is_perfect_on_separable_features():
    assert linear_probe(Linear(), make_data(separable(60), separable(40, seed=1)), 20, seed=0) == 1.0


def test_images_of_unknown_class_are_left_out():
    source, heldout = separable(60), separable(40, seed=1)
    wrong = torch.arange(60) % 5 > 0
    # A class of images like those of the others would spoil the regression.
    source.labels[wrong] = -1
    heldout.labels[::3] = -1
    data = make_data(source, heldout)
    assert data.labelled and linear_probe(Linear(), data, 30, seed=0) == 1.0
    known = make_data(source.subset((~wrong).nonzero()[:, 0]), heldout)
    assert linear_probe(Linear(), known, 30, seed=0) == 1.0


def test_a_probe_without_labels_is_refused():
    data = make_data(draw_bank(4), separable(4))
    with pytest.raises(ValueError, match="a linear probe needs labels of the source and of the held-out images"):
        linear_probe(Linear(), data, 4, seed=0)


def test_a_probe_needs_two_known_classes_and_something_to_score():
    labelled = separable(8)
    nothing, unknown, single = draw_bank(8), draw_bank(8, torch.full((8,), -1)), draw_bank(8, torch.zeros(8).long())
    assert make_data(labelled, labelled).labelled and make_data(labelled, single).labelled
    for source, heldout in (
        (nothing, labelled),
        (labelled, nothing),
        (unknown, labelled),
        (labelled, unknown),
        (single, labelled),
    ):
        assert not make_data(source, heldout).labelled


def test_two_labels_are_two_classes():
    assert linear_probe(Linear(), make_data(separable(60), separable(40)), 2, seed=0) <= 0.5


# Records


@pytest.fixture
def run(data, accelerator):
    def run(sets, data=data, settings=SETTINGS, seed=7, **options):
        return evaluate(sets, build_student, data, settings, seed=seed, accelerator=accelerator, **options)

    return run


def test_each_set_has_a_record_of_each_protocol_with_its_statistics(run, data):
    sets = {"random": partial(data.random_pair, 30), "none": lambda k: None}
    records = run(sets, settings=replace(SETTINGS, seeds=3), facts={"source": "digits", "student": "small"})
    assert [(record["set"], record["protocol"]) for record in records] == [
        ("random", "teacher_error"),
        ("random", "probe"),
        ("none", "teacher_error"),
        ("none", "probe"),
    ]
    for record in records:
        probe = record["protocol"] == "probe"
        assert record["metric"] == ("accuracy" if probe else "mse") and record["labels"] == (20 if probe else None)
        assert (record["source"], record["student"], record["n"]) == ("digits", "small", 3)
        values = record["values"]
        mean = sum(values) / 3
        assert len(set(values)) > 1 and record["mean"] == pytest.approx(mean)
        assert record["std"] == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 2))


def test_one_seed_has_no_spread(run):
    for record in run({"none": lambda k: None}, settings=replace(SETTINGS, seeds=1)):
        assert (record["n"], record["std"], record["values"]) == (1, 0.0, [record["mean"]])


def test_the_values_are_those_of_one_student_after_the_other(run, data):
    pairs = [data.random_pair(30, k) for k in range(2)]
    records = run({"a": lambda k: pairs[k], "none": lambda k: None})
    for name, record_error, record_probe in (("a", *records[:2]), ("none", *records[2:])):
        for k in range(2):
            with seeded(7, "evaluated student", k):
                student = build_student().eval()
            if name == "a":
                fit_student(student, *pairs[k], SETTINGS, seed=k)
            # The memory layout of the weights decides the last bits.
            assert record_error["values"][k] == pytest.approx(teacher_error(student, data), rel=1e-4)
            assert record_probe["values"][k] == pytest.approx(linear_probe(student, data, 20, k, 10), abs=0.01)


def test_a_probe_is_the_mean_of_draws_that_no_two_seeds_share(data):
    student = build_student().eval()
    single = [linear_probe(student, data, 20, seed=draw) for draw in range(6)]
    assert len(set(single)) > 1
    for seed in range(2):
        assert linear_probe(student, data, 20, seed, draws=3) == pytest.approx(
            sum(single[3 * seed : 3 * seed + 3]) / 3
        )


def test_students_trained_side_by_side_are_those_of_one_core(run, data):
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run({"a": partial(data.random_pair, 20)}, settings=replace(SETTINGS, seeds=4))
        torch.set_num_threads(3)
        together = run({"a": partial(data.random_pair, 20)}, settings=replace(SETTINGS, seeds=4))
        assert together == alone
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(cores)


def test_sets_are_compared_with_the_same_students(run):
    first, second = run({"a": lambda k: None, "b": lambda k: None})[::2]
    assert first["values"] == second["values"] and len(set(first["values"])) == 2
    assert run({"a": lambda k: None}, seed=8)[0]["values"] != first["values"]


def test_the_work_can_be_shared_out_over_processes(run, data, monkeypatch):
    sets = {"a": partial(data.random_pair, 20), "b": lambda k: None}
    settings = replace(SETTINGS, seeds=3)
    alone = run(sets, settings=settings)

    class Share:
        def __init__(self, index):
            self.process_index, self.num_processes, self.is_main_process = index, 4, False

    shares = []
    for index in range(4):

        def collect(share):
            shares.extend(share)
            raise InterruptedError

        monkeypatch.setattr("ssdd_hub.evaluate.gather_object", collect)
        with pytest.raises(InterruptedError):
            evaluate(sets, build_student, data, settings, seed=7, accelerator=Share(index))
    assert sorted(job for share in shares for job in share) == [(name, k) for name in "ab" for k in range(3)]
    assert max(map(len, shares)) == 2
    monkeypatch.setattr("ssdd_hub.evaluate.gather_object", lambda share: shares)
    assert evaluate(sets, build_student, data, settings, seed=7, accelerator=Share(0)) == alone


def test_data_without_labels_have_no_probe(run, data):
    bare = replace(data, source=replace(data.source, labels=None))
    assert [record["protocol"] for record in run({"none": lambda k: None}, data=bare)] == ["teacher_error"]


def test_a_student_that_diverges_is_reported(run, data):
    settings = replace(SETTINGS, learning_rate=1e12)
    message = "student 0 diverges when it is pre-trained on the set: lower --evaluate.learning-rate"
    with pytest.raises(InputError, match=message):
        run({"random": partial(data.random_pair, 20)}, settings=settings)


# References and settings


def test_a_random_reference_is_real_images_with_their_targets(data):
    images, targets = data.random_pair(40, seed=1)
    all_images = (data.source.pixels.float() / 255 - 0.3) / 0.4
    distance, index = (images[:, None] - all_images[None]).abs().amax((2, 3, 4)).min(1)
    assert distance.max() < 1e-6 and len(index.unique()) == 40
    assert torch.equal(targets, data.targets[index])
    assert torch.equal(images, data.random_pair(40, seed=1)[0])
    assert not torch.equal(images, data.random_pair(40, seed=2)[0])


def test_settings_out_of_range_are_all_named():
    with pytest.raises(SettingsError) as caught:
        EvaluateSettings(
            seeds=0,
            epochs=-1,
            batch_size=0,
            learning_rate=0,
            momentum=1,
            weight_decay=-1,
            labels=1,
            max_heldout=0,
        )
    assert caught.value.problems == [
        "evaluate.labels must be at least 2, or there is nothing to tell, got 1",
        "evaluate.seeds must be at least 1, got 0",
        "evaluate.batch_size must be at least 1, got 0",
        "evaluate.max_heldout must be at least 1, got 0",
        "evaluate.epochs must be at least 0, got -1",
        "evaluate.learning_rate must be above 0, got 0",
        "evaluate.momentum must be in [0, 1), got 1",
        "evaluate.weight_decay must be at least 0, got -1",
    ]


def test_the_recipe_for_using_a_set_holds_the_settings_of_its_evaluation():
    use = EvaluateSettings(epochs=3, batch_size=4, learning_rate=0.2, momentum=0.1, weight_decay=0.3).use()
    assert use == {
        "loss": "mean squared error of the head's output to the target",
        "optimizer": "SGD",
        "learning_rate": 0.2,
        "momentum": 0.1,
        "weight_decay": 0.3,
        "epochs": 3,
        "batch_size": 4,
        "augmentation": "none",
    }
