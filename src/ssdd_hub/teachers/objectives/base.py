"""The base class of self-supervised objectives: a module that owns a backbone and computes a loss of views."""

from collections.abc import Callable
from inspect import get_annotations, signature
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from ssdd_hub.arguments import check_arguments

# Objectives annotate their settings with these, and take them from here.
from ssdd_hub.bounds import (
    Count as Count,
    Natural as Natural,
    Positive as Positive,
    Rule as Rule,
    Several as Several,
    Share as Share,
    Weight as Weight,
    rules_of,
    unmet,
)
from ssdd_hub.errors import InputError, require
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace

Views = Callable[[Image.Image], list[Tensor]]
# Height and width up to which images are small: views are not blurred and not cropped to other sizes unless requested.
LARGEST_SMALL = 64


class Objective(nn.Module):
    """A self-supervised loss with its heads, its views and its state, around a backbone.

    In a loop of plain PyTorch, `loss = objective(views)`, `loss.backward()` and a step of any optimiser are all that
    is needed; momentum copies, banks and prototypes move inside the call. `schedule` before and `after_backward` after
    let an objective follow the training's progress.

    A subclass sets `name`, `citation` and `needs`, puts all of its state into parameters and persistent buffers, so
    that one state dict holds it, and implements `forward` and `build_transform`. It declares its settings as class
    attributes with defaults, annotated with `bool`, `int`, `float` or one of this module's `Natural`, `Count`,
    `Several`, `Positive`, `Weight` and `Share`, against which they are checked, and builds what depends on them in
    `_build_parts`. Or its `__init__` takes them as keyword arguments annotated like this and passes them on; other
    annotations are left to the subclass.

    Under torch.distributed, build an objective after `init_process_group`: its loss gathers over the processes if
    there are several by then.

    Args:
        backbone: A module with timm's `forward_features` and `forward_head`; trained in place.
        feature_dim: Width of its pre-logits.
        settings: The objective's own settings, also kept as `settings` for provenance.

    Raises:
        InputError: The objective cannot train the backbone, or settings are of another type or range than annotated.
    """

    name: ClassVar[str]  # what `build_objective` calls it
    citation: ClassVar[str]  # the paper
    needs: ClassVar[tuple[str, ...]] = ()  # kept besides heads: `momentum copy`, `memory bank`, `prototypes`, ...
    optimizer: ClassVar[str] = "sgd"  # what it is usually trained with, `sgd` or `adamw`
    min_batch: ClassVar[int] = 2  # the fewest images of a process that its loss is defined on
    transform: ClassVar[Callable[..., Views] | None] = None  # lightly's; takes `input_size` and `normalize`
    declared: ClassVar[dict[str, Any]] = {}  # annotations of the settings that are class attributes

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = get_annotations(cls).items()
        cls.declared = {**cls.declared, **{name: kind for name, kind in own if name in vars(cls) and rules_of(kind)}}

    def __init__(self, backbone: nn.Module, feature_dim: int, **settings: Any) -> None:
        super().__init__()
        unknown = settings.keys() - self.declared.keys()
        # An `__init__` of the subclass's own refuses unknown names by its signature.
        if unknown and type(self).__init__ is Objective.__init__:
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(map(repr, sorted(unknown)))}")
        self.check_backbone(backbone)
        settings = {**{setting: getattr(self, setting) for setting in self.declared}, **settings}
        unkept = {setting: unmet(self.rules(setting), value) for setting, value in settings.items()}
        require(
            *(
                (rule is None, f"{self.name}: {name} must be {rule}, got {settings[name]!r}")
                for name, rule in unkept.items()
            )
        )
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.settings = settings
        self.epoch: int | None = None  # passes over the images completed; None until `schedule` is called
        for setting in self.declared:
            setattr(self, setting, settings[setting])
        self._build_parts()

    @classmethod
    def rules(cls, setting: str) -> list[Rule]:
        """Returns the rules that the annotation of a setting stands for; empty where this class does not check it."""
        parameter = signature(cls.__init__).parameters.get(setting)
        return rules_of(parameter.annotation if parameter else cls.declared.get(setting))

    def _build_parts(self) -> None:
        """Builds heads, loss and further state, once the settings are checked and are attributes."""

    @property
    def learning(self) -> bool:
        """Whether state may move: in training mode and with gradients, hence never where a loss is only looked at.

        Statistics of batch normalisation alone follow torch's rule and move in training mode without gradients too.
        """
        return self.training and torch.is_grad_enabled()

    @classmethod
    def check_backbone(cls, backbone: nn.Module) -> None:
        """Raises an `InputError` for a backbone that this objective cannot train."""

    def features(self, images: Tensor) -> Tensor:
        """Returns the backbone's pre-logits of one view: `(B, C, H, W)` to `(B, F)`."""
        return pre_logits(self.backbone, images)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss, a scalar, of a batch: one tensor `(B, C, H, W)` per view, in training mode."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(views)")

    def schedule(self, step: int, steps_per_epoch: int, num_steps: int) -> None:
        """Sets the progress: `step` of `num_steps` steps are taken. Without it, schedules stay at their start."""
        self.epoch = step // steps_per_epoch

    def after_backward(self) -> None:
        """Changes gradients, where the method does, between the backward pass and the optimiser's step."""

    def build_transform(self, normalize: dict[str, list[float]], image_size: int, **view_args: Any) -> Views:
        """Returns lightly's transform for views of a size, normalised by `mean` and `std`, with lightly's arguments.

        Small images are blurred only on request, as lightly advises.
        """
        if self.transform is None:
            raise NotImplementedError(f"{type(self).__name__} must set transform or implement build_transform")
        blur = {"gaussian_blur": 0.0} if image_size <= LARGEST_SMALL else {}
        return self.transform(input_size=image_size, normalize=normalize, **{**blur, **view_args})

    def build_views(self, image_size: int, pixel_space: PixelSpace, **view_args: Any) -> Views:
        """Returns the transform of one PIL image to its views, each `(C, image_size, image_size)` in `pixel_space`.

        Args:
            image_size: Height and width of the views.
            pixel_space: The space that the backbone is trained in.
            **view_args: Arguments of lightly's transform, such as `min_scale` or `hf_prob`.

        Raises:
            InputError: lightly does not take an argument, or the backbone does not take the views.
        """
        decided = sorted({"normalize", "input_size"} & view_args.keys())
        if decided:
            raise InputError(
                f"teacher_training.view_args must leave out {', '.join(decided)}, which the images decide"
            )
        check_arguments(f"teacher_training.view_args of {self.name}", view_args)
        normalize = {"mean": list(pixel_space.mean), "std": list(pixel_space.std)}
        try:
            return self.build_transform(normalize, image_size, **view_args)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(
                f"teacher_training.view_args {view_args} do not fit the views of {self.name}: {error}"
            ) from error

    def describe(self) -> dict[str, Any]:
        """Returns name, citation and settings, for provenance and cards."""
        return {"name": self.name, "citation": self.citation, **self.settings}


def several_processes() -> bool:
    """Whether the loss must see the other processes' batches as well."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def in_full_precision(loss: Callable[..., Tensor], *outputs: Any, **named: Any) -> Tensor:
    """Calls a loss outside autocast, in float32 at least: half precision is too coarse for statistics of a batch."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return loss(*map(_widen, outputs), **{name: _widen(output) for name, output in named.items()})


def _widen(output: Any) -> Any:
    if isinstance(output, list):
        return [_widen(part) for part in output]
    half = isinstance(output, Tensor) and output.dtype in (torch.float16, torch.bfloat16)
    return output.float() if half else output


def keep_buffers(module: nn.Module) -> None:
    """Makes every buffer of a module persistent; lightly leaves memory banks out of state dicts."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer)
