import json
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ssdd_hub import pretrain
from ssdd_hub.checkpoint import Checkpoints
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.objectives import build_objective
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.pretrain import Pretraining, PretrainSettings, ViewBatches, leave_cores_to, new_backbone
from ssdd_hub.run_folder import RunLog

DIGITS = {"min_scale": 0.4, "hf_prob": 0.0, "random_gray_scale": 0.0, "cj_strength": 0.5, "solarization_prob": 0.0}
SMALL = {
    "objective_args": {"hidden_dim": 16, "output_dim": 16},
    "view_args": DIGITS,
    "batch_size": 16,
    "epochs": 2,
    "workers": 0,
}


@pytest.fixture
def pixels(digits):
    return digits[0].pixels[:40]


@pytest.fixture
def train(pixels):
    """Prepares a training on 40 digits: three steps an epoch."""

    def train(seed=0, pixels=pixels, autocast=nullcontext, **settings):
        backbone = new_backbone("ssdd_convnet3", 1, 16, seed, widths=(4, 8))
        settings = PretrainSettings(**{**SMALL, **settings})
        return Pretraining(backbone, pixels, PixelSpace.of(pixels), settings, seed=seed, autocast=autocast)

    return train


def run(training, folder):
    checkpoints, log = Checkpoints(folder / "checkpoints", keep=1), RunLog(folder / "log.jsonl")
    folder.mkdir(exist_ok=True)
    training.run(checkpoints, log, progress=False)
    return training.objective.state_dict(), (folder / "log.jsonl").read_bytes()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The training


def test_the_loss_falls_on_real_images(digits, tmp_path):
    pixels = digits[0].pixels[:192]
    backbone = new_backbone("ssdd_resnet10", 1, 16, seed=0, channels=(8, 8, 16, 16))
    settings = PretrainSettings(**{**SMALL, "batch_size": 64, "epochs": 6})
    training = Pretraining(backbone, pixels, PixelSpace.of(pixels), settings, seed=0)
    with torch.no_grad():
        before = [training.objective(training.batches[step]).item() for step in range(100, 103)]
    _, log = run(training, tmp_path)
    with torch.no_grad():
        after = [training.objective(training.batches[step]).item() for step in range(100, 103)]
    assert np.mean(after) < 0.5 * np.mean(before)
    assert max(after) < min(before)
    losses = [json.loads(line)["loss"] for line in log.splitlines()]
    assert len(losses) == 6 and losses[-1] < 0.6 * losses[0]


def test_a_record_is_written_at_the_end_of_each_epoch(train, tmp_path):
    training = train(epochs=3)
    _, log = run(training, tmp_path)
    records = [json.loads(line) for line in log.splitlines()]
    assert [(record["stage"], record["step"]) for record in records] == [
        ("teacher", 3),
        ("teacher", 6),
        ("teacher", 9),
    ]
    assert all(record.keys() == {"stage", "step", "loss"} and record["loss"] > 0 for record in records)


@pytest.mark.parametrize(("max_steps", "steps"), [(4, [3, 4]), (3, [3]), (1, [1]), (99, [3, 6])])
def test_a_trial_ends_after_so_many_steps_and_is_recorded_there(train, tmp_path, max_steps, steps):
    training = train(max_steps=max_steps)
    _, log = run(training, tmp_path)
    assert [json.loads(line)["step"] for line in log.splitlines()] == steps
    # The schedule ends there too.
    assert training.optimizer.param_groups[0]["lr"] == 0.06 * pretrain._schedule(steps[-1] - 1, steps[-1], 0.05)


def test_the_network_given_is_the_one_that_is_trained(train):
    training = train()
    backbone = training.objective.backbone
    before = backbone.blocks[0][0].weight.clone()
    training.run(progress=False)
    assert not torch.equal(before, backbone.blocks[0][0].weight)


def test_the_weights_are_contiguous_after_training(train):
    training = train(epochs=1)
    assert not training.objective.backbone.blocks[1][0].weight.is_contiguous()
    training.run(progress=False)
    assert all(tensor.is_contiguous() for tensor in training.objective.state_dict().values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(train, tmp_path):
    states = [run(train(seed), tmp_path / str(number)) for number, seed in enumerate((0, 0, 1))]
    assert same(states[0][0], states[1][0]) and states[0][1] == states[1][1]
    assert not same(states[0][0], states[2][0])


def test_the_first_step_is_that_of_plain_sgd(train):
    training, twin = train(epochs=1, warmup=0.0), train(epochs=1, warmup=0.0)
    views = training.batches[0]
    training._step(0, views)
    optimizer = torch.optim.SGD(twin.objective.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
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
    monkeypatch.setattr(
        training.optimizer, "step", lambda: used.append(training.optimizer.param_groups[0]["lr"]), raising=True
    )
    training.run(progress=False)
    assert used == pytest.approx([0.06 * step / 12 for step in range(1, 7)])


def test_the_forward_pass_runs_under_autocast(train):
    entered = []

    def autocast():
        entered.append(1)
        return torch.autocast("cpu", torch.bfloat16)

    train(epochs=1, autocast=autocast).run(progress=False)
    assert len(entered) == 3


def test_a_training_that_diverges_is_the_learning_rates_fault(train):
    with pytest.raises(InputError, match="the teacher's loss is nan at step 3: lower --pretrain.learning-rate"):
        train(learning_rate=1e30).run(progress=False)


# Going on


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", [3, 4, 6, 8])
def test_a_run_that_is_killed_and_started_again_ends_like_the_unbroken_one(train, tmp_path, killed_at):
    settings = {"epochs": 3, "checkpoint_every": 4}
    unbroken = run(train(**settings), tmp_path / "unbroken")
    steps = []

    def dying():
        if len(steps) == killed_at:
            raise Killed
        steps.append(1)
        return nullcontext()

    with pytest.raises(Killed):
        run(train(autocast=dying, **settings), tmp_path / "broken")
    redone = []
    resumed = run(train(autocast=lambda: redone.append(1) or nullcontext(), **settings), tmp_path / "broken")
    assert len(redone) == 9 - killed_at // 4 * 4
    assert same(resumed[0], unbroken[0])
    assert resumed[1] == unbroken[1]


def test_a_finished_training_is_not_done_again(train, tmp_path):
    settings = {"checkpoint_every": 6}
    first = run(train(**settings), tmp_path)
    redone = []
    again = run(train(autocast=lambda: redone.append(1) or nullcontext(), **settings), tmp_path)
    assert redone == [] and same(first[0], again[0]) and first[1] == again[1]


# Batches of views


@pytest.fixture
def batches(pixels, small_backbone):
    objective = build_objective("barlow_twins", small_backbone(), in_chans=1, image_size=16, hidden_dim=8)
    return ViewBatches(pixels, objective.build_views(16, PixelSpace.raw(1), **DIGITS), batch_size=8, seed=3)


def equal_views(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_holds_one_tensor_of_each_view(batches):
    first, second = batches[0]
    assert first.shape == second.shape == (8, 1, 16, 16) and not torch.equal(first, second)


def test_the_views_of_a_step_do_not_depend_on_the_worker_that_makes_them(batches):
    steps = range(3, 8)
    alone = [batches[step] for step in steps]
    shared = DataLoader(batches, batch_size=None, sampler=steps, num_workers=2)
    assert all(equal_views(a, b) for a, b in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0][0], alone[1][0])


def test_the_views_of_a_step_do_not_depend_on_the_global_generators(batches):
    drawn = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        drawn.append(batches[5])
    assert equal_views(*drawn)


def test_whichever_global_generator_a_view_draws_from_depends_on_seed_and_step(pixels):
    def views(image):
        return [torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])]

    first, again = ViewBatches(pixels, views, 4, seed=3), ViewBatches(pixels, views, 4, seed=3)
    again[1]
    assert torch.equal(first[0][0], again[0][0])
    for other in (first[1][0], ViewBatches(pixels, views, 4, seed=4)[0][0], first[0][0].roll(1, 0)):
        assert not (first[0][0] == other).any()


def test_making_views_leaves_the_global_generators_as_they_were(batches):
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    batches[5]
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_an_error_in_a_view_leaves_the_global_generators_as_they_were(pixels):
    def broken(image):
        random.random(), np.random.rand(), torch.rand(1)
        raise RuntimeError("no view")

    before = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no view"):
        ViewBatches(pixels, broken, 8, 3)[0]
    assert (random.getstate(), np.random.get_state()[2]) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_another_seed_gives_other_views(batches):
    other = ViewBatches(batches.pixels, batches.views, batches.batch_size, seed=4)
    assert not torch.equal(other[0][0], batches[0][0])


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_reaches_its_view_as_it_is(channels):
    pixels = torch.randint(0, 256, (5, channels, 8, 8), dtype=torch.uint8)

    def views(image):
        array = torch.from_numpy(np.array(image))
        return [array.reshape(8, 8, channels).permute(2, 0, 1)]

    (batch,) = ViewBatches(pixels, views, batch_size=5, seed=0)[0]
    assert sorted(map(str, batch.tolist())) == sorted(map(str, pixels.tolist()))


# Settings, backbone, cores


def test_settings_out_of_range_are_all_named():
    with pytest.raises(SettingsError) as caught:
        PretrainSettings(
            epochs=0,
            max_steps=0,
            batch_size=1,
            learning_rate=0,
            warmup=1,
            momentum=1,
            weight_decay=-1,
            workers=-1,
            checkpoint_every=0,
        )
    assert caught.value.problems == [
        "pretrain.epochs must be at least 1, got 0",
        "pretrain.max_steps must be at least 1, got 0",
        "pretrain.batch_size must be at least 2, got 1",
        "pretrain.learning_rate must be above 0, got 0",
        "pretrain.warmup must be in [0, 1), got 1",
        "pretrain.momentum must be in [0, 1), got 1",
        "pretrain.weight_decay must be at least 0, got -1",
        "pretrain.workers must be at least 0, got -1",
        "pretrain.checkpoint_every must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "simclr2"}, "objective 'simclr2' is unknown"),
        ({"objective_args": {"depth": 3}}, "does not take these settings"),
        ({"view_args": {"zoom": 3}}, "pretrain.view_args .*zoom"),
    ],
)
def test_settings_of_the_objective_are_checked_before_any_training(train, settings, message):
    with pytest.raises(InputError, match=message):
        train(**settings)


def test_a_fresh_backbone_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (new_backbone("ssdd_convnet3", 1, 16, seed).state_dict() for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backbone_is_built_for_the_size_and_the_channels_of_the_images():
    vit = new_backbone("test_vit", 1, 32, seed=0, patch_size=8)
    assert vit.patch_embed.img_size == (32, 32) and vit.patch_embed.proj.in_channels == 1
    # Networks that are not built for one size are not told it.
    assert new_backbone("test_resnet", 1, 32, seed=0).conv1[0].in_channels == 1


def test_an_unknown_backbone_or_argument_is_refused():
    with pytest.raises(InputError, match="teacher backbone 'resnet_9000'"):
        new_backbone("resnet_9000", 3, 32, 0)
    with pytest.raises(InputError, match="colour"):
        new_backbone("ssdd_resnet10", 3, 32, 0, colour=2)


@pytest.mark.parametrize(("workers", "left"), [(0, 3), (1, 2), (2, 1), (9, 1)])
def test_torch_runs_on_the_cores_that_the_workers_leave(workers, left):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with leave_cores_to(workers):
            assert torch.get_num_threads() == left
        assert torch.get_num_threads() == 3
        with pytest.raises(Killed), leave_cores_to(workers):
            raise Killed
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
