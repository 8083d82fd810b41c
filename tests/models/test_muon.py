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
            difference = (step - scale * expected).abs().max() / step.abs().max()
            assert difference < (0.3 if quick else 1e-3)
