"""What the parts of a distilled set must be to fit together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssdd_hub.data.augment import PADDING
from ssdd_hub.errors import InputError, require
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets.folder import split_rows


def check_tensors(tensors: Mapping[str, Tensor], pixel_space: PixelSpace, label_names: list[str] | None) -> None:
    """Checks the tensors of a set by name, as `DistilledSet` describes them, or the same rows of each.

    Raises:
        InputError: They do not fit together or into the space, or hold NaN or infinite values.
    """
    images, targets = tensors["images"], tensors["targets"]
    _check_pairs(images, targets, pixel_space)
    _check_labels(tensors.get("labels"), label_names, len(images))
    _check_views(tensors.get("views"), tensors.get("view_targets"), *targets.shape)


def _check_pairs(images: Tensor, targets: Tensor, pixel_space: PixelSpace) -> None:
    require(
        (
            images.dtype == torch.float32 and images.ndim == 4 and images.numel() > 0,
            f"images must be (M, C, H, W), float32, at least one; got {tuple(images.shape)}, {images.dtype}",
        ),
        (
            targets.dtype == torch.float32 and targets.ndim == 2 and targets.numel() > 0,
            f"targets must be (M, D), float32, at least one; got {tuple(targets.shape)}, {targets.dtype}",
        ),
    )
    require(
        (len(images) == len(targets), f"every image needs one target; got {len(images)} and {len(targets)}"),
        (images.shape[1] in (1, 3), f"images must have 1 channel (grey) or 3 (RGB); got {images.shape[1]}"),
        (
            images.shape[1] == pixel_space.channels,
            f"the pixel space must have the images' {images.shape[1]} channels; got {pixel_space.channels}",
        ),
    )
    for name, tensor in (("images", images), ("targets", targets)):
        # Piece by piece: a whole tensor of infinities to compare with would be as large as the set.
        if not all(part.isfinite().all() for part in split_rows(tensor)):
            raise InputError(
                f"the {name} hold NaN or infinite values, the distillation diverged: lower its learning rates"
            )


def check_student_space(stated: Any, channels: int) -> None:
    """Checks the space of real images that a set states, which has as many channels as the set's own.

    Args:
        stated: `mean` and `std`, or None.
        channels: Of the set's images.

    Raises:
        InputError: It is no space, or of other channels.
    """
    try:
        space = PixelSpace.from_dict(stated) if stated is not None else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"student_pixel_space must hold mean and std of each channel ({error})") from error
    if space is not None and space.channels != channels:
        raise InputError(
            f"student_pixel_space must have the {channels} channel(s) of the set's images, got {space.channels}"
        )


def _check_labels(labels: Tensor | None, names: list[str] | None, size: int) -> None:
    if labels is None:
        require((not names, "label_names without labels mean nothing: give both or neither"))
        return
    require(
        (
            labels.dtype == torch.int64 and labels.shape == (size,),
            f"labels must be ({size},), int64; got {tuple(labels.shape)}, {labels.dtype}",
        ),
        (not names or len(set(names)) == len(names), f"label_names must differ from each other; got {names}"),
    )
    if names and not -1 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise InputError(
            f"labels must lie in [-1, {len(names)}) to match label_names; got {labels.min()} to {labels.max()}"
        )


def _check_views(views: Tensor | None, targets: Tensor | None, size: int, width: int) -> None:
    if views is None or targets is None:
        require(
            (views is targets, "views and their targets belong together: give both views and view_targets, or neither")
        )
        return
    count = views.shape[1] if views.ndim == 3 else 0
    require(
        (
            views.dtype == torch.int64 and count > 0 and views.shape == (size, count, 3),
            f"views must be ({size}, K, 3), int64, K at least 1; got {tuple(views.shape)}, {views.dtype}",
        ),
        (
            targets.dtype == torch.float32 and targets.shape == (size, count, width),
            f"view_targets must be ({size}, {count or 'K'}, {width}), float32; got {tuple(targets.shape)}, "
            f"{targets.dtype}",
        ),
    )
    most = torch.tensor([2 * PADDING, 2 * PADDING, 1], device=views.device)
    if not ((views >= 0) & (views <= most)).all():
        raise InputError(
            f"views must be two offsets in [0, {2 * PADDING}] and a flip of 0 or 1; got values from "
            f"{views.amin((0, 1)).tolist()} to {views.amax((0, 1)).tolist()}"
        )
    if not targets.isfinite().all():
        raise InputError("the view_targets hold NaN or infinite values: make the views again with a sound teacher")
