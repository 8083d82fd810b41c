"""Distilled sets as pairs of `.pt` files, which the code of KRR-ST, of MKDT and DD-Ranking read and write.

Such a pair does not state the pixel space of its images; `LAYOUTS` has what each code takes them for. Beside the
tensors that we write stands `ssdd_hub_tensors.json`, which states all that reading them back takes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdd_hub import record as set_record
from ssdd_hub.errors import InputError
from ssdd_hub.files import replaced_folder
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import TRANSFORM_FILE
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.folder import MISTAKES, StatedSet, describe_tensor, measure_range
from ssdd_hub.sets.layouts import LAYOUTS, NAMES, Layout, Pair, check_size, find_pair, get_layout, read_pair

__all__ = ["LAYOUTS", "METADATA_FILE", "Layout", "export_tensors", "import_tensors", "is_foreign"]

METADATA_FILE = "ssdd_hub_tensors.json"
FORMAT_VERSION = 1
_MOST_METADATA = 64 * 2**20


def export_tensors(
    distilled: DistilledSet, folder: str | Path, layout: str = "krr-st", space: PixelSpace | None = None
) -> Path:
    """Writes a set as the pair of `.pt` files of other code: plain float32 tensors on the CPU.

    With `ssdd_hub_tensors.json` and, where the targets have a transform, `target_transform.safetensors` beside them,
    `import_tensors(folder)` gives back the same set, but for views and their targets: no layout holds them, and they
    are stated as left out. The folder appears whole or not at all.

    Args:
        distilled: The set.
        folder: The place: free, or an empty folder; its parents are created.
        layout: One of `LAYOUTS`.
        space: The space to convert the images to, for code that feeds its networks real images of that space, such as
            `LAYOUTS["dd-ranking"].real_spaces["cifar10"]`. None for the set's own, in which they stay bit for bit.

    Raises:
        InputError: There is no such layout, the place is taken, the space does not fit the images, or `dd-ranking`
            would take the images for those of other classes.
    """
    folder, distilled = Path(folder), replace(distilled)  # a new set, so checked again
    files = get_layout(layout).files()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is taken, and exporting overwrites nothing: choose another folder or empty this one"
        )
    if layout == "dd-ranking" and distilled.labels is not None:
        _check_class_order(distilled.labels.cpu())
    space = space or distilled.pixel_space
    tensors = {"images": _convert(distilled, space), "targets": distilled.targets}
    metadata = {
        "format_version": FORMAT_VERSION,
        "layout": layout,
        "tensors": {name: {"file": files[name], **describe_tensor(tensors[name])} for name in files},
        "pixel_space": space.to_dict(),
        "value_range": [bound.item() for bound in tensors["images"].aminmax()],
        **measure_range([space.denormalise(tensors["images"].double())]),
        "labels": None if distilled.labels is None else distilled.labels.tolist(),
        "label_names": distilled.label_names,
        "left_out": [name for name in ("views", "view_targets") if getattr(distilled, name) is not None],
        "provenance": distilled.provenance,
    }
    with replaced_folder(folder) as new:
        for name, tensor in tensors.items():
            # A copy, because a view would be saved with all that it is a view of.
            torch.save(tensor.cpu().clone(memory_format=torch.contiguous_format), new / files[name])
        if distilled.target_transform is not None:
            sha256 = distilled.target_transform.save(new / TRANSFORM_FILE)
            metadata["target_transform"] = {**distilled.target_transform.describe(), "sha256": sha256}
        (new / METADATA_FILE).write_text(set_record.dump_metadata(metadata), encoding="utf-8")
    return folder


def import_tensors(
    path: str | Path,
    *,
    pixel_space: PixelSpace | None = None,
    layout: str = "auto",
    method: str | None = None,
    targets: Tensor | None = None,
    labels: Tensor | None = None,
    label_names: Sequence[str] | None = None,
    student_pixel_space: PixelSpace | None = None,
) -> DistilledSet:
    """Reads a pair of `.pt` files as a distilled set.

    The tensors may be parameters, need gradients, lie on a GPU, be strided, of another floating-point type (which
    becomes float32), or the one entry of a list or of a dictionary under a usual name. What was done to them, and the
    sha256 of the files, is under `import` in the provenance.

    Args:
        path: A folder of the two files, one of them, or a file that holds both. The highest of several steps is read.
        pixel_space: The space of the images. Needed unless it is stated beside them, or the layout is `krr-st`, where
            None stands for raw pixels as in the released code.
        layout: One of `LAYOUTS`, or `auto` to go by the names of the files; a file that holds both needs one.
        method: What made the set, where the files do not state it, such as `frepo`. None for the layout's own.
        targets: `(M, D)`, for files that hold class labels instead; these then become the set's labels.
        labels: `(M,)`, int64, where the files hold none.
        label_names: Names of the classes.
        student_pixel_space: The space of real images for networks pre-trained on the set, such as one of the layout's
            `real_spaces`.

    Raises:
        InputError: There are no such files; they are damaged, too large, hold code, or no set that fits together; the
            pixel space is missing or not the stated one; or there are class labels in place of targets.
    """
    pair = find_pair(Path(path).expanduser(), layout)
    entry, stated = LAYOUTS[pair.layout], _read_metadata(pair)
    tensors, record = read_pair(pair)
    if not tensors["targets"].is_floating_point():
        if targets is None or labels is not None:
            raise InputError(
                f"{pair.files['targets']} holds class labels, and a set needs targets (M, D) to regress to: pass "
                "targets=, such as a teacher's features of the images, and no labels="
            )
        labels, tensors["targets"] = tensors["targets"].long(), targets
    elif targets is not None:
        raise InputError(f"{pair.files['targets']} holds targets already: pass no targets=")
    _check_fit(tensors, stated.pop("sha256", {}), pair)
    given = {"labels": labels, "label_names": None if label_names is None else list(label_names)}
    parts = {"provenance": {"method": method or entry.method}, **stated}
    parts |= {name: value for name, value in given.items() if value is not None}
    space, how = _choose_space(entry, stated.get("pixel_space"), pixel_space, tensors["images"].shape[1])
    record |= {"layout": pair.layout, "citation": entry.citation, "url": entry.url, "pixel_space": how}
    record["value_range"] = [bound.item() for bound in tensors["images"].aminmax()]
    parts["provenance"]["import"] = record
    if student_pixel_space is not None:
        parts["provenance"]["student_pixel_space"] = student_pixel_space.to_dict()
    return DistilledSet(**{**parts, **tensors, "pixel_space": space})


def is_foreign(path: str | Path) -> bool:
    """Whether a folder holds such a pair and no distilled set, or a path is a `.pt` or `.pth` file; opens nothing."""
    path = Path(path).expanduser()
    if path.is_dir():
        is_pair = any(layout.find_steps(path, os.listdir(path)) for layout in LAYOUTS.values())
        return is_pair and not (path / set_record.METADATA_FILE).exists()
    return path.is_file() and path.suffix in (".pt", ".pth")


def _check_class_order(labels: Tensor) -> None:
    classes = int(labels.max()) + 1
    each, rest = divmod(len(labels), max(classes, 1))
    if rest or not each or not torch.equal(labels, torch.arange(classes).repeat_interleave(each)):
        raise InputError(
            "DD-Ranking takes images as sorted by class, the same number of each, and by their labels these are not: "
            "choose and sort them, or take the labels out of the set if they do not matter"
        )


def _convert(distilled: DistilledSet, space: PixelSpace) -> Tensor:
    images, own = distilled.images.cpu(), distilled.pixel_space
    if space == own:
        return images
    if space.channels != own.channels:
        raise InputError(f"the space must have the images' {own.channels} channels, got {space.channels}")
    images = space.normalise(own.denormalise(images.double())).float()
    if not images.isfinite().all():
        raise InputError("in this space some pixels are beyond float32: export in the set's own space")
    return images


def _read_metadata(pair: Pair) -> dict[str, Any]:
    """Returns what `ssdd_hub_tensors.json` states as parts of a set, with the `sha256`; nothing of a foreign pair."""
    path = pair.folder / METADATA_FILE
    pair.require_plain(METADATA_FILE, TRANSFORM_FILE)
    if not path.is_file():
        return {}
    try:
        check_size(path, _MOST_METADATA)
        metadata = json.loads(path.read_text(encoding="utf-8"))
        set_record.check_schema(metadata, path, "export them again, or remove it and give the pixel space")
        stated, labels = StatedSet.of(metadata), metadata["labels"]
        files = {name: metadata["tensors"][name]["file"] for name in NAMES}
        if (metadata["format_version"], metadata["layout"], files) != (FORMAT_VERSION, pair.layout, pair.files):
            raise ValueError("it is of another version, layout or pair of files")
        if labels is not None and any(type(label) is not int for label in labels):
            raise ValueError("its labels are not whole numbers")
        parts = {
            "sha256": {name: stated.tensors[name].sha256 for name in NAMES},
            "pixel_space": stated.decoder.pixel_space,
            "labels": None if labels is None else torch.tensor(labels, dtype=torch.int64),
            "label_names": stated.label_names,
            "provenance": dict(metadata["provenance"]),
        }
    except InputError:
        raise
    except MISTAKES as error:
        raise InputError(
            f"{path} does not state the tensors beside it ({error!r}): export them again, or remove it and give the "
            "pixel space"
        ) from error
    return {**parts, "target_transform": stated.load_transform(pair.folder)}


def _check_fit(tensors: Mapping[str, Tensor], sha256: Mapping[str, str], pair: Pair) -> None:
    images, targets = (tuple(tensors[name].shape) for name in NAMES)
    fits = len(images) == 4 and len(targets) == 2 and images[0] == targets[0] and images[1] in (1, 3)
    if not fits or not all((*images, *targets)):
        raise InputError(
            f"{pair.files['images']} and {pair.files['targets']} must hold images (M, C, H, W), C 1 or 3, and targets "
            f"(M, D); got {images} and {targets}"
        )
    for name, wanted in sha256.items():
        if describe_tensor(tensors[name])["sha256"] != wanted:
            raise InputError(
                f"the {name} are not those that {METADATA_FILE} states, their sha256 differs: export again"
            )


def _choose_space(
    layout: Layout, stated: PixelSpace | None, given: PixelSpace | None, channels: int
) -> tuple[PixelSpace, str]:
    """Returns the space of the images, and how it is known."""
    if stated is not None:
        if given not in (None, stated):
            raise InputError(f"{METADATA_FILE} states another pixel space, {stated}: give none")
        return stated, f"stated in {METADATA_FILE}"
    if given is not None:
        return given, "given by the caller"
    if layout.raw_images:
        return PixelSpace.raw(channels), (
            "assumed: raw pixels in [0, 1], as in the released code, which feeds them to networks as they are and "
            "normalises the real images of the transfer"
        )
    known = "; ".join(f"{name} mean {space.mean} std {space.std}" for name, space in layout.real_spaces.items())
    raise InputError(f"these files do not state the pixel space of their images: give it. {layout.url} has {known}")
