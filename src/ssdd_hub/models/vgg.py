"""VGG11 and AlexNet for small images, registered with timm as `ssdd_vgg11` and `ssdd_alexnet`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ssdd_hub.errors import require
from ssdd_hub.models.base import StudentNetwork, check_blocks, conv_block, create_network, network_cfg

# Each convolution's kernel, and whether 2x2 max-pooling follows it.
VGG11 = ((3, True), (3, True), (3, False), (3, True), (3, False), (3, True), (3, False), (3, True))
ALEXNET = ((5, True), (5, True), (3, False), (3, False), (3, True))


class PlainNet(StudentNetwork):
    """Convolutions with norm and ReLU, 2x2 max-pooling after some; flattened features; one linear head.

    The pooling of a map of one pixel is left out, so that any image size will do: VGG11 has 5 poolings from 32 px on
    and 4 at 16 px, with the same weights. Its last maps then have one pixel, where batch norm in train mode needs two
    images.

    Args:
        layout: Of each convolution, its kernel (odd; the size is kept) and whether pooling follows it.
        widths: Output channels of each convolution.
        norm: As for `ConvNet`, like the other arguments; `"batch"` in the released code.
        in_chans: Input channels.
        image_size: At least 1; pooling an odd size drops the last row and column.
        num_targets: Outputs `D` of the head.
    """

    def __init__(
        self,
        layout: Sequence[tuple[int, bool]],
        widths: Sequence[int],
        norm: str = "batch",
        in_chans: int = 3,
        image_size: int = 32,
        num_targets: int = 512,
    ) -> None:
        require(
            *check_blocks(widths, norm),
            (len(widths) == len(layout), f"widths must be {len(layout)}, one per convolution, got {list(widths)}"),
            (image_size >= 1, f"images must be at least 1 pixel a side, got {image_size}"),
        )
        blocks, side = [], image_size
        for (before, after), (kernel, pooled) in zip(pairwise([in_chans, *widths]), layout, strict=True):
            pooled = pooled and side > 1
            blocks.append(conv_block(before, after, norm, nn.MaxPool2d(2) if pooled else None, kernel))
            side = side // 2 if pooled else side
        super().__init__(nn.Sequential(*blocks), widths[-1] * side**2, in_chans, num_targets)


default_cfgs = generate_default_cfgs({"ssdd_vgg11": network_cfg(), "ssdd_alexnet": network_cfg()})


@register_model
def ssdd_vgg11(
    pretrained: bool = False, widths: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512), **kwargs: Any
) -> PlainNet:
    """Eight 3x3 convolutions and five poolings; 512 features at 32 px, 2048 at 64 px."""
    return create_network(PlainNet, "ssdd_vgg11", pretrained, layout=VGG11, widths=widths, **kwargs)


@register_model
def ssdd_alexnet(
    pretrained: bool = False, widths: Sequence[int] = (128, 192, 256, 192, 192), **kwargs: Any
) -> PlainNet:
    """Two 5x5 and three 3x3 convolutions and three poolings; 3072 features at 32 px, 12288 at 64 px."""
    return create_network(PlainNet, "ssdd_alexnet", pretrained, layout=ALEXNET, widths=widths, **kwargs)
