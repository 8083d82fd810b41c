"""What the parts of a distilled set must be to fit together."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ssdd_hub.data.augment import PADDING
from ssdd_hub.errors import Check, require
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record_schema import COLUMNS
from ssdd_hub.sets.folder import split_rows


def check_tensors(tensors: Mapping[str, Tensor], pixel_space: PixelSpace, label_names: list[str] | None) -> None:
    """Checks the tensors of a set by name, as `DistilledSet` describes them, or the same rows of each.

    Raises an `InputError` if they do not fit together or into the space, or hold NaN or infinite values.
    """
    images, targets, views = tensors["images"], tensors["targets"], tensors.get("views")
    require(
        _is_of("images", images, "(M, C, H, W)", images.ndim == 4 and images.numel() > 0, ", at least one"),
        _is_of("targets", targets, "(M, D)", targets.ndim == 2 and targets.numel() > 0, ", at least one"),
    )
    channels, own = images.shape[1], pixel_space.channels
    require(
        (len(images) == len(targets), f"every image needs one target; got {len(images)} and {len(targets)}"),
        (channels in (1, 3), f"images must have 1 channel (grey) or 3 (RGB); got {channels}"),
        (channels == own, f"the pixel space must have the images' {channels} channels; got {own}"),
        (
            (views is None) == ("view_targets" not in tensors),
            "views and their targets belong together: give both views and view_targets, or neither",
        ),
    )
    advice = ", the distillation diverged: lower its learning rates"
    require(*(_is_finite(name, tensors[name], advice) for name in ("images", "targets")))
    _check_labels(tensors.get("labels"), label_names, len(images))
    if views is not None:
        _check_views(images, views, tensors["view_targets"], targets.shape[1])


def _is_of(name: str, tensor: Tensor, shape: str, fits: bool, more: str = "") -> Check:
    dtype = COLUMNS[name][1]
    got = f"{tuple(tensor.shape)}, {tensor.dtype}"
    return fits and tensor.dtype == getattr(torch, dtype), f"{name} must be {shape}, {dtype}{more}; got {got}"


def _is_finite(name: str, tensor: Tensor, advice: str) -> Check:
    # Piece by piece: a whole tensor of infinities to compare with would be as large as the set.
    return all(part.isfinite().all() for part in split_rows(tensor)), f"the {name} hold NaN or infinite values{advice}"


def _check_labels(labels: Tensor | None, names: list[str] | None, size: int) -> None:
    if labels is None:
        require((not names, "label_names without labels mean nothing: give both or neither"))
        return
    names = names or []
    require(
        _is_of("labels", labels, f"({size},)", labels.shape == (size,)),
        (len(set(names)) == len(names), f"label_names must differ from each other; got {names}"),
    )
    least, greatest, count = int(labels.min()), int(labels.max()), len(names)
    fit = not names or -1 <= least <= greatest < count
    require((fit, f"labels must lie in [-1, {count}) to match label_names; got {least} to {greatest}"))


def _check_views(images: Tensor, views: Tensor, targets: Tensor, width: int) -> None:
    size = len(images)
    count = views.shape[1] if views.ndim == 3 else 0
    shape = f"({size}, {count or 'K'}, {width})"
    require(
        _is_of("views", views, f"({size}, K, 3)", count > 0 and views.shape == (size, count, 3), ", K at least 1"),
        _is_of("view_targets", targets, shape, targets.shape == (size, count, width)),
    )
    turns, square = 2 * 3, images.shape[2] == images.shape[3]
    most = torch.tensor([2 * PADDING, 2 * PADDING, 1 + (turns if square else 0)], device=views.device)
    values = f"values from {views.amin((0, 1)).tolist()} to {views.amax((0, 1)).tolist()}"
    require(
        (
            bool(((views >= 0) & (views <= most)).all()),
            f"views must be two offsets in [0, {2 * PADDING}] and a flip of 0 or 1, and 2 more for each "
            f"quarter turn of a square image; got {values}",
        ),
        _is_finite("view_targets", targets, ": make the views again with a sound teacher"),
    )
