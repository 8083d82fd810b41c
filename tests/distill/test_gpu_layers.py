import copy

import pytest
import torch
from torch import nn

from ssdd_hub.distill.engine.gpu_layers import QuickSequential, fuse_layers
from ssdd_hub.models.convnet import ConvNet


def both(module, images):
    """The module and its quick copy with results and gradients."""
    found = []
    for network in (module, fuse_layers(copy.deepcopy(module))):
        given = images.clone().requires_grad_()
        outputs = network(given)
        outputs.square().sum().backward()
        found.append((outputs, given.grad, network))
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("side", [16, 10])
def test_results_gradients_and_statistics_are_the_same(norm, training, side):
    torch.manual_seed(0)
    network = ConvNet((4, 6), norm, 3, side, 5).double().train(training)
    (expected, gradient, theirs), (outputs, mine, ours) = both(network, torch.randn(7, 3, side, side).double())
    assert any(isinstance(block, QuickSequential) for block in ours.modules())
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(mine, gradient)
    for (name, value), wanted in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(value.grad, wanted.grad, msg=name)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


def test_a_bias_before_a_norm_is_kept_as_weight_decay_needs_it():
    """Its gradient is nothing, and not missing: an optimiser leaves out what has none."""
    network = fuse_layers(ConvNet((4,), "batch", 3, 8, 5).double().train())
    network(torch.randn(4, 3, 8, 8).double()).sum().backward()
    assert torch.equal(network.blocks[0][0].bias.grad, torch.zeros(4).double())


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(2, ceil_mode=True)],
        [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.AvgPool2d(3, 2, 1)],
        [nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4, affine=False), nn.AvgPool2d(2)],
        [nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.BatchNorm2d(4, momentum=None)],
        [nn.Conv2d(3, 6, 5, padding=2, groups=3), nn.BatchNorm2d(6, track_running_stats=False), nn.MaxPool2d(2)],
        [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.BatchNorm2d(4)],
        [nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2, divisor_override=1)],
        [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(2)],
    ],
)
def test_layers_of_other_kinds_do_what_they_did(layers):
    torch.manual_seed(0)
    network = nn.Sequential(*layers).double()
    (expected, gradient, theirs), (outputs, mine, ours) = both(network, torch.randn(5, 3, 9, 9).double())
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(mine, gradient)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


def test_half_precision_stays_half_precision():
    network = fuse_layers(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(2, 3, 8, 8)).dtype == torch.bfloat16


def test_blocks_with_a_forward_of_their_own_are_left_alone():
    class Skip(nn.Sequential):
        def forward(self, maps):
            return super().forward(maps) + maps

    assert type(fuse_layers(Skip(nn.ReLU()))) is Skip
