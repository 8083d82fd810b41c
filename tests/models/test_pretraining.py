from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ssdd_hub.data.augment import draw_views
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.models import pretraining
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.pretraining import StudentTrainingSettings, fit_student
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import draw_batch, generator
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs, stated_use
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform

# Black is -2, -1 and -3 here, and all sums of sixteenths are exact.
SPACE = PixelSpace((0.5, 0.25, 0.75), (0.25, 0.25, 0.25))
BLACK = np.array([-2.0, -1.0, -3.0])
FAST = StudentTrainingSettings(epochs=3, batch_size=4, learning_rate=0.01, momentum=0.7, weight_decay=0.02)


def make_set(size=6, views=0, width=2, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    parts = {}
    if views:
        parts["views"] = draw_views(size * views, drawn).reshape(size, views, 3)
        parts["view_targets"] = torch.randn(size, views, width, generator=drawn)
    images = torch.randint(-40, 41, (size, 3, 5, 5), generator=drawn) / 16
    return DistilledSet(images, torch.randn(size, width, generator=drawn), SPACE, **parts)


def make_source(size=6):
    pixels = torch.randint(0, 256, (size, 1, 2, 2), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return ImageBank(pixels, None, None, {})


class Double:
    """Pairs in float64."""

    def __init__(self, pairs):
        self.pairs, self.num_views, self.black = pairs, pairs.num_views, pairs.black.double()

    def __len__(self):
        return len(self.pairs)

    def batch(self, indices):
        return tuple(tensor.double() for tensor in self.pairs.batch(indices))

    def view(self, indices, views):
        return tuple(tensor.double() for tensor in self.pairs.view(indices, views))


class Watched(nn.Module):
    """A linear student that keeps what it is shown."""

    def __init__(self, pixels, width):
        super().__init__()
        self.head, self.seen = nn.Linear(pixels, width), []

    def forward(self, images):
        self.seen.append(images)
        return self.head(images.flatten(1))


def watched(pixels=75, width=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Watched(pixels, width)


# Pre-training


def look(image, down, right, flipped):
    """Shifts an image in a black frame by hand."""
    framed = np.broadcast_to(BLACK[:, None, None], (3, 13, 13)).copy()
    framed[:, 4:9, 4:9] = image
    part = framed[:, down : down + 5, right : right + 5]
    return part[:, :, ::-1] if flipped else part


def show(made, index, augment, row, drawn):
    """Returns what is shown of an image, and its target; `drawn` is what was drawn for the batch."""
    image, target = made.images[index].double().numpy(), made.targets[index].double().numpy()
    if augment == "none" or augment == "views" and drawn[row] == 0:
        return image, target
    if augment == "views":
        stored = int(drawn[row]) - 1
        return look(image, *made.views[index, stored].tolist()), made.view_targets[index, stored].double().numpy()
    down, right, flipped = drawn[row].tolist()
    return look(image, *((down, right) if augment == "crop-flip" else (4, 4)), flipped), target


def train_by_hand(made, settings, seed, steps, weight, bias):
    """SGD with momentum on the mean squared error of a linear map, its gradients written out."""
    size, augment, speed = len(made.images), settings.augment, None
    mean = [weight, bias]
    count = min(settings.batch_size, size)
    for step in range(steps):
        rows = draw_batch(size, count, seed, "use of the set", step)
        source = generator(seed, "augmentation of use", step)
        views = torch.randint(0, 1 + made.views.shape[1], (count,), generator=source) if augment == "views" else None
        drawn = draw_views(count, source) if views is None else views
        shown = [show(made, index, augment, row, drawn) for row, index in enumerate(rows.tolist())]
        images, targets = (np.stack(part).reshape(count, -1) for part in zip(*shown, strict=True))
        if settings.mixup:
            images, targets = mix_by_hand(images, targets, settings.mixup, generator(seed, "mixup of use", step))
        slope = 2 * (images @ weight.T + bias - targets) / targets.size
        push = [slope.T @ images + settings.weight_decay * weight, slope.sum(0) + settings.weight_decay * bias]
        speed = push if speed is None else [settings.momentum * v + p for v, p in zip(speed, push, strict=True)]
        rate = settings.learning_rate
        if settings.schedule == "cosine":
            rate *= 0.5 + 0.5 * np.cos(np.pi * step / steps)
        weight, bias = weight - rate * speed[0], bias - rate * speed[1]
        # The first weights do not count.
        decay = settings.average if step else 0
        mean = [decay * m + (1 - decay) * now for m, now in zip(mean, (weight, bias), strict=True)]
    return mean if settings.average else (weight, bias)


def mix_by_hand(images, targets, share, source):
    """Mixes rows one by one."""
    others = torch.randperm(len(images), generator=source).tolist()
    chosen, weights = torch.rand(2, len(images), generator=source).double().numpy()
    mixed = []
    for part in (images, targets):
        rows = [
            weight * part[row] + (1 - weight) * part[other] if lot < share else part[row]
            for row, (other, lot, weight) in enumerate(zip(others, chosen, weights, strict=True))
        ]
        mixed.append(np.stack(rows))
    return mixed


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip", "views"])
@pytest.mark.parametrize(("size", "steps"), [(6, 4), (3, 3), (1, 3)])
def test_pre_training_is_sgd_on_the_squared_error_of_what_is_shown(augment, size, steps):
    """6 images in batches of 4, 3 images that are fewer than a batch, and one; three passes each."""
    made, settings, student = make_set(size, views=2), replace(FAST, augment=augment), watched().double()
    weight, bias = (tensor.detach().numpy().copy() for tensor in (student.head.weight, student.head.bias))
    fitted = fit_student(student, Double(SetPairs(made)), settings, 5)
    expected = train_by_hand(made, settings, 5, steps, weight, bias)
    assert fitted is student and not student.training and len(student.seen) == steps
    for ours, theirs in zip((student.head.weight, student.head.bias), expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-11, atol=1e-13)
    assert np.abs(expected[0] - weight).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"mixup": 1.0}, {"mixup": 0.5}, {"schedule": "cosine"}, {"average": 0.8}, {"steps": 9}]
    + [{"mixup": 0.7, "schedule": "cosine", "average": 0.5, "steps": 7}],
)
def test_options_of_the_recipe_are_their_formulas(options):
    made, settings, student = make_set(6), replace(FAST, augment="flip", **options), watched().double()
    weight, bias = (tensor.detach().numpy().copy() for tensor in (student.head.weight, student.head.bias))
    fit_student(student, Double(SetPairs(made)), settings, 5)
    expected = train_by_hand(made, settings, 5, options.get("steps", 4), weight, bias)
    for ours, theirs in zip((student.head.weight, student.head.bias), expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_other_optimizers_lower_the_error_and_depend_on_the_seed_alone(optimizer):
    made = make_set(24, width=3)
    settings = StudentTrainingSettings(steps=60, optimizer=optimizer, learning_rate=0.01, schedule="cosine")
    errors, weights = [], []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            student = ConvNet((4, 8), "batch", 3, 5, num_targets=3)
        fit_student(student, SetPairs(made), settings, 5)
        errors.append((student(made.images) - made.targets).square().mean().item())
        weights.append(student.head.weight.detach())
    assert errors[0] < 0.7 * made.targets.square().mean() and torch.equal(*weights)


def test_brain_floats_are_for_the_network_alone_and_for_devices_that_are_quick_in_them(monkeypatch):
    made, seen, students = make_set(), [], []
    for precision, quick in (("float32", True), ("bf16", True), ("bf16", False)):
        monkeypatch.setattr(pretraining, "is_quick_in_bf16", lambda device, quick=quick: quick)
        torch.manual_seed(0)
        student = ConvNet((4, 5), "batch", 3, 5, 2)
        student.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
        students.append(fit_student(student, SetPairs(made), replace(FAST, precision=precision), 0))
    steps = len(seen) // 3
    assert seen == [torch.float32] * steps + [torch.bfloat16] * steps + [torch.float32] * steps
    for exact, rounded in zip(students[0].state_dict().values(), students[1].state_dict().values(), strict=True):
        assert exact.dtype == rounded.dtype
        torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.05)
    assert not torch.equal(students[0].head.weight, students[1].head.weight)
    assert torch.equal(students[0].head.weight, students[2].head.weight)


def test_averaged_weights_come_with_averaged_batch_statistics():
    made = make_set(12)
    plain, mean = (ConvNet((4,), "batch", 3, 5, num_targets=2) for _ in range(2))
    mean.load_state_dict(plain.state_dict())
    for student, decay in ((plain, 0.0), (mean, 0.9)):
        fit_student(student, SetPairs(made), replace(FAST, average=decay), 0)
    first, second = (student.blocks[0][1].running_mean for student in (plain, mean))
    assert not torch.equal(first, second) and second.abs().max() > 0


@pytest.mark.parametrize("augment", ["crop-flip", "views"])
def test_what_a_crop_lacks_is_black_and_the_rest_is_the_image(augment):
    space = PixelSpace((0.3, 0.4, 0.45), (0.21, 0.27, 0.19))
    white = space.normalise(torch.ones(20, 3, 6, 6))
    views = draw_views(20, torch.Generator().manual_seed(0))[:, None]
    made = DistilledSet(white, torch.zeros(20, 2), space, views=views, view_targets=torch.zeros(20, 1, 2))
    student = watched(108)
    fit_student(student, SetPairs(made), StudentTrainingSettings(epochs=1, augment=augment), 0)
    dark = student.seen[0] == space.normalise(torch.zeros(3, 1, 1))
    torch.testing.assert_close(student.seen[0][~dark], white[~dark], rtol=0, atol=1e-6)
    assert 0.1 < dark.double().mean() < 0.8 and torch.equal(dark.all(1), dark.any(1))


def make_pairs(images, targets):
    return SetPairs(DistilledSet(images, targets, PixelSpace.raw(1)))


@pytest.mark.parametrize(
    ("size", "batch_size", "epochs", "most", "steps"),
    [
        *((6, 2, 3, None, 9), (6, 100, 3, None, 3), (5, 2, 2, None, 5), (5, 2, 1, None, 2), (1, 1, 4, None, 4)),
        *((6, 2, 3, 4, 4), (6, 2, 3, 99, 9), (6, 2, 0, 4, 0)),
    ],
)
def test_an_epoch_shows_every_image_once(size, batch_size, epochs, most, steps):
    settings = StudentTrainingSettings(epochs=epochs, max_steps=most, batch_size=batch_size, learning_rate=1e-3)
    student = watched(4, 3)
    images = torch.arange(size).float()[:, None, None, None].expand(-1, 1, 2, 2)
    fit_student(student, make_pairs(images, torch.zeros(size, 3)), settings, seed=0)
    assert len(student.seen) == settings.num_steps(size) == steps
    assert {len(part) for part in student.seen} <= {min(batch_size, size)}
    shown = [int(image) for part in student.seen for image in part[:, 0, 0, 0]]
    for epoch in range(len(shown) // size):
        assert sorted(shown[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_pre_training_moves_batch_statistics_also_of_a_student_in_eval_mode():
    student = ConvNet((4, 8), "batch", 1, 8, num_targets=3).eval()
    fit_student(student, make_pairs(torch.randn(6, 1, 8, 8), torch.randn(6, 3)), replace(FAST, batch_size=3), seed=0)
    statistics = student.blocks[0][1]
    assert statistics.num_batches_tracked == 6 and statistics.running_mean.abs().max() > 0


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip", "dsa", "views"])
def test_training_is_a_function_of_the_seed_alone(augment):
    pairs, weights = SetPairs(make_set(views=2)), []
    for number, seed in enumerate((0, 0, 1)):
        student = watched()
        torch.manual_seed(number)
        state = torch.get_rng_state()
        weights.append(fit_student(student, pairs, replace(FAST, augment=augment), seed).head.weight)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_views_are_refused_where_there_are_none():
    settings = replace(FAST, augment="views")
    source = SourcePairs(make_source(), torch.zeros(6, 2), PixelSpace.raw(1))
    for pairs in (SetPairs(make_set()), source):
        with pytest.raises(
            InputError, match="student_training.augment is views, and the set holds none: make some with"
        ):
            fit_student(watched(), pairs, settings, 0)


# Pairs


def test_pairs_of_a_set_are_its_images_and_targets_as_they_are():
    made = make_set(5, views=3)
    pairs, rows = SetPairs(made), torch.tensor([4, 0, 4])
    images, targets = pairs.batch(rows)
    assert torch.equal(images, made.images[rows]) and torch.equal(targets, made.targets[rows])
    assert (len(pairs), pairs.num_views, SetPairs(make_set()).num_views) == (5, 3, 0)
    assert pairs.black.flatten().tolist() == BLACK.tolist() and pairs.black.shape == (3, 1, 1)
    as_it_is = pairs.view(rows, torch.zeros(3).long())
    assert torch.equal(as_it_is[0], images) and torch.equal(as_it_is[1], targets)


def test_pairs_of_a_source_are_normalised_images_with_their_targets():
    source, features = make_source(), torch.randn(6, 2)
    transform = TargetTransform.fit("standardise", features)
    pairs = SourcePairs(source, Targets(features, transform), PixelSpace((0.5,), (0.25,)))
    rows = torch.tensor([5, 0, 5])
    images, targets = pairs.batch(rows)
    expected = (source.pixels[rows].double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)
    assert images.dtype == torch.float32 and torch.equal(targets, transform(features)[rows])
    assert (len(pairs), pairs.num_views, pairs.black.item()) == (6, 0, -2.0)
    for part, same in zip(pairs.view(rows, torch.zeros(3).long()), (images, targets), strict=True):
        assert torch.equal(part, same)
    assert torch.equal(replace(pairs, targets=features).batch(rows)[1], features[rows])


# Settings


def test_settings_out_of_range_are_all_named():
    wrong = {"batch_size": 0, "learning_rate": 0, "momentum": 1, "weight_decay": -1, "augment": "colour"}
    with pytest.raises(SettingsError) as caught:
        StudentTrainingSettings(epochs=-1, max_steps=0, **wrong)
    assert caught.value.problems == [
        "student_training.epochs must be at least 0, got -1",
        "student_training.max_steps must be at least 1, got 0",
        "student_training.batch_size must be at least 1, got 0",
        "student_training.learning_rate must be above 0, got 0",
        "student_training.momentum must be in [0, 1), got 1",
        "student_training.weight_decay must be at least 0, got -1",
        "student_training.augment must be one of none, flip, crop-flip, dsa, views, got 'colour'",
    ]


LARGEST = {"epochs": 10**6, "max_steps": 10**8, "batch_size": 10**6, "learning_rate": 10**4, "weight_decay": 10**4}


def test_whatever_recipe_is_taken_can_be_saved_with_a_set(tmp_path):
    use = StudentTrainingSettings(**LARGEST).describe()
    space = PixelSpace((0.5,), (0.5,))
    DistilledSet(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3), space, provenance={"use": use}).save(tmp_path / "set")
    with pytest.raises(SettingsError) as caught:
        StudentTrainingSettings(**{name: 2 * most for name, most in LARGEST.items()})
    assert [problem.split()[0] for problem in caught.value.problems] == [
        f"student_training.{name}" for name in LARGEST
    ]


def test_the_recipe_of_a_card_holds_all_settings():
    use = StudentTrainingSettings(
        epochs=3, batch_size=4, learning_rate=0.2, momentum=0.1, weight_decay=0.3, augment="flip"
    )
    recipe = {"loss": "mean squared error of the head's output to the target", "optimizer": "SGD"}
    recipe |= {"learning_rate": 0.2, "momentum": 0.1, "weight_decay": 0.3, "epochs": 3, "batch_size": 4}
    recipe |= {"augmentation": "flip"}
    assert use.describe() == recipe
    assert replace(use, max_steps=7).describe() == {**recipe, "max_steps": 7}
    more = replace(
        use, steps=9, schedule="cosine", mixup=0.5, average=0.9, optimizer="muon", augment="dsa", precision="bf16"
    )
    stated = more.describe()
    assert "epochs" not in stated and stated["optimizer"] == "muon"
    assert replace(StudentTrainingSettings(epochs=3), **stated_use({"use": stated})) == more


def test_settings_that_came_later_do_not_change_what_was_measured_before():
    before = {"epochs", "max_steps", "batch_size", "learning_rate", "momentum", "weight_decay", "augment"}
    assert set(StudentTrainingSettings().identity()) == before
    assert StudentTrainingSettings(mixup=0.5).identity()["mixup"] == 0.5
