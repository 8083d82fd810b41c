"""FRePo, RFAD and CLP-DD against a second implementation in NumPy float64, and what is their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import kernel_numpy as witness
from reference.contract_cases import B, D, M, build, make_pairs, make_source
from reference.krrst_numpy import AdamW, head_gradients, to_network

from ssdd_hub.data.augment import AUGMENTATIONS
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.methods.clp_dd import ClpDd, ClpDdSettings
from ssdd_hub.distill.methods.frepo import Frepo, FrepoSettings
from ssdd_hub.distill.methods.rfad import Rfad, RfadSettings
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.checkpoints import load_tree, save_tree
from ssdd_hub.seeds import draw_batch, generator
from ssdd_hub.selection.source import Source

STEP = 3


@pytest.fixture
def make(accelerator):
    """Builds a method with some settings on the contract's problem, whose targets are of classes or not."""

    def make(kind, settings, labelled=True, **changes):
        problem = build("clp_dd" if labelled else "frepo", "pixels", accelerator).method.problem
        return kind(settings, replace(problem, **changes))

    return make


def compare(method, networks, margin=None, **form):
    """Compares loss and gradients of a step with the witness, on a set whose targets are no classes any more."""
    pairs, real = make_pairs(M, 99), method.problem.batch(STEP)
    arrays = [part.numpy() for part in (*pairs, *real)]
    if flip := form.pop("flip", False):
        arrays[0], arrays[1] = np.concatenate([arrays[0], arrays[0][..., ::-1]]), np.concatenate([arrays[1]] * 2)
    loss, images, targets, other = witness.through_networks([to_network(each) for each in networks], *arrays, **form)
    if flip:
        images, targets = images[:M] + images[M:, ..., ::-1], targets[:M] + targets[M:]
    if margin:
        own, gradient = witness.margin(pairs.targets.numpy())
        loss, targets = loss + margin * own, targets + margin * gradient
        assert 0 < np.abs(gradient).sum(1).astype(bool).sum() < M
    ours = [method.gradients(pairs, STEP), torch.autograd.grad(method.loss(leaves := pairs.leaves(), STEP), leaves)]
    assert ours[0][0].item() == pytest.approx(loss, rel=1e-8)
    for found in (ours[0][1:], ours[1]):
        for mine, theirs in zip(found, (images, targets), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-8 * np.abs(theirs).max())
    return other


@pytest.mark.parametrize(
    ("settings", "labelled"),
    [({"flip": True, "margin": 0.5, "penalty": 0.1}, True), ({"margin": 0.0}, True), ({"penalty": 0.1}, False)],
    ids=["labels and mirror images", "labels without margin", "features"],
)
def test_frepo_is_its_witness(make, settings, labelled):
    pool = PoolSettings(2, 9, optimizer="adam", learning_rate=1e-2)
    method = make(Frepo, FrepoSettings(pool=pool, **settings), labelled)
    assert len(list(method.prepare(make_pairs(M, 99)))) > 2
    student = method.pool.student(method.pool.draw(STEP))
    form = {"phi": (1.0, 0.0), "penalty": settings.get("penalty", 1e-6), "outer": witness.half_sum}
    margin = settings.get("margin", 1.0) if labelled else 0.0
    compare(method, [student], margin, flip=settings.get("flip"), **form)


@pytest.mark.parametrize("weights", ["gaussian", "student"])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_rfad_is_its_witness(make, weights, loss):
    settings = RfadSettings(loss=loss, networks=3, weights=weights, penalty=0.05)
    method = make(Rfad, settings, labelled=loss == "cross_entropy")
    outer, networks = witness.half_mean, method.network(STEP).networks
    if loss == "cross_entropy":
        with torch.no_grad():
            method.outer.log_scale.fill_(0.7)
        outer = witness.cross_entropy(np.exp(0.7))
    width = 3 * networks[0].head.in_features
    # The kernel of the paper, 2 / (P·F) Σ φ φᵀ + 0.01.
    slope = compare(method, networks, phi=(np.sqrt(2 / width), 0.1), penalty=0.05, outer=outer)
    if loss == "cross_entropy":
        assert method.found[0].item() == pytest.approx(slope, rel=1e-8)
        first = AdamW(()).update(0.7, slope, 1e-2)
        assert method.after_step(make_pairs(M, 99), STEP)["scale"].item() == pytest.approx(np.exp(first), rel=1e-7)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_clp_dd_is_its_witness(make, loss):
    settings = ClpDdSettings(backbone="student", loss=loss, temperature=0.2, penalty=0.3)
    outer = witness.mean if loss == "squared_error" else witness.cross_entropy(5.0)
    method = make(ClpDd, settings)
    compare(method, [method.judge()], phi=(1.0, 1.0), penalty=0.3, outer=outer)


def views_of(method, images, purpose, *place):
    return AUGMENTATIONS[method.settings.augment](images, generator(0, purpose, *place), False)


@pytest.mark.parametrize("real_views", [0, 2], ids=["fresh", "kept"])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_views_of_clp_dd_are_its_witness_on_the_views(make, loss, real_views):
    """The witness sees views of the set as its images, and their gradients come back through the augmentation."""
    form = {"penalty": 0.3, "outer": witness.mean if loss == "squared_error" else witness.cross_entropy(5.0)}
    settings = {"backbone": "student", "loss": loss, "temperature": 0.2, "penalty": 0.3}
    source = make_source(labels=torch.arange(21) % D)
    settings |= {"augment": "flip-resize-noise", "views": 3, "real_views": real_views}
    method, pairs = make(ClpDd, ClpDdSettings(**settings), source=source), make_pairs(M, 99).leaves()
    seen = torch.cat([views_of(method, pairs.images, "view of the set", STEP, view) for view in range(3)])
    if real_views:
        rows, every = draw_batch(21, B, 0, "real batch", STEP), source.images(torch.arange(21)).double()
        kept = torch.stack([views_of(method, every, "kept views of real images", view, 0) for view in range(2)])
        drawn = torch.randint(2, rows.shape, generator=generator(0, "views of real images", STEP))
        real = Pairs(kept[drawn, rows], source.targets[rows])
    else:
        real = method.problem.batch(STEP)
        real = Pairs(views_of(method, real.images, "views of real images", STEP), real.targets)
    arrays = [part.detach().numpy() for part in (seen, pairs.targets.repeat(3, 1), *real)]
    value, *gradients, _ = witness.through_networks([to_network(method.judge())], *arrays, phi=(1.0, 1.0), **form)
    by_images = torch.autograd.grad(seen, pairs.images, torch.from_numpy(gradients[0]))[0]
    by_targets = gradients[1].reshape(3, M, D).sum(0)
    found = method.gradients(pairs, STEP)
    assert found[0].item() == pytest.approx(value, rel=1e-8) == method.loss(pairs, STEP).item()
    for mine, theirs in zip(found[1:], (by_images.numpy(), by_targets), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-8 * np.abs(theirs).max())


def test_timed_steps_of_clp_dd_keep_features_of_few_images(make, monkeypatch):
    monkeypatch.setattr("ssdd_hub.distill.methods.frozen._PART", 5)
    method = make(ClpDd, ClpDdSettings(backbone="student", real_views=4, augment="flip-resize-noise"))
    method.rehearse()
    method.gradients(make_pairs(M, 99), STEP)
    kept = method._kept.kept
    assert kept.shape[:2] == (4, 21) and torch.equal(kept[3, 20], kept[0, 0])


def test_kept_features_are_computed_in_parts_that_are_counted_or_when_they_are_asked_for(make, monkeypatch):
    monkeypatch.setattr("ssdd_hub.distill.methods.frozen._PART", 5)
    settings = ClpDdSettings(backbone="student", real_views=2, augment="flip-resize-noise")
    counted, asked, begun = (make(ClpDd, settings) for _ in range(3))
    assert list(counted.prepare(make_pairs(M, 99))) == [None] * 10 and counted.preparation() == 10
    assert next(begun.prepare(make_pairs(M, 99))) is None
    for method in (asked, begun):
        assert torch.equal(method._kept.kept, counted._kept.kept)
    assert make(ClpDd, ClpDdSettings(backbone="student")).preparation() == 0


def test_kept_features_need_all_real_images(make):
    settings = ClpDdSettings(backbone="student", loss="squared_error", real_views=1)
    with pytest.raises(InputError, match="this method needs all real images"):
        make(ClpDd, settings, labelled=False, source=None)


# RFAD


def test_networks_are_drawn_again_and_are_a_function_of_seed_and_step(make):
    method = make(Rfad, RfadSettings(networks=2, redraw_every=3), labelled=False)
    first = method.network(2)
    assert method.network(0) is first
    assert method.network(3) is not first
    again = make(Rfad, RfadSettings(networks=2, redraw_every=3), labelled=False).network(1)
    images = make_pairs(4, 0).images
    features = [torch.cat([network.features(images) for network in each.networks], 1) for each in (first, again)]
    assert torch.equal(*features)
    assert not torch.equal(features[0], again.forward_features(images))
    one, other = first.networks
    assert not torch.equal(one.head.weight, other.head.weight)


def test_gaussian_weights_have_the_variance_that_keeps_the_size_of_features(make):
    networks = make(Rfad, RfadSettings(networks=40), labelled=False).network(0).networks
    weights = torch.stack([network.head.weight for network in networks])
    assert weights.var().item() == pytest.approx(2 / weights.shape[-1], rel=0.1)
    biases = torch.stack([network.blocks[0][0].bias for network in networks])
    assert biases.std().item() == pytest.approx(0.1, rel=0.3)


# CLP-DD


def test_the_backbone_may_be_the_teacher_of_the_run(make, small_teacher):
    # The teacher resizes the images, and has a pixel space of its own.
    teacher, pixels, space = small_teacher().double(), torch.rand(5, 1, 8, 8).double(), PixelSpace((0.3,), (0.2,))
    source = Source(None, None, teacher, None, space)
    method = make(ClpDd, ClpDdSettings(loss="squared_error"), source=source)
    images = space.normalise(pixels).requires_grad_()
    features = method.problem.engine.features(method.network(0), images)
    torch.testing.assert_close(features, teacher(pixels), rtol=1e-9, atol=1e-9)
    assert torch.autograd.grad(features.square().sum(), images)[0].abs().sum((1, 2, 3)).min() > 0
    assert teacher.pixel_space != space and teacher.input_size != 8
    with pytest.raises(InputError, match="has no teacher: name a timm model by --method.args"):
        make(ClpDd, ClpDdSettings())


# Class labels


@pytest.mark.parametrize(
    ("kind", "settings"), [(Rfad, RfadSettings(loss="cross_entropy")), (ClpDd, ClpDdSettings(backbone="student"))]
)
def test_the_cross_entropy_is_refused_for_the_features_of_a_teacher(make, kind, settings):
    with pytest.raises(InputError, match="class labels as targets, .* or --method.args '{loss: squared_error}'"):
        make(kind, settings, labelled=False)


# Optimisers


def test_inner_steps_by_adam_are_those_of_the_witness():
    images, targets = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    settings = PoolSettings(1, optimizer="adam", learning_rate=0.05, weight_decay=0.0, warm_up=False)
    pool = StudentPool(lambda: torch.nn.Linear(3, 2), settings, 0, dtype=torch.float64)
    weight, bias = (part.detach().clone().numpy() for part in pool.student(0).parameters())
    of_weight, of_bias = AdamW(weight.shape), AdamW(bias.shape)
    for _ in range(3):
        _, _, *gradients = head_gradients(images.numpy(), weight, bias, targets.numpy())
        pool.advance(0, images, targets)
        weight, bias = of_weight.update(weight, gradients[0], 0.05), of_bias.update(bias, gradients[1], 0.05)
    for ours, theirs in zip(pool.student(0).parameters(), (weight, bias), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-9)


@pytest.mark.parametrize("optimizer", ["lamb", "sgd"])
def test_outer_steps_are_those_of_the_witness_and_resumed(accelerator, tmp_path, optimizer):
    settings = DistillerSettings(num_images=M, batch_size=7, steps=6, precision="float64", optimizer=optimizer)
    runs = [build("clp_dd", "pixels", accelerator) for _ in range(2)]
    distiller, resumed = (Distiller(run.parameterisation, run.method, settings, accelerator) for run in runs)
    values = [part.detach().clone().numpy() for part in distiller.rendered()]
    kind = {"lamb": witness.Lamb, "sgd": witness.Sgd}[optimizer]
    optimizers = [kind(part.shape) for part in values]
    for step in range(4):
        if step == 2:
            save_tree(tmp_path / "state.safetensors", distiller.state_dict())
            resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
        _, *gradients = distiller.method.gradients(distiller.rendered().detached(), step)
        rate = 1e-2 * (1 + (settings.final_lr - 1) * step / settings.steps)
        distiller.step()
        parts = zip(optimizers, values, gradients, strict=True)
        values = [optimizer.update(part, gradient.numpy(), rate) for optimizer, part, gradient in parts]
        for ours, theirs in zip(distiller.rendered(), values, strict=True):
            np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-8, atol=1e-10)
    resumed.step(), resumed.step()
    assert torch.equal(resumed.images, distiller.images)
