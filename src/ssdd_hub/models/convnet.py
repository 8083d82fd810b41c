"""The ConvNets of the distillation literature, registered with timm as `ssdd_convnet*`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ssdd_hub.errors import require
from ssdd_hub.models.base import StudentNetwork, check_blocks, conv_block, create_network, network_cfg


class ConvNet(StudentNetwork):
    """Blocks of conv3x3, norm, ReLU and 2x2 average pooling; flattened features; one linear head.

    The network that KRR-ST distils with (Lee et al., ICLR 2024, as in their released code).

    Args:
        widths: Output channels of each block.
        norm: `"batch"`, `"instance"` (one group per channel, affine) or `"none"`.
        in_chans: Input channels.
        image_size: Height and width of the images, at least `2 ** len(widths)`.
        num_targets: Outputs `D` of the head; 0 leaves the head out.

    Raises:
        SettingsError: An argument is out of range; all of them are named.
    """

    def __init__(
        self,
        widths: Sequence[int] = (128, 256, 512),
        norm: str = "batch",
        in_chans: int = 3,
        image_size: int = 32,
        num_targets: int = 512,
    ) -> None:
        depth = len(widths)
        require(
            *check_blocks(widths, norm),
            (
                image_size >= 2**depth,
                f"a ConvNet of {depth} blocks halves the image {depth} times and needs at least {2**depth} pixels a "
                f"side, got {image_size}: use fewer widths or larger images",
            ),
        )
        blocks = [conv_block(before, after, norm, nn.AvgPool2d(2)) for before, after in pairwise([in_chans, *widths])]
        num_features = widths[-1] * (image_size >> depth) ** 2
        super().__init__(nn.Sequential(*blocks), num_features, in_chans, num_targets)


default_cfgs = generate_default_cfgs({f"ssdd_convnet{depth}": network_cfg() for depth in (3, 4, 5)})


@register_model
def ssdd_convnet3(pretrained: bool = False, widths: Sequence[int] = (128, 256, 512), **kwargs: Any) -> ConvNet:
    """Three blocks of 128, 256 and 512 channels: KRR-ST on 32 px."""
    return create_network(ConvNet, "ssdd_convnet3", pretrained, widths=widths, **kwargs)


@register_model
def ssdd_convnet4(pretrained: bool = False, widths: Sequence[int] = (64, 128, 256, 512), **kwargs: Any) -> ConvNet:
    """Four blocks of 64 to 512 channels: KRR-ST on 64 px."""
    return create_network(ConvNet, "ssdd_convnet4", pretrained, widths=widths, **kwargs)


@register_model
def ssdd_convnet5(pretrained: bool = False, widths: Sequence[int] = (32, 64, 128, 256, 512), **kwargs: Any) -> ConvNet:
    """Five blocks of 32 to 512 channels: KRR-ST on 224 px."""
    return create_network(ConvNet, "ssdd_convnet5", pretrained, widths=widths, **kwargs)
