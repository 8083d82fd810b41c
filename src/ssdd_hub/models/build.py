"""Students by name: those of this package and any other timm model."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ssdd_hub.arguments import argument_checks
from ssdd_hub.bounds import Settings, one_of
from ssdd_hub.errors import Check, InputError, nearest
from ssdd_hub.models.base import OtherFeatures
from ssdd_hub.models.features import (
    STUDENT_FEATURES,
    create_backbone,
    hash_weights,
    input_args,
    pre_logits,
    read_pixel_space,
)
from ssdd_hub.models.stored_models import create_model, normalised_name
from ssdd_hub.pixel_space import PixelSpace

MOST_PARAMETERS = 2**30
"""The most parameters of a student: 4 GiB in single precision."""
# Arguments of a student that data and teacher decide.
RESERVED_ARGS = ("features", "in_chans", "image_size", "name", "num_targets", "pretrained")


@dataclass(frozen=True)
class StudentSettings(Settings, section="student"):
    """Which network is the student.

    Attributes:
        name: A timm model name; `list_students()` gives ours. With `pretrained` also `local-dir:FOLDER` or
            `hf-hub:OWNER/NAME`.
        model_args: Further arguments of the model, such as `widths` and `norm` of the ConvNets.
        pretrained: Every student starts from the weights that the name stands for, under a fresh head, and sees images
            in the pixel space of these.
        features: What the head and the kernels read: `pre_logits`, what the model's own classifier would: of our
            ConvNets and VGG the whole last map, of most others its mean; `mean`, over the last map or its patch
            tokens; `cls`, the class token; `flat`, the whole last map.
    """

    arguments_of: ClassVar[dict[str, str]] = {"model_args": "name"}

    name: str = "ssdd_convnet3"
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    features: Annotated[str, one_of(STUDENT_FEATURES)] = "pre_logits"

    def conflicts(self) -> Iterable[Check]:
        """Returns the checks of the model's arguments."""
        by = "the data and other settings decide"
        yield from argument_checks("student.model_args", self.model_args, RESERVED_ARGS, by)
        yield (
            self.pretrained or ":" not in self.name,
            f"student.name {self.name!r} names stored weights, so pass --student.pretrained true as well",
        )

    def building(self) -> dict[str, Any]:
        """Returns the arguments of `build_student` beside its name and the shapes, without those left at defaults."""
        chosen = {"pretrained": self.pretrained, "features": self.features}
        defaults = {"pretrained": False, "features": "pre_logits"}
        return {**self.model_args, **{name: value for name, value in chosen.items() if value != defaults[name]}}


def list_students() -> list[str]:
    """Returns the names of the students registered by this package; any other timm model can be a student too."""
    names: list[str] = timm.list_models("ssdd_*")
    return names


def build_student(
    name: str,
    *,
    num_targets: int,
    in_chans: int,
    image_size: int,
    pretrained: bool = False,
    features: str = "pre_logits",
    **model_args: Any,
) -> nn.Module:
    """Builds a student: a timm model with a fresh head of `num_targets` outputs, otherwise untrained or not.

    Args:
        name: A timm model name; `list_students()` gives ours. With `pretrained` also `local-dir:FOLDER` or
            `hf-hub:OWNER/NAME`.
        num_targets: Outputs `D` of the head.
        in_chans: Channels of the images.
        image_size: Height and width of the images; passed on to models that are built for one size.
        pretrained: Start from the weights that the name stands for.
        features: What the head reads, one of `features.STUDENT_FEATURES`; see `StudentSettings`.
        **model_args: Further arguments of the model, such as `widths` and `norm` of the ConvNets.

    Raises:
        InputError: timm does not know the name, or the model refuses an argument, the image size or the features, or
            the weights cannot be loaded.
    """
    shape = {"num_targets": num_targets, "in_chans": in_chans, "image_size": image_size}
    return StudentBuilder(name, **shape, pretrained=pretrained, features=features, **model_args)()


class StudentBuilder:
    """Builds students of one kind, each with a fresh head; the weights that they start from are loaded once.

    Arguments and errors are those of `build_student`.
    """

    def __init__(
        self,
        name: str,
        *,
        num_targets: int,
        in_chans: int,
        image_size: int,
        pretrained: bool = False,
        features: str = "pre_logits",
        **model_args: Any,
    ) -> None:
        self.name, self.features, self.model_args = name, features, model_args
        self._shape, self._num_targets = (in_chans, image_size, image_size), num_targets
        self._loaded: nn.Module | None = None
        if pretrained:
            self.name = name = normalised_name(name)
            size: dict[str, Any] = {"input_size": image_size, "in_chans": in_chans, **model_args}
            self._loaded = create_backbone(name, pretrained=True, what="student", **size)
        elif not timm.is_model(name):
            raise InputError(
                f"student {name!r} is not a timm model: use one of {', '.join(list_students())}, or a name from "
                f"timm.list_models(){nearest(name, timm.list_models())}"
            )

    def __call__(self) -> nn.Module:
        """Returns a student on the CPU, in train mode; its head, and where it has no weights all of it, is random."""
        in_chans, image_size, _ = self._shape
        args = {**input_args(self.name, in_chans, image_size), **self.model_args}
        outputs = self._num_targets if self.features == "pre_logits" else 0
        try:
            if self._loaded is None:
                most = MOST_PARAMETERS
                student = create_model(
                    self.name, pretrained=False, num_classes=outputs, args=args, most_parameters=most
                )
            else:
                student = copy.deepcopy(self._loaded)
                student.reset_classifier(outputs)  # type: ignore[operator]
            if self.features != "pre_logits":
                student = OtherFeatures(student, self.features, in_chans, image_size, self._num_targets)
            pre_logits(student.eval(), torch.zeros(1, *self._shape))
        except Exception as error:  # networks may raise anything
            raise InputError(
                f"student {self.name!r} cannot be built with {args} for images of {in_chans}x{image_size}x{image_size}"
                f": {str(error) or type(error).__name__}"
            ) from error
        return student.train()

    def pixel_space(self, pixels: Tensor) -> PixelSpace:
        """Returns the space in which students see real images `(N, C, H, W)`, uint8: that of the weights, if any."""
        if self._loaded is None:
            return PixelSpace.of(pixels)
        config = resolve_model_data_config(self._loaded)
        return read_pixel_space(self.name, config, None, None, pixels.shape[1])

    def weights(self) -> dict[str, Any]:
        """Returns what a run records of the weights that students start from; nothing where there are none."""
        if self._loaded is None:
            return {}
        stated: Any = getattr(self._loaded, "pretrained_cfg", None) or {}
        return {"weights_sha256": hash_weights(self._loaded), "license": str(stated.get("license") or "unknown")}

    def describe(self) -> dict[str, Any]:
        """Returns what a set records of its students, the name of stored weights as `weights`."""
        features = {} if self.features == "pre_logits" else {"features": self.features}
        named = {"name": self.name, "model_args": self.model_args, **features}
        if self._loaded is None:
            return named
        stated: Any = self._loaded.pretrained_cfg
        return {**named, "name": stated["architecture"], "weights": self.name, **self.weights()}
