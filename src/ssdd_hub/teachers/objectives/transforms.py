"""lightly's transforms where their arguments depend on the method, the size of the images or the backbone."""

from typing import Any

from lightly.transforms import BYOLTransform, DINOTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from torch import nn

from ssdd_hub.errors import InputError
from ssdd_hub.models.features import measure_width
from ssdd_hub.teachers.objectives.base import LARGEST_SMALL, Objective, Views


def byol_transform(**view_args: Any) -> Views:
    """Returns BYOL's two views, with these arguments for both."""
    transform: Views = BYOLTransform(BYOLView1Transform(**view_args), BYOLView2Transform(**view_args))
    return transform


def dino_transform(
    objective: Objective, normalize: dict[str, list[float]], image_size: int, **view_args: Any
) -> Views:
    """Returns DINO's two global views and its local ones, which the objective's backbone has to take."""
    # Small images are not blurred unless requested.
    blur = {"gaussian_blur": (0.0, 0.0, 0.0)} if image_size <= LARGEST_SMALL else {}
    arguments = {"local_crop_size": local_crop_size(objective.backbone, image_size), **blur, **view_args}
    if arguments.get("n_local_views", 1):
        check_crops(objective, len(normalize["mean"]), image_size, arguments["local_crop_size"])
    transform: Views = DINOTransform(global_crop_size=image_size, normalize=normalize, **arguments)
    return transform


def local_crop_size(backbone: nn.Module, image_size: int) -> int:
    """Returns the methods' 96 pixels of 224, in proportion, rounded down to whole patches of a vision transformer."""
    patch = int(getattr(getattr(backbone, "patch_embed", None), "patch_size", (1,))[0])
    return max(image_size * 96 // 224 // patch * patch, patch)


def check_crops(objective: Objective, channels: int, image_size: int, crop_size: int) -> None:
    """Raises an `InputError` for local views of a size that the backbone does not take in a dry forward pass."""
    if crop_size == image_size:
        return
    try:
        measure_width(objective.backbone, channels, crop_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{objective.name} crops local views of {crop_size} pixels from images of {image_size}, which this "
            f"{type(objective.backbone).__name__} does not take ({error}): build it for several sizes, as a vision "
            "transformer with dynamic_img_size=True, or choose other views in teacher_training.view_args"
        ) from error
