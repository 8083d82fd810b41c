import copy
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from reference import krrst_numpy as witness
from timm.optim import Muon
from torch import nn

from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.errors import SettingsError
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.runs.checkpoints import load_tree, save_tree
from ssdd_hub.seeds import seeded

IMAGES = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.5], [2.0, 0.5, -1.0], [0.5, 1.0, 1.0]], dtype=torch.float64)
TARGETS = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0], [3.0, 0.5]], dtype=torch.float64)


def build():
    """The smallest student: its inner problem is a linear regression."""
    return nn.Linear(3, 2)


def make_pool(seed=0, build=build, **settings):
    return StudentPool(build, PoolSettings(**{"size": 5, "max_age": 50, **settings}), seed, dtype=torch.float64)


def warmed_up(pool):
    for _ in pool.warm_up(IMAGES, TARGETS):
        pass
    return pool


def never_trained(student):
    """SGD keeps a momentum for each weight from the first step on."""
    return not student.optimizer.state


def run(pool, steps, first=0):
    """Draws and advances; returns each draw's slot, its age, and whether its student has never taken a step."""
    seen = []
    for step in range(first, first + steps):
        slot = pool.draw(step)
        seen.append((slot, pool.ages[slot], never_trained(pool.students[slot])))
        pool.advance(slot, IMAGES, TARGETS)
    return seen


def simulate(draws, first_ages, max_age, renewal):
    """The state machine as a plain loop over counters; returns each draw's age, and whether it was never trained."""
    counters, taken, seen = list(first_ages), list(first_ages), []
    for slot in draws:
        seen.append((counters[slot], taken[slot] == 0))
        if renewal == "never-train":
            if counters[slot] < max_age:
                counters[slot] += 1
                taken[slot] += 1
            else:
                taken[slot] = 0
        else:
            counters[slot] += 1
            taken[slot] += 1
            if counters[slot] == max_age:
                counters[slot] = taken[slot] = 0
    return seen


def weights(pool, slot=0):
    return torch.cat([parameter.detach().flatten() for parameter in pool.students[slot].module.parameters()])


# Ages


def test_a_renewed_student_has_age_0_and_then_ages():
    pool = make_pool(size=1, max_age=3, warm_up=False)
    ages, trained, before = [], [], []
    for _ in range(8):
        before.append(weights(pool))
        pool.advance(0, IMAGES, TARGETS)
        ages.append(pool.ages[0])
        trained.append(not never_trained(pool.students[0]))
    assert ages == [1, 2, 0, 1, 2, 0, 1, 2]
    assert trained == [True, True, False, True, True, False, True, True]
    assert [student.generation for student in pool.students] == [2]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(before, 2))


@pytest.mark.parametrize("renewal", ["train", "never-train"])
def test_ages_are_those_of_a_plain_loop(renewal):
    pool = warmed_up(make_pool(renewal=renewal))
    first_ages = pool.first_ages()
    seen = run(pool, 1000)
    assert [tuple(rest) for _, *rest in seen] == simulate([slot for slot, *_ in seen], first_ages, 50, renewal)
    untrained = [never for *_, never in seen]
    if renewal == "train":
        # A slot goes through all ages in turn, and only a student of age 0 has never been trained.
        assert {age for _, age, _ in seen} == set(range(50)) and sum(untrained) <= 25
    else:
        # All that the slots had left, then the visit that replaces the trained student: 5 slots, ages up to 50.
        assert sum(untrained) == 1000 - (sum(50 - age for age in first_ages) + 5)
        assert pool.ages == [50] * 5 and all(untrained[500:])


def test_never_train_replaces_the_student_at_each_visit_and_tells_so():
    pool = make_pool(size=1, max_age=2, renewal="never-train", warm_up=False)
    losses, visited = [], []
    for _ in range(5):
        visited.append(weights(pool))
        losses.append(pool.advance(0, IMAGES, TARGETS))
    assert [loss is None for loss in losses] == [False, False, True, True, True]
    assert pool.students[0].generation == 3
    for generation, seen in ((1, visited[3]), (2, visited[4])):
        fresh = make_pool(size=1)._fresh(0, generation)
        assert torch.equal(seen, torch.cat([parameter.detach().flatten() for parameter in fresh.module.parameters()]))


def test_a_student_may_live_for_one_step():
    pool = warmed_up(make_pool(max_age=1))
    assert pool.first_ages() == [0] * 5
    seen = run(pool, 20)
    assert {(age, untrained) for _, age, untrained in seen} == {(0, True)}
    assert sum(student.generation for student in pool.students) == 20


# First ages


def test_first_ages_span_1_to_the_age_before_renewal():
    pool = make_pool(size=1)
    pool.settings = PoolSettings(size=2000, max_age=4)  # as many students would take seconds to build
    counts = Counter(pool.first_ages())
    assert sorted(counts) == [1, 2, 3]
    # 2000 / 3, and five standard deviations of a binomial.
    assert all(abs(count - 667) < 106 for count in counts.values())
    assert make_pool(size=3, max_age=2).first_ages() == [1, 1, 1]
    assert make_pool(seed=1).first_ages() == make_pool(seed=1).first_ages() != make_pool(seed=2).first_ages()


def test_warm_up_trains_each_student_to_its_first_age():
    pool = make_pool()
    losses = list(pool.warm_up(IMAGES, TARGETS))
    assert pool.ages == pool.first_ages()
    assert len(losses) == sum(pool.first_ages())
    alone = make_pool()
    for slot, age in enumerate(pool.first_ages()):
        for _ in range(age):
            alone.advance(slot, IMAGES, TARGETS)
    assert all(torch.equal(weights(pool, slot), weights(alone, slot)) for slot in range(5))


def test_warm_up_by_batches_draws_each_anew():
    pool, seen = make_pool(), []
    inner = pool.step

    def watched(student, optimizer, pairs):
        seen.append(pairs)
        return inner(student, optimizer, pairs)

    pool.step = watched
    losses = list(pool.warm_up(IMAGES, TARGETS, 3))
    assert pool.ages == pool.first_ages() and len(losses) == len(seen)
    places = [[int((IMAGES == image).flatten(1).all(1).nonzero()) for image in pairs.images] for pairs in seen]
    assert all(torch.equal(TARGETS[rows], pairs.targets) for rows, pairs in zip(places, seen, strict=True))
    assert all(len(set(rows)) == 3 for rows in places) and len({tuple(rows) for rows in places}) > 1


# Randomness


def test_a_fresh_student_is_a_function_of_seed_slot_and_generation():
    torch.manual_seed(5)
    one = make_pool(seed=3)
    torch.manual_seed(6)
    torch.rand(10)
    other = make_pool(seed=3)
    assert all(torch.equal(weights(one, slot), weights(other, slot)) for slot in range(5))
    drawn = [weights(make_pool(seed=seed), slot) for seed in (3, 4) for slot in range(5)]
    again = make_pool(seed=3)
    again.students = [again._fresh(slot, generation=1) for slot in range(5)]
    drawn += [weights(again, slot) for slot in range(5)]
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(drawn, 2))
    with seeded(3, "student", 2, 1):
        assert torch.equal(build().weight.double(), again.students[2].module.weight)


def test_draws_are_a_function_of_seed_and_step():
    pool, other = make_pool(seed=1), make_pool(seed=1)
    steps = list(range(200))
    forward = [pool.draw(step) for step in steps]
    run(other, 30)
    assert [other.draw(step) for step in reversed(steps)] == forward[::-1]
    reseeded = make_pool(seed=2)
    assert [reseeded.draw(step) for step in steps] != forward
    assert set(forward) == set(range(5))


# The inner step


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 1e-3), (0.0, 0.5)])
def test_inner_steps_are_sgd_with_momentum_and_weight_decay(momentum, weight_decay):
    settings = {"learning_rate": 0.05, "momentum": momentum, "weight_decay": weight_decay}
    pool = make_pool(size=1, warm_up=False, **settings)
    module = pool.students[0].module
    weight, bias = module.weight.detach().clone().numpy(), module.bias.detach().clone().numpy()
    optimizer = witness.SGD(**settings)
    for shift in range(3):
        # The set moves between inner steps, as it does in a distillation.
        images, targets = IMAGES + shift, TARGETS - shift
        loss, _, grad_weight, grad_bias = witness.head_gradients(images.numpy(), weight, bias, targets.numpy())
        ours = pool.advance(0, images, targets)
        assert ours.item() == pytest.approx(loss, rel=1e-12) and not ours.requires_grad
        weight = optimizer.update("weight", weight, grad_weight)
        bias = optimizer.update("bias", bias, grad_bias)
        np.testing.assert_allclose(module.weight.detach(), weight, rtol=1e-12)
        np.testing.assert_allclose(module.bias.detach(), bias, rtol=1e-12)


def test_the_inner_step_is_in_train_mode_and_leaves_the_other_students_alone():
    pool = make_pool(size=2, warm_up=False, build=lambda: ConvNet((2,), "batch", 1, 4, 2))
    pool.students[0].module.eval()
    others = weights(pool, 1)
    pool.advance(0, torch.randn(4, 1, 4, 4, dtype=torch.float64), TARGETS)
    statistics = [student.module.blocks[0][1].num_batches_tracked.item() for student in pool.students]
    assert statistics == [1, 0]
    assert torch.equal(weights(pool, 1), others)


# State


@pytest.mark.parametrize("renewal", ["train", "never-train"])
def test_a_saved_pool_goes_on_bit_for_bit(tmp_path, renewal):
    settings = {"size": 3, "max_age": 6, "renewal": renewal}
    unbroken, stopped = warmed_up(make_pool(**settings)), warmed_up(make_pool(**settings))
    run(unbroken, 60)
    run(stopped, 31)
    save_tree(tmp_path / "pool.safetensors", stopped.state_dict())
    resumed = make_pool(**settings)
    resumed.load_state_dict(load_tree(tmp_path / "pool.safetensors"))
    assert [student.generation for student in resumed.students] == [student.generation for student in stopped.students]
    run(resumed, 29, first=31)
    assert resumed.ages == unbroken.ages
    for ours, theirs in zip(resumed.students, unbroken.students, strict=True):
        assert ours.generation == theirs.generation
        assert all(map(torch.equal, ours.module.parameters(), theirs.module.parameters()))
        momenta = [[state["momentum_buffer"] for state in s.optimizer.state.values()] for s in (ours, theirs)]
        assert len(momenta[0]) == len(momenta[1]) == (0 if theirs.age in (0, 6) and never_trained(theirs) else 2)
        assert all(map(torch.equal, *momenta))


def test_inner_steps_by_muon_are_timms_and_resumed_bit_for_bit(tmp_path):
    rates = {"momentum": 0.5, "weight_decay": 0.0}
    settings = {"size": 1, "warm_up": False, "optimizer": "muon", "learning_rate": 0.01, **rates}
    settings["build"] = lambda: ConvNet((4,), "batch", 1, 4, 2)
    unbroken, stopped = make_pool(**settings), make_pool(**settings)
    alone = copy.deepcopy(unbroken.student(0))
    theirs = Muon(alone.parameters(), lr=0.01, **rates)
    images = torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for step in range(4):
        for pool in (unbroken, stopped):
            pool.advance(0, images, targets)
        theirs.zero_grad()
        nn.functional.mse_loss(alone.train()(images), targets).backward()
        theirs.step()
        if step == 1:
            save_tree(tmp_path / "pool.safetensors", stopped.state_dict())
            stopped = make_pool(**settings)
            stopped.load_state_dict(load_tree(tmp_path / "pool.safetensors"))
    for network in (stopped.student(0), alone):
        assert all(map(torch.equal, network.state_dict().values(), unbroken.student(0).state_dict().values()))


# Settings


def test_every_wrong_setting_is_reported():
    wrong = {"size": 0, "max_age": 0, "renewal": "maybe", "learning_rate": 0.0, "momentum": 1.0, "weight_decay": -1.0}
    with pytest.raises(SettingsError) as raised:
        PoolSettings(**wrong)
    assert raised.value.problems == [
        "pool.size must be at least 1, got 0",
        "pool.max_age must be at least 1, got 0",
        "pool.renewal must be one of train, never-train, got 'maybe'",
        "pool.learning_rate must be above 0, got 0.0",
        "pool.momentum must be in [0, 1), got 1.0",
        "pool.weight_decay must be at least 0, got -1.0",
    ]


def test_the_defaults_are_those_of_the_paper():
    settings = PoolSettings()
    assert (settings.size, settings.max_age, settings.renewal, settings.warm_up) == (10, 1000, "train", True)
    assert (settings.learning_rate, settings.momentum, settings.weight_decay) == (0.1, 0.9, 1e-3)
