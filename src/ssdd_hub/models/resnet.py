"""ResNets for small images, which timm lacks, registered as `ssdd_resnet*`: a 3x3 stem of stride 1, no max-pooling."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from ssdd_hub.models.base import network_cfg


class SmallImageResNet(ResNet):  # type: ignore[misc]
    """A timm ResNet whose stem keeps the resolution.

    Args:
        channels: Widths of the four stages; the stem has the width of the first.
        stem_padding: 1, or 2 as in the teachers of Lee et al. (ICLR 2024).
        in_chans: Input channels.
        **kwargs: Further arguments of `timm.models.resnet.ResNet`.
    """

    def __init__(
        self, channels: tuple[int, ...] = (64, 128, 256, 512), stem_padding: int = 1, in_chans: int = 3, **kwargs: Any
    ) -> None:
        # timm's plain stem always has 64 channels; its deep stem has twice `stem_width`.
        super().__init__(
            channels=tuple(channels), in_chans=in_chans, stem_type="deep", stem_width=channels[0] // 2, **kwargs
        )
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=stem_padding, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()


_CFG = {"fixed_input_size": False, "pool_size": (4, 4), "first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs({f"ssdd_resnet{depth}": network_cfg(num_classes=0, **_CFG) for depth in (10, 18)})


def _create(variant: str, pretrained: bool, layers: tuple[int, ...], **kwargs: Any) -> SmallImageResNet:
    args = {"block": BasicBlock, "layers": layers, **kwargs}
    model: SmallImageResNet = build_model_with_cfg(SmallImageResNet, variant, pretrained, **args)
    return model


@register_model
def ssdd_resnet10(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """One basic block per stage."""
    return _create("ssdd_resnet10", pretrained, (1, 1, 1, 1), **kwargs)


@register_model
def ssdd_resnet18(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """Two basic blocks per stage: the teacher of KRR-ST on CIFAR-100."""
    return _create("ssdd_resnet18", pretrained, (2, 2, 2, 2), **kwargs)
