import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.checkpoints import Checkpoints, load_tree
from ssdd_hub.runs.folder import RunLog
from ssdd_hub.teachers import training as pretrain
from ssdd_hub.teachers.monitor import Watch, WatchSettings
from ssdd_hub.teachers.training import Pretraining, TeacherTrainingSettings, new_backbone

DIGITS = {"min_scale": 0.4, "hf_prob": 0.0, "random_gray_scale": 0.0, "cj_strength": 0.5, "solarization_prob": 0.0}
SMALL = {
    "objective_args": {"hidden_dim": 16, "output_dim": 16},
    "view_args": DIGITS,
    "batch_size": 16,
    "epochs": 2,
    "learning_rate": 0.03,
    "workers": 0,
}


@pytest.fixture(scope="module")
def pixels(digits):
    return digits[0].pixels[:40]


@pytest.fixture(scope="module")
def train(pixels):
    """Prepares a training on 40 digits: three steps an epoch."""

    def train(seed=0, pixels=pixels, accelerator=None, **settings):
        backbone = new_backbone("ssdd_convnet3", 1, 16, seed, widths=(4, 8))
        settings = TeacherTrainingSettings(**{**SMALL, **settings})
        accelerator = accelerator or Accelerator(cpu=True)
        return Pretraining(backbone, pixels, PixelSpace.of(pixels), settings, seed=seed, accelerator=accelerator)

    return train


def run(training, folder, watch=None):
    """Returns the state and the records of the log after training in a folder."""
    checkpoints, log = Checkpoints(folder / "checkpoints", keep=1), RunLog(folder / "log.jsonl")
    folder.mkdir(exist_ok=True)
    training.run(checkpoints, log, watch, progress=False)
    return training.objective.state_dict(), log.read()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The training


def test_the_loss_falls_on_real_images(digits, tmp_path, accelerator):
    pixels = digits[0].pixels[:192]
    backbone = new_backbone("ssdd_resnet10", 1, 16, seed=0, channels=(8, 8, 16, 16))
    settings = TeacherTrainingSettings(**{**SMALL, "batch_size": 64, "epochs": 6, "learning_rate": 0.06})
    training = Pretraining(backbone, pixels, PixelSpace.of(pixels), settings, seed=0, accelerator=accelerator)
    with torch.no_grad():
        before = [training.objective(training.batches[step]).item() for step in range(100, 103)]
    _, log = run(training, tmp_path)
    with torch.no_grad():
        after = [training.objective(training.batches[step]).item() for step in range(100, 103)]
    assert np.mean(after) < 0.5 * np.mean(before)
    assert max(after) < min(before)
    losses = [record["loss"] for record in log]
    assert len(losses) == 6 and losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 3}, [3, 6, 9]),
        *(({"max_steps": most}, steps) for most, steps in ((4, [3, 4]), (1, [1]), (99, [3, 6]))),
    ],
)
def test_a_record_is_written_at_the_end_of_each_epoch_and_of_a_trial(train, tmp_path, settings, steps):
    training = train(**settings)
    _, log = run(training, tmp_path)
    assert [(record["stage"], record["step"]) for record in log] == [("teacher", step) for step in steps]
    assert all(record.keys() == {"stage", "step", "loss"} and record["loss"] > 0 for record in log)
    # The schedule ends there too.
    assert training.optimizer.param_groups[0]["lr"] == 0.03 * pretrain._schedule(steps[-1] - 1, steps[-1], 0.05)


def test_the_network_given_is_trained_and_its_weights_are_contiguous_afterwards(train):
    training = train(epochs=1)
    weight = training.objective.backbone.blocks[1][0].weight
    before = weight.clone()
    assert not weight.is_contiguous()
    training.run(progress=False)
    assert not torch.equal(before, weight)
    assert all(tensor.is_contiguous() for tensor in training.objective.state_dict().values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(train, tmp_path):
    states = [run(train(seed), tmp_path / str(number)) for number, seed in enumerate((0, 0, 1))]
    assert same(states[0][0], states[1][0]) and states[0][1] == states[1][1]
    assert not same(states[0][0], states[2][0])


def test_the_first_step_is_that_of_plain_sgd(train):
    training, twin = train(epochs=1, warmup=0.0), train(epochs=1, warmup=0.0)
    views = training.batches[0]
    training._step(training.objective, 0, views)
    optimizer = torch.optim.SGD(twin.objective.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    twin.objective(views).backward()
    optimizer.step()
    assert same(training.objective.state_dict(), twin.objective.state_dict())


def test_the_learning_rate_warms_up_linearly_and_decays_to_zero_along_a_cosine():
    shares = [pretrain._schedule(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[99] == pytest.approx(0.5 * (1 + np.cos(np.pi * 89 / 90))) and shares[99] < 4e-4
    assert pretrain._schedule(0, 1, 0.0) == 1.0


def test_each_step_uses_the_learning_rate_of_the_schedule(train, monkeypatch):
    monkeypatch.setattr(pretrain, "_schedule", lambda step, num_steps, warmup: (step + 1) / (num_steps * 2))
    training, used = train(), []
    monkeypatch.setattr(training.optimizer, "step", lambda: used.append(training.optimizer.param_groups[0]["lr"]))
    training.run(progress=False)
    assert used == pytest.approx([0.03 * step / 12 for step in range(1, 7)])


def test_the_forward_pass_runs_in_the_precision_of_the_accelerator_and_the_weights_stay_as_they_are(train):
    AcceleratorState._reset_state(True)
    seen, accelerator = [], Accelerator(cpu=True, mixed_precision="bf16")
    training = train(epochs=1, accelerator=accelerator)
    training.objective.backbone.blocks[0][0].register_forward_hook(lambda *hook: seen.append(hook[2].dtype))
    forward = training.objective.forward
    training.run(progress=False)
    AcceleratorState._reset_state(True)
    assert seen == [torch.bfloat16] * 6
    assert {tensor.dtype for tensor in training.objective.parameters()} == {torch.float32}
    # What Accelerate wraps around a network is taken off again.
    assert training.objective.forward == forward


def test_the_mean_loss_of_an_epoch_is_recorded(train, tmp_path):
    training, losses = train(epochs=1), []
    training.objective.register_forward_hook(lambda *hook: losses.append(hook[2].item()))
    _, (record,) = run(training, tmp_path)
    assert record["loss"] == pytest.approx(np.mean(losses)) and len(losses) == 3


@pytest.mark.parametrize("checkpoint_every", [1, 2000])
def test_a_training_that_diverges_is_refused_and_never_saved(train, tmp_path, checkpoint_every):
    training = train(learning_rate=1e30, checkpoint_every=checkpoint_every)
    with pytest.raises(
        InputError, match="the teacher's loss is nan by step [23]: choose a lower --teacher-training.learning"
    ):
        run(training, tmp_path)
    for path in tmp_path.glob("checkpoints/*"):
        assert all(tensor.isfinite().all() for tensor in load_tree(path)["objective"].values())


# What is watched


@pytest.fixture(scope="module")
def watch(digits):
    bank = digits[0].subset(range(40))

    def watch(**settings):
        return Watch(bank, digits[1].subset(range(30)), PixelSpace.of(bank.pixels), WatchSettings(**settings), seed=0)

    return watch


@pytest.mark.parametrize(("every", "scored"), [(0, [0, 12]), (1, [0, 3, 6, 9, 12]), (3, [0, 9, 12])])
def test_the_backbone_is_scored_before_after_and_every_few_epochs(train, watch, tmp_path, every, scored):
    _, log = run(train(epochs=4), tmp_path, watch(every=every))
    assert [record["step"] for record in log] == [0, 3, 6, 9, 12]
    assert [record["step"] for record in log if "knn" in record] == scored
    assert ["loss" in record for record in log] == [False, True, True, True, True]


# Resuming


class Killed(BaseException):
    pass


NINE_STEPS = {"epochs": 3, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def unbroken(train, tmp_path_factory):
    """Not watched, which changes nothing but the log."""
    return run(train(**NINE_STEPS), tmp_path_factory.mktemp("unbroken") / "run")


def count_steps(training, killed_at=None):
    """Returns a training that counts its steps, and is killed before one of them, and the list that grows."""
    steps, step = [], training._step

    def counted(*arguments):
        if len(steps) == killed_at:
            raise Killed
        steps.append(1)
        step(*arguments)

    training._step = counted
    return training, steps


@pytest.mark.parametrize(
    ("killed_at", "saved"),
    [(0, 0), (5, 4), (8, 8)]
    + [pytest.param(*each, marks=pytest.mark.slow) for each in [(3, 3), (4, 4), (6, 6), (7, 6)]],
)
def test_a_run_that_is_killed_and_started_again_ends_like_the_unbroken_one(
    train, watch, unbroken, tmp_path, killed_at, saved
):
    with pytest.raises(Killed):
        run(count_steps(train(**NINE_STEPS), killed_at)[0], tmp_path, watch(every=1))
    training, redone = count_steps(train(**NINE_STEPS))
    state, log = run(training, tmp_path, watch(every=1))
    assert len(redone) == 9 - saved
    assert same(state, unbroken[0])
    assert [record["step"] for record in log] == [0, 3, 6, 9] and all("knn" in record for record in log)
    assert [record["loss"] for record in log[1:]] == [record["loss"] for record in unbroken[1]]


@pytest.mark.parametrize("step", [3, 9])
def test_scores_that_fail_lose_no_step_and_are_made_by_the_next_start(train, watch, unbroken, tmp_path, step):
    scores, calls = watch(every=1), []

    class Failing:
        settings = scores.settings

        def __call__(self, backbone):
            calls.append(backbone)
            if len(calls) > step // 3:
                raise MemoryError
            return scores(backbone)

    with pytest.raises(MemoryError):
        run(train(**NINE_STEPS), tmp_path, Failing())
    training, redone = count_steps(train(**NINE_STEPS))
    state, log = run(training, tmp_path, scores)
    assert len(redone) == 9 - step and same(state, unbroken[0])
    assert log == run(train(**NINE_STEPS), tmp_path / "whole", watch(every=1))[1]


def test_a_finished_training_is_not_done_again(train, tmp_path):
    first = run(train(), tmp_path)
    training, redone = count_steps(train())
    again = run(training, tmp_path)
    assert redone == [] and same(first[0], again[0]) and first[1] == again[1]


def test_what_an_objective_draws_is_a_function_of_seed_and_step(train, tmp_path):
    def drawing(training):
        drawn, forward = [], training.objective.forward
        training.objective.forward = lambda views: drawn.append(torch.rand(()).item()) or forward(views)
        return training, drawn

    (first, a), (again, b), (other, c) = (drawing(train(seed, epochs=1)) for seed in (0, 0, 1))
    for number, training in enumerate((first, again, other)):
        torch.manual_seed(number)
        training.run(progress=False)
    assert a == b and len(set(a + c)) == 6


def test_an_objective_is_told_where_the_training_stands_and_may_change_gradients(train):
    training, calls = train(epochs=1), []
    training.objective.schedule = lambda *where: calls.append(where)
    training.objective.after_backward = lambda: calls.append("backward")
    training.run(progress=False)
    assert calls == [(0, 3, 3), "backward", (1, 3, 3), "backward", (2, 3, 3), "backward"]


def test_gradients_are_scaled_down_to_the_norm_asked_for(train):
    training = train(max_grad_norm=1e-3, epochs=1)
    training._step(training.objective, 0, training.batches[0])
    squares = [parameter.grad.square().sum() for parameter in training.objective.parameters()]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_batch_of_more_than_all_images_is_refused(train, pixels):
    with pytest.raises(InputError, match="a batch holds each image once at most, and there are 15: lower"):
        train(pixels=pixels[:15])
    assert train(pixels=pixels[:16]).steps_per_epoch == 1


def test_norms_that_processes_share_keep_the_activations_of_timm():
    backbone = new_backbone("test_efficientnet", 3, 32, seed=0).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = backbone(images)
        converted = pretrain.convert_sync_batchnorm(backbone)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())
        assert torch.allclose(converted(images), before, atol=1e-6)


def test_views_can_be_made_on_the_device(train, tmp_path):
    pytest.importorskip("kornia")
    first, again = (run(train(views="device"), tmp_path / name) for name in ("first", "again"))
    assert same(first[0], again[0])
    assert not same(first[0], run(train(), tmp_path / "workers")[0])


# Settings, backbone, cores


def test_settings_out_of_range_are_all_named():
    zero = dict.fromkeys(["epochs", "max_steps", "learning_rate", "max_grad_norm", "checkpoint_every"], 0)
    other = {"batch_size": 1, "warmup": 1, "weight_decay": -1, "workers": -1, "views": "gpu", "optimizer": "adam"}
    with pytest.raises(SettingsError) as caught:
        TeacherTrainingSettings(objective_args={"image_size": 8, "backbone": 1}, **zero, **other)
    assert caught.value.problems == [
        "teacher_training.views must be workers or device, got 'gpu'",
        "teacher_training.epochs must be at least 1, got 0",
        "teacher_training.max_steps must be at least 1, got 0",
        "teacher_training.batch_size must be at least 2, got 1",
        "teacher_training.optimizer must be one of auto, sgd, adamw, lars, got 'adam'; the nearest is adamw",
        "teacher_training.learning_rate must be above 0, got 0",
        "teacher_training.warmup must be in [0, 1), got 1",
        "teacher_training.weight_decay must be at least 0, got -1",
        "teacher_training.max_grad_norm must be above 0, got 0",
        "teacher_training.workers must be at least 0, got -1",
        "teacher_training.checkpoint_every must be at least 1, got 0",
        "teacher_training.objective_args must leave out backbone, image_size, which other settings decide",
    ]
