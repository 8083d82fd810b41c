"""Students with dropout: what a step draws follows from the seed, so that runs are exact, resumed or not."""

import pytest
import torch
from reference.contract_cases import METHOD_CLASSES, STEPS, M, build, make_pairs, run
from torch import nn

from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.runs.checkpoints import load_tree, save_tree

# Those that train students.
METHODS = [name for name in METHOD_CLASSES if name not in ("clp_dd", "clp_dd_views", "lgm", "lgm_labels")]

# Each trains them in a way of its own: a pool, networks of matching, an unroll.
FIRST = ("krr_st", "dc", "mkdt")


class Noisy(ConvNet):
    """A ConvNet that drops pixels in train mode."""

    def __init__(self, *given):
        super().__init__(*given)
        self.dropout = nn.Dropout(0.3)

    def forward(self, images):
        return super().forward(self.dropout(images))


@pytest.fixture
def make(accelerator):
    """Builds a distiller after its preparation, whatever was drawn before."""

    def make(name, disturbance, **changed):
        torch.manual_seed(disturbance)
        distiller = build(name, "pixels", accelerator, student=Noisy, **changed)
        for _ in distiller.warm_up():
            pass
        return distiller

    return make


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_resumed_run_is_the_unbroken_one_whatever_else_is_drawn(make, name, tmp_path):
    unbroken, stopped = make(name, 0), make(name, 1)
    losses = run(unbroken, STEPS)
    assert torch.equal(run(stopped, STEPS // 2), losses[: STEPS // 2])
    save_tree(tmp_path / "state.safetensors", stopped.state_dict())
    resumed = make(name, 2)
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    torch.rand(5)
    assert torch.equal(run(resumed, STEPS - STEPS // 2), losses[STEPS // 2 :])
    assert torch.equal(unbroken.images, resumed.images)


def test_dropout_is_not_left_out(make, monkeypatch):
    with_it = run(make("krr_st", 0), STEPS)
    monkeypatch.setattr(Noisy, "forward", ConvNet.forward)
    assert not torch.equal(run(make("krr_st", 0), STEPS), with_it)


@pytest.mark.parametrize("gradient", ["exact", "constant-memory"])
def test_both_walks_through_an_unroll_meet_the_same_draws(make, gradient):
    method, pairs = make("mkdt", 0, gradient=gradient).method, make_pairs(M, 99)
    loss, *found = method.gradients(pairs, 1)
    leaves = pairs.leaves()
    whole = method.loss(leaves, 1)
    torch.testing.assert_close(loss, whole.detach(), rtol=1e-12, atol=0)
    for ours, theirs in zip(found, torch.autograd.grad(whole, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
