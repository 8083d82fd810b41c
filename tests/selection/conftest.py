"""Real images to select from."""

import pytest
import torch

from ssdd_hub.data.bank import ImageBank, fingerprint_pixels
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.selection.source import Source
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform


@pytest.fixture
def source(small_teacher):
    """Builds a source of random images, of which the first three can have any targets."""

    def build(size=20, labels=True, channels=1, planted=0.0, transform="standardise"):
        pixels = torch.randint(0, 256, (size, channels, 16, 16), generator=torch.Generator().manual_seed(4))
        pixels = pixels.to(torch.uint8)
        teacher = small_teacher(channels=channels)
        features = teacher(pixels / 255)
        features[:3] += planted
        fitted = TargetTransform.fit(transform, features)
        about = {"name": "noise", "license": "mit", "fingerprint": fingerprint_pixels(pixels), "num_images": size}
        names = ["a", "b"] if labels else None
        bank = ImageBank(pixels, torch.arange(size) % 3 - 1 if labels else None, names, about)
        space = PixelSpace((0.5,) * channels, (0.25,) * channels)
        return Source(bank, Targets(features, fitted), teacher, fitted, space)

    return build
