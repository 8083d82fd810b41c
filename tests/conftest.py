"""What several tests need: real images, and a teacher small enough to run in milliseconds."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ssdd_hub.images import DataSettings, load_images
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teacher import Teacher


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as the default recipe loads them: source and held-out images, 16x16, grey."""
    return load_images(DataSettings(), progress=False)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


class SmallBackbone(nn.Module):
    """A network with timm's contract and two kinds of state: weights and batch statistics."""

    def __init__(self, channels, width):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward_features(self, images):
        return torch.relu(self.norm(self.conv(images)))

    def forward_head(self, maps, pre_logits=False):
        return maps.mean((2, 3))


@pytest.fixture
def build_small_teacher():
    def build(seed=0, channels=1, width=6, size=16, dtype=torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = SmallBackbone(channels, width)
            backbone.norm.running_mean.normal_()
            backbone.norm.running_var.uniform_(0.5, 2)
        space = PixelSpace((0.4,) * channels, (0.3,) * channels)
        return Teacher(backbone.to(dtype), space, size, f"small-{seed}")

    return build
