"""What our students have in common, and those that a distilled set is carried over to: VGG11, AlexNet, MobileNetV2.

The three are those of KRR-ST's comparison of architectures (Lee et al., ICLR 2024, figure 3 and table 4), layer by
layer as in their released code; its fourth, ResNet-10, is `ssdd_resnet10` with `stem_padding=2`. Weights start from
PyTorch's defaults, as they do there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

from timm.layers import ConvNormAct
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from ssdd_hub.errors import InputError, require

NORMS = ("batch", "instance", "none")
# Each convolution's kernel, and whether 2x2 max-pooling follows it.
VGG11 = ((3, True), (3, True), (3, False), (3, True), (3, False), (3, True), (3, False), (3, True))
ALEXNET = ((5, True), (5, True), (3, False), (3, False), (3, True))
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


class StudentNetwork(nn.Module):
    """Blocks of layers, the features that are read from their last map, and one linear head.

    It keeps timm's contract (`forward_features`, `forward_head`, `num_features`, `reset_classifier`, ...). Its state
    dict is in layer order, the head last.

    Args:
        blocks: Maps `(n, C, H, W)` to `(n, width, h, w)`.
        num_features: Features `F` that are read from the map: all its values, unless a subclass pools.
        in_chans: Input channels.
        num_targets: Outputs `D` of the head; 0 leaves the head out.
    """

    def __init__(self, blocks: nn.Sequential, num_features: int, in_chans: int, num_targets: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.in_chans = in_chans
        self.num_classes = num_targets
        self.num_features = self.head_hidden_size = num_features
        self.head = _head(num_features, num_targets)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to the last feature map `(n, width, h, w)`."""
        maps: Tensor = self.blocks(images)
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Reads features `(n, F)` from feature maps and, unless `pre_logits`, applies the head: `(n, D)`."""
        features = self._read(maps)
        outputs: Tensor = features if pre_logits else self.head(features)
        return outputs

    def _read(self, maps: Tensor) -> Tensor:
        return maps.flatten(1)

    def features(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to features `(n, F)`."""
        return self.forward_head(self.forward_features(images), pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to `head(features)`, `(n, D)`."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Returns the head, as timm's models do."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a fresh one of `num_classes` outputs; there is no pooling to choose."""
        weight = next(self.blocks.parameters())
        self.num_classes = num_classes
        self.head = _head(self.num_features, num_classes).to(weight.device, weight.dtype)


class PlainNet(StudentNetwork):
    """Convolutions with norm and ReLU, 2x2 max-pooling after some; flattened features; one linear head.

    A pooling that would find a map of one pixel is left out, so that any image size will do: VGG11 has 5 poolings from
    32 px on and 4 at 16 px, with the same weights. Its last convolutions then see one pixel, where batch norm in train
    mode needs two images.

    Args:
        layout: Of each convolution, its kernel (odd; the size is kept) and whether pooling follows it.
        widths: Output channels of each convolution.
        norm: `"batch"` as in the released code, `"instance"` (one group per channel, affine) or `"none"`.
        in_chans: Input channels.
        image_size: Height and width of the images, at least 1; where a pooling meets an odd size, the last row and
            column are dropped.
        num_targets: Outputs `D` of the head; 0 leaves the head out.

    Raises:
        SettingsError: An argument is out of range; all of them are named.
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


class MobileNetV2(StudentNetwork):
    """Inverted residual blocks of expansion 2 after a stem of stride 1; features by global average pooling: 1280.

    Three of the strides are 2, so 32 px become 4x4; any size will do. ReLU stands where the original has ReLU6, the
    first block has a 1x1 convolution before its depthwise one too, and every block of stride 1 has a shortcut.

    Args:
        in_chans: Input channels.
        image_size: Taken as the other students take it; it decides nothing here.
        num_targets: Outputs `D` of the head; 0 leaves the head out.
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


def check_blocks(widths: Sequence[int], norm: str) -> tuple[tuple[bool, str], ...]:
    """Returns what `require` has to check of the arguments of `conv_block`."""
    return (
        (len(widths) > 0 and all(width > 0 for width in widths), f"widths must be positive, got {list(widths)}"),
        (norm in NORMS, f"norm must be one of {', '.join(NORMS)}, got {norm!r}"),
    )


def conv_block(in_chans: int, width: int, norm: str, pool: nn.Module | None, kernel: int = 3) -> nn.Sequential:
    """Returns convolution, norm (one of `NORMS`), ReLU and pooling; the convolution keeps the size."""
    layers: list[nn.Module] = [nn.Conv2d(in_chans, width, kernel, padding=kernel // 2)]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(width))
    elif norm == "instance":
        # This literature's "instance norm"; unlike InstanceNorm2d with its defaults it has a weight and a bias.
        layers.append(nn.GroupNorm(width, width))
    return nn.Sequential(*layers, nn.ReLU(), *([] if pool is None else [pool]))


def _head(num_features: int, num_targets: int) -> nn.Module:
    return nn.Linear(num_features, num_targets) if num_targets else nn.Identity()


def student_cfg(first_conv: str = "blocks.0.0", fixed_input_size: bool = True) -> dict[str, Any]:
    """Returns what timm has to know of a student: 512 targets of 32 px images, unless it is told otherwise."""
    return {
        "num_classes": 512,
        "input_size": (3, 32, 32),
        "fixed_input_size": fixed_input_size,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": first_conv,
        "classifier": "head",
    }


Network = TypeVar("Network", bound=StudentNetwork)


def create_network(build: Callable[..., Network], variant: str, pretrained: bool, **kwargs: Any) -> Network:
    """Lets timm build a network that takes `image_size` and `num_targets`, which timm calls otherwise.

    Raises:
        InputError: The images are not square.
        SettingsError: The network refuses an argument.
    """
    model: Network = build_model_with_cfg(partial(_from_timm, build), variant, pretrained, **kwargs)
    return model


def _from_timm(
    build: Callable[..., Network], num_classes: int, img_size: int | tuple[int, int] = 32, **kwargs: Any
) -> Network:
    if not isinstance(img_size, int):
        if len(set(img_size)) != 1:
            raise InputError(f"this student takes square images, got img_size={tuple(img_size)}")
        img_size = img_size[0]
    return build(image_size=img_size, num_targets=num_classes, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "ssdd_vgg11": student_cfg(),
        "ssdd_alexnet": student_cfg(),
        "ssdd_mobilenetv2": student_cfg("blocks.0.conv", fixed_input_size=False),
    }
)


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


@register_model
def ssdd_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """Seventeen inverted residual blocks; 1280 features at any size."""
    return create_network(MobileNetV2, "ssdd_mobilenetv2", pretrained, **kwargs)
