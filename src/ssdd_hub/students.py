"""Students: the ConvNets of the distillation literature, and any timm model in their place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ssdd_hub.backbones import input_args, pre_logits
from ssdd_hub.errors import InputError, require

NORMS = ("batch", "instance", "none")
# What data and teacher decide of a student.
DECIDED = ("in_chans", "image_size", "name", "num_targets")


@dataclass(frozen=True)
class StudentSettings:
    """Which network is the student.

    Attributes:
        name: A timm model name; `list_students()` gives ours.
        model_args: Further arguments of the model, such as `widths` and `norm` of the ConvNets.
    """

    name: str = "ssdd_convnet3"
    model_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = ", ".join(name for name in DECIDED if name in self.model_args)
        require((not taken, f"student.model_args must leave out {taken}, which the data and other settings decide"))


class ConvNet(nn.Module):
    """Blocks of conv3x3, norm, ReLU and 2x2 average pooling; flattened features; one linear head.

    The network that KRR-ST distils with (Lee et al., ICLR 2024, as in their released code). It keeps timm's contract
    (`forward_features`, `forward_head`, `num_features`, `reset_classifier`, ...). Its state dict is in layer order:
    conv weight, conv bias, norm weight, norm bias, norm buffers; the head last.

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
        super().__init__()
        require(
            (len(widths) > 0 and all(width > 0 for width in widths), f"widths must be positive, got {list(widths)}"),
            (norm in NORMS, f"norm must be one of {', '.join(NORMS)}, got {norm!r}"),
            (
                image_size >= 2 ** len(widths),
                f"a ConvNet of {len(widths)} blocks halves the image {len(widths)} times and needs at least "
                f"{2 ** len(widths)} pixels a side, got {image_size}: use fewer widths or larger images",
            ),
        )
        channels = [in_chans, *widths]
        self.blocks = nn.Sequential(
            *(_block(before, after, norm) for before, after in zip(channels[:-1], channels[1:], strict=True))
        )
        self.in_chans = in_chans
        self.num_classes = num_targets
        self.num_features = self.head_hidden_size = widths[-1] * (image_size >> len(widths)) ** 2
        self.head = _head(self.num_features, num_targets)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to the last feature map `(n, widths[-1], h, w)`."""
        maps: Tensor = self.blocks(images)
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Flattens feature maps to `(n, F)` and, unless `pre_logits`, applies the head: `(n, D)`."""
        features = maps.flatten(1)
        outputs: Tensor = features if pre_logits else self.head(features)
        return outputs

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
        self.num_classes = num_classes
        self.head = _head(self.num_features, num_classes)


def _block(in_chans: int, width: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(in_chans, width, 3, padding=1)]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(width))
    elif norm == "instance":
        # This literature's "instance norm"; unlike InstanceNorm2d with its defaults it has a weight and a bias.
        layers.append(nn.GroupNorm(width, width))
    return nn.Sequential(*layers, nn.ReLU(), nn.AvgPool2d(2))


def _head(num_features: int, num_targets: int) -> nn.Module:
    return nn.Linear(num_features, num_targets) if num_targets else nn.Identity()


def _convnet_cfg() -> dict[str, Any]:
    return {
        "num_classes": 512,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "blocks.0.0",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({f"ssdd_convnet{depth}": _convnet_cfg() for depth in (3, 4, 5)})


def _from_timm(num_classes: int, img_size: int | tuple[int, int] = 32, **kwargs: Any) -> ConvNet:
    if not isinstance(img_size, int):
        if len(set(img_size)) != 1:
            raise InputError(f"a ConvNet takes square images, got img_size={tuple(img_size)}")
        img_size = img_size[0]
    return ConvNet(image_size=img_size, num_targets=num_classes, **kwargs)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ConvNet:
    model: ConvNet = build_model_with_cfg(_from_timm, variant, pretrained, **kwargs)
    return model


@register_model
def ssdd_convnet3(pretrained: bool = False, widths: Sequence[int] = (128, 256, 512), **kwargs: Any) -> ConvNet:
    """Three blocks of 128, 256 and 512 channels: KRR-ST on 32 px."""
    return _create("ssdd_convnet3", pretrained, widths=widths, **kwargs)


@register_model
def ssdd_convnet4(pretrained: bool = False, widths: Sequence[int] = (64, 128, 256, 512), **kwargs: Any) -> ConvNet:
    """Four blocks of 64 to 512 channels: KRR-ST on 64 px."""
    return _create("ssdd_convnet4", pretrained, widths=widths, **kwargs)


@register_model
def ssdd_convnet5(pretrained: bool = False, widths: Sequence[int] = (32, 64, 128, 256, 512), **kwargs: Any) -> ConvNet:
    """Five blocks of 32 to 512 channels: KRR-ST on 224 px."""
    return _create("ssdd_convnet5", pretrained, widths=widths, **kwargs)


def list_students() -> list[str]:
    """Returns the names of the students registered by this package; any other timm model can be a student too."""
    names: list[str] = timm.list_models("ssdd_*")
    return names


def build_student(name: str, *, num_targets: int, in_chans: int, image_size: int, **model_args: Any) -> nn.Module:
    """Builds an untrained student: a timm model with a head of `num_targets` outputs.

    Args:
        name: A timm model name; `list_students()` gives ours.
        num_targets: Outputs `D` of the head.
        in_chans: Channels of the images.
        image_size: Height and width of the images; handed to models that are built for one size.
        **model_args: Further arguments of the model, such as `widths` and `norm` of the ConvNets.

    Raises:
        InputError: timm does not know the name, or the model refuses an argument or the image size.
    """
    if not timm.is_model(name):
        raise InputError(
            f"student {name!r} is not a timm model: use one of {', '.join(list_students())}, or a name from "
            "timm.list_models()"
        )
    model_args = {**input_args(name, in_chans, image_size), **model_args}
    try:
        student: nn.Module = timm.create_model(name, num_classes=num_targets, **model_args)
        pre_logits(student.eval(), torch.zeros(1, in_chans, image_size, image_size))
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"student {name!r} cannot be built with {model_args} for images of {in_chans}x{image_size}x{image_size}: "
            f"{error}"
        ) from error
    return student.train()
