"""What every method and every parameterisation keeps, in all combinations, with toys as third parties write them."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from reference import contract_cases
from reference.contract_cases import (
    PARAMETERISATION_CLASSES,
    STEPS,
    D,
    M,
    build,
    every_case,
    make_pairs,
    make_source,
    run,
)
from reference.warm import Running, start_two
from torch import nn

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import LearningRates
from ssdd_hub.distill.parameterisations.dct import Dct, DctSettings
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.distill.parameterisations.registry import PARAMETERISATIONS
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.checkpoints import load_tree, save_tree
from ssdd_hub.sets.storage import StorageSettings, num_bytes, pack

# Not every loss depends on the targets.
UNUSED = {"allow_unused": True, "materialize_grads": True}


@pytest.fixture
def prepared(accelerator):
    """Builds a distiller after its preparation."""

    def prepare(method, parameterisation, **settings):
        distiller = build(method, parameterisation, accelerator, **settings)
        losses = list(distiller.warm_up())
        assert len(losses) == distiller.method.preparation()
        return distiller

    return prepare


@every_case
@pytest.mark.parametrize("kind", ["fast", "eager"])
def test_gradients_are_those_of_the_loss(prepared, method, parameterisation, kind):
    distiller = prepared(method, parameterisation, kind=kind)
    pairs = distiller.parameterisation().detached()
    loss, *found = distiller.method.gradients(pairs, 3)
    leaves = pairs.leaves()
    expected = distiller.method.loss(leaves, 3)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-14)
    for ours, theirs in zip(found, torch.autograd.grad(expected, leaves, **UNUSED), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    # What is random hangs on the step alone.
    assert torch.equal(loss, distiller.method.gradients(pairs, 3)[0])


@every_case
def test_a_step_follows_the_gradient_of_the_loss_in_what_is_learned(prepared, method, parameterisation):
    distiller = prepared(method, parameterisation)
    learned = list(distiller.parameterisation.parameters())
    loss = distiller.method.loss(distiller.parameterisation(), 0)
    penalty = distiller.parameterisation.penalty(distiller.method.rows(M, 0), distiller.method.moves_targets)
    expected = torch.autograd.grad(loss if penalty is None else loss + penalty, learned, **UNUSED)
    seen = []
    distiller.optimizer.register_step_pre_hook(lambda *given: seen.extend(deepcopy(part.grad) for part in learned))
    distiller.step()
    # DATM leaves targets alone while the loss is large.
    seen = [torch.zeros_like(part) if found is None else found for part, found in zip(learned, seen, strict=True)]
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@every_case
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(prepared, accelerator, tmp_path, method, parameterisation):
    # What goes on is not prepared again.
    unbroken, resumed = prepared(method, parameterisation), build(method, parameterisation, accelerator)
    run(unbroken, 4)
    save_tree(tmp_path / "state.safetensors", unbroken.state_dict())
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert torch.equal(run(resumed, 3), run(unbroken, 3))
    assert torch.equal(resumed.images, unbroken.images) and torch.equal(resumed.targets, unbroken.targets)


@pytest.fixture(scope="module")
def processes(request, tmp_path_factory):
    """The results of one process, and of each of two, of the cases that are tested."""
    asked = [item for item in request.session.items if item.function is test_two_processes_give_what_one_gives]
    names = [item.callspec.id for item in asked]
    alone, both = (tmp_path_factory.mktemp(name) for name in ("alone", "both"))
    script = Path(contract_cases.__file__)
    for running in (Running(script, alone, *names), *start_two(script, both, *names)):
        running.finish()
    paths = [alone / "process-0.safetensors", both / "process-0.safetensors", both / "process-1.safetensors"]
    return [load_tree(path) for path in paths]


@every_case
def test_two_processes_give_what_one_gives(processes, method, parameterisation):
    one, first, second = (found[f"{method}-{parameterisation}"] for found in processes)
    assert torch.equal(first["images"], second["images"])
    for name, expected in one.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("parameterisation", PARAMETERISATION_CLASSES.values(), ids=PARAMETERISATION_CLASSES)
def test_a_parameterisation_renders_rows_and_comes_back_from_its_columns(parameterisation):
    settings = contract_cases.settings_of(parameterisation)
    made = parameterisation.start(make_pairs(M, 99), settings)
    rows = torch.tensor([4, 0, 4])
    assert len(made) == len(made().images) >= M
    for some, whole in zip(made(rows), made(), strict=True):
        torch.testing.assert_close(some, whole[rows], rtol=1e-12, atol=1e-12)
    stored = made.stored()
    tensors = {**stored.columns(), **stored.shared()}
    again = type(stored).from_columns(tensors, stored.decoding()).as_set()
    shown = made.as_set()
    for name, one in shown.items():
        torch.testing.assert_close(one, again[name], rtol=0, atol=1e-14)
    shapes = {name: tuple(column.shape[1:]) for name, column in stored.columns().items()}
    shapes |= {name: tuple(part.shape) for name, part in stored.shared().items()}
    if stored.name in PARAMETERISATIONS.known:
        expected = {name: tensor.shape[1:] for name, tensor in shown.items()}
        assert stored.shown_shapes(shapes, stored.decoding()) == expected
    assert all(len(column) == M for column in stored.columns().values())
    learned = [parameter for group in made.groups() for parameter in group["params"]]
    assert len(learned) == len(list(made.parameters()))


def test_a_price_of_bits_makes_a_set_smaller(accelerator):
    pairs, found = make_pairs(40, 99), {}
    for rate in (0.0, 10.0):
        distiller = build("krr_st", "dct", accelerator)
        settings = {"step": 0.5, "target_step": 0.25, "lr_images": 0.2, "lr_targets": 0.2, "rate": rate}
        distiller.parameterisation = Dct.start(pairs, DctSettings(**settings))
        distiller._build_optimizer()
        logged = [distiller.step() for _ in range(STEPS)]
        assert ("penalty" in logged[-1]) == bool(rate)
        packed = pack(distiller.parameterisation, PixelSpace.raw(1), StorageSettings("uint8", "int8"))
        found[rate] = num_bytes(packed.tensors)
    assert found[10.0]["images"] < found[0.0]["images"] and found[10.0]["targets"] < found[0.0]["targets"]
    assert logged[-1]["penalty"] < logged[0]["penalty"]


@pytest.mark.parametrize("method", ["lgm", "mtt", "dm", "idc"])
def test_a_price_of_bits_leaves_class_labels_alone(accelerator, method):
    labels = torch.arange(21) % D
    distiller = build(method, "dct", accelerator, source=make_source(labels=labels))
    first = make_pairs(M, 99, labelled=True)
    settings = {"step": 0.5, "target_step": 0.25, "lr_images": 0.2, "lr_targets": 0.2, "rate": 10.0}
    distiller.parameterisation = Dct.start(first, DctSettings(**settings))
    distiller._build_optimizer()
    list(distiller.warm_up())
    before = distiller.targets.clone()
    assert all(distiller.step()["penalty"].isfinite() for _ in range(4))
    assert torch.equal(distiller.targets, before) and torch.equal(before.argmax(1), first.targets.argmax(1))


def test_pixels_hold_copies_of_what_they_start_from():
    pairs = make_pairs(M, 99)
    made = Pixels.start(pairs, LearningRates())
    assert all(torch.equal(one, other) for one, other in zip(made(), pairs, strict=True))
    with torch.no_grad():
        made.images.zero_()
    assert not torch.equal(made.images, pairs.images)


def test_the_eager_engine_is_the_witness_of_the_fast_one(prepared):
    fast, eager = (prepared("krr_st", "pixels", kind=kind) for kind in ("fast", "eager"))
    torch.testing.assert_close(run(fast, STEPS), run(eager, STEPS), rtol=1e-9, atol=0)
    torch.testing.assert_close(fast.images, eager.images, rtol=1e-8, atol=1e-10)


class Growing(Pixels):
    """Gets a brightness for each image at the second step."""

    name = "growing"

    def forward(self, rows=None):
        images, targets = super().forward(rows)
        shift = getattr(self, "shift", None)
        return Pairs(images if shift is None else images + shift, targets)

    def grow(self, step):
        if step < 1 or hasattr(self, "shift"):
            return False
        self.shift = nn.Parameter(torch.zeros(len(self.images), 1, 1, 1, dtype=self.images.dtype))
        return True

    def load_state_dict(self, state, strict=True, assign=False):
        if "shift" in state:
            self.grow(1)
        return super().load_state_dict(state, strict, assign)


def test_a_parameterisation_that_grows_is_optimised_and_resumed(monkeypatch, prepared, tmp_path):
    monkeypatch.setitem(PARAMETERISATION_CLASSES, "growing", Growing)
    unbroken, stopped, resumed = (prepared("krr_st", "growing") for _ in range(3))
    losses = run(unbroken, 6)
    assert unbroken.parameterisation.shift.detach().abs().min() > 0
    run(stopped, 4)
    save_tree(tmp_path / "state.safetensors", stopped.state_dict())
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert torch.equal(run(resumed, 2), losses[4:])
    assert torch.equal(resumed.images, unbroken.images)


def test_fixed_targets_are_left_alone(prepared):
    distiller = prepared("krr_st", "pixels")
    distiller.parameterisation.targets.requires_grad_(False)
    before = distiller.targets.clone()
    run(distiller, 2)
    assert torch.equal(distiller.targets, before)
