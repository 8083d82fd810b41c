"""What several tests need: real images, and a teacher small enough to run in milliseconds."""

import pytest
import torch
from accelerate import Accelerator

from ssdd_hub.images import DataSettings, load_images
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.students import ConvNet
from ssdd_hub.teacher import Teacher


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as the default recipe loads them: source and held-out images, 16x16, grey."""
    return load_images(DataSettings(), progress=False)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="session")
def small_backbone():
    """Builds a network of 24 features for images of 16x16, whose batch statistics are not those of a fresh one."""

    def build(seed=0, channels=1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = ConvNet((4, 6, 6), "batch", channels, image_size=16, num_targets=0)
            backbone.train()(torch.randn(8, channels, 16, 16))
        return backbone

    return build


@pytest.fixture(scope="session")
def small_teacher(small_backbone):
    """Builds a frozen `small_backbone` in a pixel space of its own."""

    def build(seed=0, channels=1, dtype=torch.float32):
        space = PixelSpace((0.4,) * channels, (0.3,) * channels)
        return Teacher(small_backbone(seed, channels).to(dtype), space, 16, f"small-{seed}", "mit")

    return build
