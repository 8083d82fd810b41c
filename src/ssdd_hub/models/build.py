"""Students by name: those of this package and any other timm model."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import timm
import torch
from torch import nn

from ssdd_hub.arguments import argument_checks
from ssdd_hub.bounds import Settings
from ssdd_hub.errors import Check, InputError, nearest
from ssdd_hub.models.features import input_args, pre_logits
from ssdd_hub.models.stored_models import create_model

MOST_PARAMETERS = 2**30
"""The most parameters of a student: 4 GiB in single precision."""
# Arguments of a student that data and teacher decide.
RESERVED_ARGS = ("in_chans", "image_size", "name", "num_targets")


@dataclass(frozen=True)
class StudentSettings(Settings, section="student"):
    """Which network is the student.

    Attributes:
        name: A timm model name; `list_students()` gives ours.
        model_args: Further arguments of the model, such as `widths` and `norm` of the ConvNets.
    """

    arguments_of: ClassVar[dict[str, str]] = {"model_args": "name"}

    name: str = "ssdd_convnet3"
    model_args: dict[str, Any] = field(default_factory=dict)

    def conflicts(self) -> Iterable[Check]:
        """Returns the checks of the model's arguments."""
        by = "the data and other settings decide"
        return argument_checks("student.model_args", self.model_args, RESERVED_ARGS, by)


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
        image_size: Height and width of the images; passed on to models that are built for one size.
        **model_args: Further arguments of the model, such as `widths` and `norm` of the ConvNets.

    Raises:
        InputError: timm does not know the name, or the model refuses an argument or the image size.
    """
    if not timm.is_model(name):
        raise InputError(
            f"student {name!r} is not a timm model: use one of {', '.join(list_students())}, or a name from "
            f"timm.list_models(){nearest(name, timm.list_models())}"
        )
    args = {**input_args(name, in_chans, image_size), **model_args}
    try:
        student = create_model(
            name, pretrained=False, num_classes=num_targets, args=args, most_parameters=MOST_PARAMETERS
        )
        pre_logits(student.eval(), torch.zeros(1, in_chans, image_size, image_size))
    except Exception as error:  # networks may raise anything
        raise InputError(
            f"student {name!r} cannot be built with {args} for images of {in_chans}x{image_size}x{image_size}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    return student.train()
