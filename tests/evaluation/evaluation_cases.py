"""Small students, images and pairs that tests of several protocols share."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssdd_hub.data.bank import ImageBank, fingerprint_pixels
from ssdd_hub.evaluation.protocols.base import Pretrained
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator, seeded

CPU = torch.device("cpu")
SPACE, OTHER = PixelSpace((0.4,), (0.3,)), PixelSpace((0.1,), (0.5,))


class Linear(nn.Module):
    """A student whose features are its pixels, with timm's contract."""

    def __init__(self, pixels=4, width=3):
        super().__init__()
        self.head = nn.Linear(pixels, width)

    def forward_features(self, images):
        return images

    def forward_head(self, maps, pre_logits=False):
        return maps.flatten(1) if pre_logits else self.head(maps.flatten(1))

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


@dataclass
class MadePairs:
    """The pairs that a test gives, in a space of their own."""

    images: Tensor
    targets: Tensor | None = None
    pixel_space: PixelSpace = OTHER

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], None if self.targets is None else self.targets[indices]


def make_bank(pixels, labels=None):
    return ImageBank(pixels, labels, None, {"name": "made", "fingerprint": fingerprint_pixels(pixels)})


def draw_bank(count, labels=None, seed=0, size=2):
    pixels = torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(seed))
    return make_bank(pixels.to(torch.uint8), labels)


def bright_bank(labels, seed=0, noise=32):
    """Images of noise, brighter by 64 for each number of the class."""
    labels = torch.as_tensor(labels)
    drawn = torch.randint(0, noise, (len(labels), 1, 8, 8), generator=generator(seed, "pixels"))
    return make_bank((drawn + 64 * labels.clamp_min(0)[:, None, None, None]).to(torch.uint8), labels)


def bright_data(labels=(0, 1, 2) * 20, heldout_labels=(0, 1, 2) * 10, noise=32):
    return RealData("made", bright_bank(labels, 1, noise), bright_bank(heldout_labels, 2, noise), SPACE, CPU)


def make_network(seed=0, targets=3, norm="batch", widths=(4, 5)):
    """A network for images of 8x8, whose batch statistics are not those of a fresh one."""
    with seeded(seed, "network"):
        network = ConvNet(widths, norm, 1, 8, targets)
        network.train()(torch.randn(16, 1, 8, 8))
    return network.eval()


def make_pairs(count=30, seed=5):
    return MadePairs(OTHER.normalise(torch.rand(count, 1, 8, 8, generator=generator(seed, "set"))))


def pretrained(student, pairs=None, seed=0):
    return Pretrained(student, lambda: student, pairs, seed)
