"""Every self-supervised objective by name: ours, and those that other packages offer.

Another package offers one by an entry point of the group `ssdd_hub.objectives`, which maps a name to a subclass of
`ssdd_hub.teachers.objectives.Objective`.
"""

from importlib.metadata import entry_points
from typing import Any

from torch import nn

from ssdd_hub.arguments import check_arguments
from ssdd_hub.errors import InputError, nearest
from ssdd_hub.models.features import measure_width
from ssdd_hub.teachers.objectives.barlow_twins import BarlowTwins
from ssdd_hub.teachers.objectives.base import Objective
from ssdd_hub.teachers.objectives.byol import BYOL
from ssdd_hub.teachers.objectives.dino import DINO
from ssdd_hub.teachers.objectives.lejepa import LeJEPA
from ssdd_hub.teachers.objectives.mae import MAE
from ssdd_hub.teachers.objectives.mmcr import MMCR
from ssdd_hub.teachers.objectives.moco import MoCo
from ssdd_hub.teachers.objectives.nnclr import NNCLR
from ssdd_hub.teachers.objectives.simclr import DCL, SimCLR
from ssdd_hub.teachers.objectives.simsiam import FastSiam, SimSiam
from ssdd_hub.teachers.objectives.swav import SwaV
from ssdd_hub.teachers.objectives.tico import TiCo
from ssdd_hub.teachers.objectives.vicreg import VICReg

GROUP = "ssdd_hub.objectives"
_OURS: tuple[type[Objective], ...] = (
    *(BarlowTwins, BYOL, DCL, DINO, FastSiam, LeJEPA, MAE, MMCR, MoCo, NNCLR, SimCLR, SimSiam, SwaV, TiCo, VICReg),
)
OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in _OURS}


def list_objectives() -> list[str]:
    """Returns the names that `build_objective` takes, without importing other packages."""
    return sorted({*OBJECTIVES, *(point.name for point in entry_points(group=GROUP))})


def find_objective(name: str) -> type[Objective]:
    """Returns the class of an objective; ours come before those of other packages.

    Raises:
        InputError: The name is unknown, or the package that offers it does not give an `Objective`.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    point = next(iter(entry_points(group=GROUP, name=name)), None)
    if point is None:
        known = list_objectives()
        raise InputError(f"objective {name!r} is unknown: use one of {', '.join(known)}{nearest(name, known)}")
    what = f"objective {name!r} of the package {point.dist.name if point.dist else point.value}"
    try:
        found = point.load()
    except Exception as error:  # whatever another package raises when it is imported
        raise InputError(f"{what} cannot be imported ({point.value}): {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise InputError(
            f"{what} must be a subclass of ssdd_hub.teachers.objectives.Objective, got {found!r} ({point.value})"
        )
    return found


def build_objective(
    name: str, backbone: nn.Module, /, *, in_chans: int | None = None, image_size: int | None = None, **args: Any
) -> Objective:
    """Wraps a backbone in a self-supervised objective.

    Args:
        name: One of `list_objectives()`.
        backbone: A module with timm's `forward_features` and `forward_head`.
        in_chans: Channels of the images; by default those of the backbone's first convolution.
        image_size: Their height and width; by default what the backbone was built for, or its `pretrained_cfg` states.
        **args: Settings of the objective.

    Raises:
        InputError: The name or a setting is unknown, or the objective cannot train this backbone on such images.
    """
    objective = find_objective(name)
    unchecked = {setting: value for setting, value in args.items() if not objective.rules(setting)}
    check_arguments(f"settings of the objective {name!r}", unchecked)
    if not all(callable(getattr(backbone, method, None)) for method in ("forward_features", "forward_head")):
        raise InputError(
            f"objective {name!r} needs a backbone with timm's forward_features and forward_head, got a "
            f"{type(backbone).__name__}: make it with timm.create_model, or give it the two methods"
        )
    objective.check_backbone(backbone)
    in_chans = _channels(backbone) if in_chans is None else in_chans
    image_size = _image_size(backbone) if image_size is None else image_size
    try:
        width = measure_width(backbone, in_chans, image_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"objective {name!r} got a {type(backbone).__name__} that does not take images of {in_chans} channels and "
            f"{image_size} pixels ({error}): build it for them, or give in_chans and image_size"
        ) from error
    try:
        return objective(backbone, width, **args)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"objective {name!r} does not take these settings {args}: {error}") from error


def _channels(backbone: nn.Module) -> int:
    # timm's `pretrained_cfg` states 3 even of a model that is built for other images.
    return next((module.in_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)), 3)


def _image_size(backbone: nn.Module) -> int:
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    if size is None:
        size = (getattr(backbone, "pretrained_cfg", None) or {}).get("input_size", (None,))[1:]
    if not size:
        raise InputError(
            f"a {type(backbone).__name__} does not say for which images it was built: give in_chans and image_size"
        )
    return int(size[-1])
