import pytest
import torch
from timm.optim import muon

from ssdd_hub.models import muon as own
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.muon import build_muon


@pytest.mark.parametrize("quick", [True, False])
def test_gradients_are_made_orthogonal_in_float32_where_bf16_is_emulated(monkeypatch, quick):
    torch.manual_seed(0)
    network = ConvNet((4, 8), "batch", 3, 8, num_targets=5)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = build_muon(network, 0.0, lr=0.1, weight_decay=0.0)
    monkeypatch.setattr(own, "is_quick_in_bf16", lambda device: quick)
    seen = []
    plain = torch.baddbmm, torch.addmm

    def watched(operation):
        return lambda first, *rest, **options: (seen.append(first.dtype), operation(first, *rest, **options))[1]

    monkeypatch.setattr(torch, "addmm", watched(plain[1]))
    monkeypatch.setattr(torch, "baddbmm", watched(plain[0]))
    network(torch.randn(6, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    assert seen and set(seen) == {torch.bfloat16 if quick else torch.float32}
    coefficients = muon.resolve_ns_coefficients("quintic", muon._COEFFICIENTS)
    for old, parameter in zip(before, network.parameters(), strict=True):
        if parameter.ndim > 1:
            # A second implementation: the same polynomial of the singular values, by a decomposition.
            left, values, right = torch.linalg.svd(parameter.grad.flatten(1).double(), full_matrices=False)
            values = values / values.square().sum().sqrt()
            for a, b, c in [*coefficients, *[coefficients[-1]] * 5][:5]:
                values = a * values + b * values**3 + c * values**5
            step, expected = (old - parameter).detach().flatten(1).double(), left @ values.diag() @ right
            scale = (step * expected).sum() / expected.square().sum()
            # timm's rate, by which steps are as large as those of AdamW.
            assert scale == pytest.approx(0.1 * 0.2 * max(step.shape) ** 0.5, rel=0.05)
            difference = (step - scale * expected).abs().max() / step.abs().max()
            assert difference < (0.3 if quick else 1e-3)


def test_optimisers_that_others_build_are_left_alone(monkeypatch):
    monkeypatch.setattr(own, "is_quick_in_bf16", lambda device: False)
    weights = [torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    ours = build_muon(torch.nn.ParameterList(weights[:1]), 0.0, lr=0.1, weight_decay=0.0)
    theirs, seen, plain = muon.Muon(weights[1:], lr=0.1), [], torch.addmm

    def watched(first, *rest, **options):
        seen.append(first.dtype)
        return plain(first, *rest, **options)

    monkeypatch.setattr(torch, "addmm", watched)
    for weight in weights:
        weight.grad = torch.ones_like(weight).triu()
    for optimizer, dtype in ((ours, torch.float32), (theirs, torch.bfloat16)):
        seen.clear()
        optimizer.step()
        assert seen and set(seen) == {dtype}
