"""Matching methods: losses and gradients against a second implementation, networks, augmentation, class labels."""

from collections import deque

import numpy as np
import pytest
import torch
from reference import matching_witness as witness
from reference.contract_cases import D, M, build, make_pairs, make_source
from reference.krrst_numpy import to_network

from ssdd_hub.data.augment import AUGMENTATIONS
from ssdd_hub.distill.networks import cut_mix
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.runs.checkpoints import load_tree, save_tree

LABELS = torch.arange(21) % D
EVERY = {"augment": "none", "real_images": 100, "set_images": None}
LABELLED = pytest.mark.parametrize("labelled", [False, True], ids=["clusters", "classes"])


@pytest.fixture
def prepared(accelerator):
    """Builds a method after its preparation; all real images of each group count."""

    def prepare(name, labelled=False, source=None, **changed):
        source = source or make_source(labels=LABELS if labelled else None)
        method = build(name, "pixels", accelerator, source=source, **{**EVERY, **changed}).method
        method.prepare(make_pairs(M, 99))
        return method

    return prepare


def parts_of(method, step, pairs):
    """Yields for each group the network of a step, the set's images and the real ones, as arrays, and the class."""
    network = to_network(method.networks.get(method.networks.draw(step)))
    for group in method.groups.present:
        own = method.groups.rows(group)
        real = method.groups.at((method.groups.of_source == group).nonzero()[:, 0])
        arrays = ([part.numpy() for part in (pairs.images[own], pairs.targets[own])], [part.numpy() for part in real])
        yield own.numpy(), network, *arrays, group if method.groups.are_classes else None


def compare(method, step, expected):
    """Holds loss and gradients against those of a function of `parts_of`."""
    pairs = make_pairs(M, 99)
    loss, *found = method.gradients(pairs, step)
    total, sums = 0.0, [np.zeros(part.shape) for part in pairs]
    for own, *parts in parts_of(method, step, pairs):
        value, *grads = expected(*parts)
        total += value
        for whole, grad in zip(sums, grads, strict=True):
            whole[own] = grad
    assert loss.item() == pytest.approx(total, rel=1e-8)
    for ours, theirs in zip(found, sums, strict=True):
        assert np.abs(ours.numpy() - theirs).max() <= 1e-8 * np.abs(theirs).max()
    return sums


@LABELLED
def test_the_means_of_dm_are_those_of_the_witness(prepared, labelled):
    method, weight = prepared("dm", labelled, target_weight=0.3), 0 if labelled else 0.3
    _, of_targets = compare(method, 5, lambda network, own, real, group: witness.dm(network, own, real, weight))
    assert (np.abs(of_targets).max() > 0) != labelled


@LABELLED
def test_the_loss_of_idm_is_that_of_the_witness(prepared, labelled):
    trained = {"training_steps": 40, "training_batch": 21, "learning_rate": 0.3, "momentum": 0.0}
    method = prepared("idm", labelled, kept=1, first=1, **trained)
    pairs = make_pairs(M, 99)
    plain, _ = method.loss(pairs, 0), method.after_step(pairs, 0)
    skill = method.networks.skill[0]
    assert 0 < skill <= 100 and method.loss(pairs, 1) > plain
    weights = (0 if labelled else 1, 0.5 * skill)
    compare(method, 1, lambda network, own, real, group: witness.idm(network, own, real, *weights, group))


@LABELLED
@pytest.mark.parametrize(("name", "loss"), [("dc", witness.dc), ("idc", witness.idc)])
def test_the_gradients_that_dc_and_idc_match_are_those_of_the_witness(prepared, name, loss, labelled):
    method = prepared(name, labelled)
    method.after_step(make_pairs(M, 99), 0)

    def expected(network, own, real, group):
        found = witness.differentiated(network, own, real, group, cosine=name == "dc")
        assert found[0] == pytest.approx(loss(network, own, real, group), rel=1e-10)
        return found

    sums = compare(method, 1, expected)
    assert (np.abs(sums[1]).max() > 0) != labelled


def test_the_gradients_of_the_witness_are_those_of_finite_differences(prepared):
    _, network, own, real, _ = next(parts_of(prepared("dc"), 0, make_pairs(M, 99)))
    cases = [
        (lambda own: witness.idm(network, own, real, 0.3, 0.5)[0], witness.idm(network, own, real, 0.3, 0.5)),
        (lambda own: witness.idm(network, own, real, 0, 1, 1)[0], witness.idm(network, own, real, 0, 1, 1)),
        (lambda own: witness.dc(network, own, real), witness.differentiated(network, own, real)),
    ]
    drawn = np.random.default_rng(0)
    for loss, (_, *gradients) in cases:
        ways = [1e-5 * drawn.standard_normal(part.shape) for part in own]
        ahead, back = (loss([part + sign * way for part, way in zip(own, ways, strict=True)]) for sign in (1, -1))
        expected = sum((gradient * way).sum() for gradient, way in zip(gradients, ways, strict=True))
        assert (ahead - back) / 2 == pytest.approx(expected, rel=1e-5)


# Siamese augmentation


@pytest.mark.parametrize("augment", ["dsa", "colour-crop-cutout"])
def test_a_set_of_all_real_images_matches_them_however_both_are_augmented(prepared, augment):
    source = make_source(labels=LABELS)
    for name in ("dm", "idc"):
        method = prepared(name, source=source, augment=augment)
        rows = torch.arange(len(LABELS)).roll(7)
        method.groups = type(method.groups)(method.problem, LABELS, LABELS[rows])
        same, other = method.groups.at(rows), make_pairs(len(rows), 5)
        for step in range(6):
            assert abs(method.loss(same, step)) < 1e-12
            assert method.loss(Pairs(other.images, same.targets), step) > 1e-6


def test_real_images_of_a_step_differ_and_come_equally_often(prepared):
    groups = prepared("dm", labelled=True).groups
    for group in groups.present:
        members, counts = (groups.of_source == group).nonzero()[:, 0], torch.zeros(21)
        for step in range(200):
            rows = groups.real_rows(group, 5, step)
            assert len(rows) == len({*rows.tolist()}) == 5 and torch.isin(rows, members).all()
            counts[rows] += 1
        # Five standard deviations of 200 draws of 5 of 7.
        assert (counts[members] - 200 * 5 / 7).abs().max() < 5 * (200 * 5 / 7 * 2 / 7) ** 0.5


def test_targets_without_weight_stay_where_they_start_whatever_a_bit_costs(accelerator):
    for weight, moves in ((0.0, False), (1.0, True)):
        distiller = build("dm", "dct", accelerator, target_weight=weight)
        deque(distiller.warm_up(), maxlen=0)
        before = distiller.parameterisation.targets.detach().clone()
        for _ in range(4):
            distiller.step()
        assert torch.equal(distiller.parameterisation.targets, before) != moves


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_one_draw_holds_for_batches_of_any_size(name):
    images = make_pairs(9, 1).images
    for seed in range(12):
        several, one, own = (
            AUGMENTATIONS[name](part, torch.Generator().manual_seed(seed), alike)
            for part, alike in [(images, True), (images[4:5], True), (images, False)]
        )
        torch.testing.assert_close(several[4:5], one, rtol=1e-12, atol=1e-12)
        assert several.shape == own.shape


# Networks


def test_a_network_restarts_and_the_last_training_before_it_is_left_out(prepared):
    method, pairs = prepared("dc", restart=3, training_steps=2), make_pairs(M, 99)
    seen, ages = [], []
    for step in range(7):
        seen.append(method.networks.draw(step))
        ages.append(method.networks._student(seen[-1]).age)
        logged = method.after_step(pairs, step)
        assert (logged["inner_loss"] is None) == (step % 3 == 2)
    assert seen == [0, 0, 0, 1, 1, 1, 2] and ages == [0, 2, 4, 0, 2, 4, 0]
    fresh = prepared("dm").networks
    assert [fresh.draw(step) for step in range(4)] == [0, 1, 2, 3] and fresh.train(pairs, 0) is None


def test_the_networks_of_idm_are_a_queue(prepared):
    networks = prepared("idm", kept=5, first=2, restart=3).networks
    assert [list(networks.numbers(step)) for step in (0, 2, 3, 11, 12)] == [
        *([0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    ]
    assert {networks.draw(step) for step in range(12, 15)} <= {1, 2, 3, 4, 5}
    for step in range(12):
        networks.train(make_pairs(M, 99), step)
    assert networks.oldest() is not None and set(networks.skill) <= {1, 2, 3, 4, 5}
    with pytest.raises(SettingsError, match="method.args.first must be at most kept, 2, got 3"):
        prepared("idm", kept=2, first=3)


@LABELLED
@pytest.mark.parametrize("on", ["set", "real"])
def test_training_lowers_the_loss_of_the_task(prepared, on, labelled):
    settings = {"networks": on, "training_batch": 21, "learning_rate": 0.3, "training_steps": 8, "restart": 100}
    method, pairs = prepared("dc", labelled, **settings), make_pairs(M, 99)
    losses = [method.after_step(pairs, step)["inner_loss"] for step in range(5)]
    assert losses[-1] < 0.8 * losses[0]
    assert method.networks.skill[0] > 20


def test_the_task_of_clusters_is_regression_alone(prepared):
    assert prepared("dc", labelled=True, task="regression").networks.task == "regression"
    with pytest.raises(InputError, match="cross_entropy is for targets that are class labels: leave task at auto"):
        prepared("dc", task="cross_entropy")


def test_batch_norms_start_with_the_statistics_of_real_images(prepared):
    method = prepared("dm", training_batch=21)
    norm = method.networks.get(0).blocks[0][1]
    convolved = method.networks.get(0).blocks[0][0](method.groups.at(torch.arange(21)).images)
    torch.testing.assert_close(norm.running_mean, convolved.mean((0, 2, 3)).detach())
    torch.testing.assert_close(norm.running_var, convolved.var((0, 2, 3)).detach())
    assert norm.momentum == 0.1


def test_a_mixed_rectangle_takes_as_much_of_the_target_as_of_the_image():
    count, targets = 12, torch.eye(12, dtype=torch.float64)
    images = torch.arange(count, dtype=torch.float64)[:, None, None, None].expand(count, 2, 7, 9)
    shares = set()
    for seed in range(40):
        mixed = cut_mix(Pairs(images, targets), 0.5, torch.Generator().manual_seed(seed))
        for number in range(count):
            held = torch.bincount(mixed.images[number, 0].flatten().long(), minlength=count) / 63
            torch.testing.assert_close(held.double(), mixed.targets[number])
        assert torch.equal(mixed.images[:, 0], mixed.images[:, 1])
        shares.add(round(float(mixed.targets.diagonal().min()), 6))
    assert 1 in shares and len(shares) > 10
    unmixed = cut_mix(Pairs(images, targets), 0.0, torch.Generator())
    assert unmixed.images is images


def test_with_class_labels_a_resumed_run_is_the_unbroken_one(accelerator, tmp_path):
    def make():
        distiller = build("idc", "factor", accelerator, source=make_source(labels=LABELS), restart=4)
        assert list(distiller.warm_up()) == []
        return distiller

    unbroken, stopped, resumed = make(), make(), make()
    losses = [unbroken.step()["loss"].item() for _ in range(6)]
    assert [stopped.step()["loss"].item() for _ in range(3)] == losses[:3]
    save_tree(tmp_path / "state.safetensors", stopped.state_dict())
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert [resumed.step()["loss"].item() for _ in range(3)] == losses[3:]
    assert torch.equal(unbroken.images, resumed.images)
    # Labels are not learned.
    assert torch.equal(unbroken.targets, make_pairs(M, 99).targets)


@pytest.mark.parametrize("name", ["dm", "dc"])
def test_steps_bring_the_set_nearer(accelerator, name):
    distiller = build(name, "pixels", accelerator, **{**EVERY, "networks": "fresh", "training_batch": 21})
    list(distiller.warm_up())
    distiller._rates = [0.1, 0.1]
    before = distiller.method.loss(make_pairs(M, 99), 3)
    for _ in range(10):
        distiller.step()
    assert distiller.method.loss(Pairs(distiller.images, distiller.targets), 3) < 0.7 * before
