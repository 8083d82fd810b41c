"""Students: the ConvNets of the distillation literature, and any timm model in their place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ssdd_hub.arguments import find_problems
from ssdd_hub.backbones import input_args, pre_logits
from ssdd_hub.errors import InputError, require
from ssdd_hub.networks import StudentNetwork, check_blocks, conv_block, create_network, student_cfg
from ssdd_hub.stored_models import create_model

MOST_PARAMETERS = 2**30
"""Numbers of a student at most: 4 GiB in single precision."""
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
        require(
            (not taken, f"student.model_args must leave out {taken}, which the data and other settings decide"),
            *((False, f"student.model_args: {problem}") for problem in find_problems(self.model_args)),
        )


class ConvNet(StudentNetwork):
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


default_cfgs = generate_default_cfgs({f"ssdd_convnet{depth}": student_cfg() for depth in (3, 4, 5)})


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
        student = create_model(
            name, pretrained=False, num_classes=num_targets, args=model_args, most_parameters=MOST_PARAMETERS
        )
        pre_logits(student.eval(), torch.zeros(1, in_chans, image_size, image_size))
    except Exception as error:  # networks raise whatever their arguments lead to
        raise InputError(
            f"student {name!r} cannot be built with {model_args} for images of {in_chans}x{image_size}x{image_size}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    return student.train()
