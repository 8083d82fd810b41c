import pytest
import torch
from torch import nn
from torch.nn import functional

from ssdd_hub.models.build import build_student
from ssdd_hub.models.layout import quick_layout


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(15, 32, 1, stride=2), False),
        (nn.Conv2d(16, 8, 1, stride=2), True),
        (nn.Conv2d(15, 32, 1), True),
        (nn.Conv2d(15, 32, 3, stride=2), True),
        (nn.Conv2d(32, 32, 1, stride=(1, 2), groups=4), False),
        (nn.Linear(3, 4), True),
    ],
)
def test_channels_last_is_for_networks_that_are_safe_in_it(layer, safe):
    network = nn.Sequential(nn.Flatten(0), nn.Sequential(layer))
    assert quick_layout(network, "cpu") is (torch.channels_last if safe else torch.contiguous_format)
    assert quick_layout(network, torch.device("cuda", 1)) is torch.channels_last


@pytest.mark.parametrize("channels", [[4, 8, 8, 8], [16, 16, 16, 16]])
def test_gradients_in_that_layout_are_those_of_double_precision(channels):
    torch.manual_seed(0)
    exact = (
        build_student("ssdd_resnet10", num_targets=3, in_chans=3, image_size=16, channels=channels).double().train()
    )
    quick = build_student("ssdd_resnet10", num_targets=3, in_chans=3, image_size=16, channels=channels).train()
    quick.load_state_dict(exact.state_dict())
    layout = quick_layout(quick, "cpu")
    quick.to(memory_format=layout)
    images, targets = torch.randn(8, 3, 16, 16), torch.randn(8, 3)
    functional.mse_loss(exact(images.double()), targets.double()).backward()
    functional.mse_loss(quick(images.contiguous(memory_format=layout)), targets).backward()
    for (name, one), other in zip(exact.named_parameters(), quick.parameters(), strict=True):
        scale = one.grad.abs().max() + 1e-6
        assert (one.grad - other.grad).abs().max() < 1e-3 * scale, name
