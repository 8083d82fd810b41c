"""MobileNetV2 for small images, registered with timm as `ssdd_mobilenetv2`."""

from typing import Any

from timm.layers import ConvNormAct
from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from ssdd_hub.models.base import StudentNetwork, create_network, network_cfg

# Expansion, width, blocks, and stride of the first of them: Sandler et al. (CVPR 2018, arXiv 1801.04381, table 2),
# with the strides and expansions of Lee et al.
MOBILENETV2 = (
    (1, 16, 1, 1),
    (2, 24, 2, 1),
    (2, 32, 3, 2),
    (2, 64, 4, 2),
    (2, 96, 3, 1),
    (2, 160, 3, 2),
    (2, 320, 1, 1),
)


class MobileNetV2(StudentNetwork):
    """Inverted residual blocks of expansion 2 after a stem of stride 1; features by global average pooling: 1280.

    Three of the strides are 2, so 32 px become 4x4; any size will do. ReLU stands where the original has ReLU6, the
    first block has a 1x1 convolution before its depthwise one too, and every block of stride 1 has a shortcut.

    The arguments are those of `ConvNet`; `image_size` has no effect.
    """

    def __init__(self, in_chans: int = 3, image_size: int = 32, num_targets: int = 512) -> None:
        blocks: list[nn.Module] = [ConvNormAct(in_chans, 32, 3)]
        before = 32
        for expansion, width, count, first_stride in MOBILENETV2:
            for stride in [first_stride] + [1] * (count - 1):
                blocks.append(_InvertedBlock(before, width, stride, expansion))
                before = width
        super().__init__(nn.Sequential(*blocks, ConvNormAct(before, 1280, 1)), 1280, in_chans, num_targets)

    def _read(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


class _InvertedBlock(InvertedResidual):  # type: ignore[misc]
    """timm's block; where the stride is 1 and the width changes, its shortcut is a 1x1 convolution with norm."""

    def __init__(self, in_chans: int, width: int, stride: int, expansion: int) -> None:
        super().__init__(in_chans, width, stride=stride, exp_ratio=expansion)
        projected = stride == 1 and in_chans != width
        self.shortcut = ConvNormAct(in_chans, width, 1, apply_act=False) if projected else None

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `(n, C, h, w)` to `(n, width, h', w')`."""
        outputs: Tensor = super().forward(maps)
        return outputs if self.shortcut is None else outputs + self.shortcut(maps)


default_cfgs = generate_default_cfgs(
    {"ssdd_mobilenetv2": network_cfg(first_conv="blocks.0.conv", fixed_input_size=False)}
)


@register_model
def ssdd_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """Seventeen inverted residual blocks; 1280 features at any size."""
    return create_network(MobileNetV2, "ssdd_mobilenetv2", pretrained, **kwargs)
