"""LGM against autograd through an explicit head, its views, and kept features of real images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.contract_cases import D, M, build, make_pairs, make_source, run
from reference.head_gradient_witness import distance

from ssdd_hub.data.augment import AUGMENTATIONS
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import InputError
from ssdd_hub.seeds import draw_batch, generator

STEP, LABELS = 3, torch.arange(21) % D


@pytest.fixture
def prepared(accelerator):
    """Builds a method after its preparation."""

    def prepare(labelled=True, pairs=None, source=None, **changed):
        source = source or make_source(labels=LABELS if labelled else None)
        method = build("lgm_labels" if labelled else "lgm", "pixels", accelerator, source=source, **changed).method
        assert list(method.prepare(pairs or make_pairs(M, 99, labelled))) == [None] * method.preparation()
        return method

    return prepare


def expected(method, pairs):
    """Returns loss and gradients of the witness; its draws are those of the method."""
    settings, seed = method.settings, method.problem.seed
    augment = AUGMENTATIONS[settings.augment]
    images = pairs.images.clone().requires_grad_()
    views = [augment(images, generator(seed, "view of the set", STEP, view), False) for view in range(settings.views)]
    rows = draw_batch(21, settings.real_images, seed, "real images of a head", STEP)
    real = augment(method.groups.at(rows).images, generator(seed, "views of real images", STEP), False)
    classes = method.groups.of_source[rows]
    width, count = method.judge().head.in_features, int(method.groups.of_source.max()) + 1
    weight = torch.randn(count, width, generator=generator(seed, "linear head", STEP)).double() * settings.weight_std
    own = (torch.cat(views), method.groups.of_set.repeat(settings.views))
    loss = distance(method.judge(), own, (real, classes), weight)
    return loss, torch.autograd.grad(loss, images)[0]


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "made again"])
@pytest.mark.parametrize("labelled", [False, True], ids=["clusters", "classes"])
@pytest.mark.parametrize("augment", ["none", "flip-resize-noise"])
def test_loss_and_gradients_are_those_of_an_explicit_head(prepared, augment, labelled, recompute):
    method = prepared(labelled, augment=augment, real_views=0, weight_std=0.5)
    method._recompute = recompute
    pairs = make_pairs(M, 99, labelled)
    loss, images = expected(method, pairs)
    found = method.gradients(pairs, STEP)
    assert found[0].item() == pytest.approx(loss.item(), rel=1e-8)
    assert method.loss(pairs, STEP).item() == pytest.approx(loss.item(), rel=1e-8)
    np.testing.assert_allclose(found[1], images, rtol=1e-8, atol=1e-8 * images.abs().max())
    assert images.abs().sum((1, 2, 3)).min() > 0 and not found[2].any()


def test_activations_are_made_again_where_they_would_fill_the_memory(prepared, monkeypatch):
    for free, recompute in ((2**30, False), (1000, True)):
        method = prepared()
        monkeypatch.setattr("ssdd_hub.distill.engine.memory.free_memory", lambda device, free=free: free)
        method.gradients(make_pairs(M, 99, True), STEP)
        assert method._recompute is recompute


def test_a_set_of_all_real_images_has_their_gradient_and_another_has_not(prepared):
    rows = torch.arange(21).roll(4)
    source = make_source(labels=LABELS)
    first = Pairs(source.images(rows).double(), source.targets[rows])
    method = prepared(pairs=first, source=source, augment="none", real_images=100)
    assert abs(method.loss(first, STEP)) < 1e-12
    assert method.loss(Pairs(make_pairs(21, 4).images, first.targets), STEP) > 1e-3


def test_kept_features_are_those_of_views_drawn_once(prepared):
    method, pairs = prepared(real_views=2, real_images=21), make_pairs(M, 99, True)
    method.gradients(pairs, STEP)
    kept = method._kept.kept
    assert kept.shape == (2, 21, method.judge().head.in_features)
    images = method.groups.at(torch.arange(21)).images
    for view in range(2):
        seen = AUGMENTATIONS["flip-resize-noise"](images, generator(0, "kept views of real images", view, 0), False)
        torch.testing.assert_close(kept[view], method._features(seen), rtol=1e-10, atol=1e-12)
    method.gradients(pairs, STEP + 1)
    assert method._kept.kept is kept
    # Without augmentation they are the features that are computed in each step otherwise.
    once, fresh = prepared(augment="none"), prepared(augment="none", real_views=0)
    fresh._kept = None
    assert once.loss(pairs, STEP).item() == pytest.approx(fresh.loss(pairs, STEP).item(), rel=1e-10)
    assert len(once._kept.kept) == 1 and fresh._kept is None


def test_timed_steps_keep_features_of_few_images(prepared, monkeypatch):
    monkeypatch.setattr("ssdd_hub.distill.methods.frozen._PART", 5)
    method = prepared(real_views=4)
    method.rehearse()
    method.gradients(make_pairs(M, 99, True), STEP)
    kept = method._kept.kept
    assert kept.shape[:2] == (4, 21) and torch.equal(kept[3, 20], kept[0, 0])


def test_steps_lower_the_loss_of_heads_that_were_not_seen(accelerator):
    distiller = build("lgm_labels", "pixels", accelerator, augment="none", real_images=21)
    list(distiller.warm_up())
    # As long as the images are large.
    distiller._rates = [0.3, 0.0]
    before = np.mean([distiller.method.loss(distiller.rendered(), 100 + step).item() for step in range(20)])
    run(distiller, 10)
    after = np.mean([distiller.method.loss(distiller.rendered(), 100 + step).item() for step in range(20)])
    assert after < 0.9 * before


def test_the_backbone_may_be_the_teacher_of_the_run(prepared, small_teacher):
    source = replace(make_source(), teacher=small_teacher().double())
    method = prepared(labelled=False, source=source, backbone="teacher")
    assert not method.groups.are_classes and method.judge().teacher is source.teacher
    found = method.gradients(make_pairs(M, 99), STEP)[1]
    assert found.abs().sum((1, 2, 3)).min() > 0
    with pytest.raises(InputError, match="this run has no teacher: name a timm model"):
        prepared(backbone="teacher")
