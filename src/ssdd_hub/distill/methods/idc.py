"""IDC: gradient matching by squared distance, through networks that are trained on real images.

Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, arXiv 2205.14959,
algorithm 1, and the code that they released. Its other half, several images in the bytes of one, is the
parameterisation `factor`: `--parameterisation factor` is IDC, and `pixels` is what the paper calls IDC-I.

As in the released code: convolutions alone count; a network lives for 100 steps, after each of which it sees 2,000
real images, 64 at a time, with colours and crops of their own and, every other time, CutMix; in the match, all images
of a group have one draw of colours, crop and cutout. Unlike it, which moves the images after each class, all groups
make one step, and values beyond black and white are not cut off.
"""

from dataclasses import dataclass

from ssdd_hub.bounds import Count, Fraction, Natural, Share, Weight
from ssdd_hub.distill.methods.dc import Dc, DcSettings, Distance, Weights
from ssdd_hub.distill.networks import ON_REAL, Augmented, Kind


@dataclass(frozen=True)
class IdcSettings(DcSettings):
    """Settings of IDC; the defaults are those of its code on CIFAR-10."""

    real_images: Count = 64
    set_images: Count | None = 128
    augment: Augmented = "colour-crop-cutout"
    networks: Kind = ON_REAL
    restart: Count = 100
    training_steps: Natural = 32
    training_batch: Count = 64
    training_augment: Augmented = "colour-crop"
    cutmix: Share = 0.5
    momentum: Fraction = 0.9
    weight_decay: Weight = 5e-4
    distance: Distance = "squared"
    weights: Weights = "convolutions"


class Idc(Dc):
    """The squared distance of gradients, through networks that real images train."""

    name = "idc"
    citation = "Kim et al., ICML 2022, arXiv 2205.14959"
    Settings = IdcSettings
    settings: IdcSettings
