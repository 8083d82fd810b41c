"""Distilled sets as pairs of `.pt` files, which the code of KRR-ST, of MKDT and DD-Ranking read and write.

Such a pair does not say in which pixel space its images are. What the released code does:

* `krr-st`: training saves `x_syn.pt` and `y_syn.pt`, bare tensors on the GPU that require gradients; evaluation reads
  them from `synthetic_data/SOURCE/METHOD/`. The images start as raw pixels in [0, 1] and are fed to networks as they
  are, also to the pre-trained ones. The real images of the transfer are normalised: what a network was pre-trained on
  and what it is fine-tuned on then lie in different spaces.
* `mkdt`: `images_STEP.pt`, `labels_STEP.pt` (the targets) and `synlr_STEP.pt` (the learned learning rate); evaluation
  reads step 1000 unless told another. Images, and the real ones, are normalised by mean and std of their dataset.
* `dd-ranking`: the evaluators take `image_tensor` `(N, C, H, W)` and `soft_labels` `(N, K)`, which its demos read from
  `images.pt` and `labels.pt` beside `lr.pt` in `METHOD/DATASET/IPC10/`. It trains on the images as they are and tests
  on real ones *normalised by the mean and std of their dataset*: export with
  `space=LAYOUTS["dd-ranking"].real_spaces["cifar10"]`. With `use_zca` it whitens the real images instead, which no
  pixel space describes. It takes the images as sorted by class, the same number of each, and `labels.pt` as scores of
  `K` classes: it cannot use features of a teacher.

Beside the tensors that we write stands `ssdd_hub_tensors.json`, which says all that reading them back takes. A file is
never trusted with code: `torch.load` with `weights_only`.
"""

import json
import math
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
from ssdd_hub.sets.folder import Stated, describe_tensor, measure_range
from ssdd_hub.sets.layouts import (
    LAYOUTS,
    NAMES,
    Layout,
    Pair,
    check_size,
    find_pair,
    get_layout,
    holds_pair,
    read_pair,
    require_plain_pair,
)
from ssdd_hub.targets.transform import TargetTransform

__all__ = ["LAYOUTS", "METADATA_FILE", "Layout", "export_tensors", "import_tensors", "is_foreign"]

METADATA_FILE = "ssdd_hub_tensors.json"
FORMAT_VERSION = 1
_MOST_METADATA = 64 * 2**20


def export_tensors(
    distilled: DistilledSet, folder: str | Path, layout: str = "krr-st", space: PixelSpace | None = None
) -> Path:
    """Writes a set as the pair of `.pt` files of other code: plain float32 tensors on the CPU.

    `ssdd_hub_tensors.json` beside them states pixel space, ranges, shapes, sha256, labels and provenance, and
    `target_transform.safetensors` holds the transform of the targets where there is one: `import_tensors(folder)`
    gives back the same set, but for views and their targets: no layout holds them, and they are stated as left out.
    The folder appears whole or not at all.

    Args:
        distilled: The set.
        folder: The place: free, or an empty folder; its parents are created.
        layout: One of `LAYOUTS`.
        space: The space to convert the images to, for code that feeds its networks real images of that space. None for
            the set's own, in which they stay what they are, bit for bit.

    Raises:
        InputError: There is no such layout, the place is taken, the space does not fit the images, or `dd-ranking`
            would take the images for those of other classes.
    """
    folder, distilled = Path(folder), replace(distilled)  # a new set, so checked again
    entry = get_layout(layout)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is taken, and exporting overwrites nothing: choose another folder or empty this one"
        )
    if layout == "dd-ranking":
        _check_class_order(distilled.labels)
    space = space or distilled.pixel_space
    files = entry.files()
    tensors = {"images": _convert(distilled, space), "targets": distilled.targets}
    metadata = {
        "format_version": FORMAT_VERSION,
        "layout": layout,
        "tensors": {name: {"file": files[name], **describe_tensor(tensors[name])} for name in files},
        "pixel_space": space.to_dict(),
        "value_range": _range(tensors["images"]),
        **measure_range(space.denormalise(tensors["images"].double())),
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
        text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False)
        (new / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
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
            None stands for raw pixels as in the released code, with the consequence that the module describes.
        layout: One of `LAYOUTS`, or `auto` to go by the names of the files; a file that holds both needs one.
        method: What made the set, where the files do not state it. None for the layout's own; the authors of KRR-ST
            also published sets of others, such as `frepo`.
        targets: `(M, D)`, for files that hold class labels instead; these then become the set's labels.
        labels: `(M,)`, int64, where the files hold none.
        label_names: Names of the classes.
        student_pixel_space: The space in which networks pre-trained on the set are to see real images, such as one of
            the layout's `real_spaces`.

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
    _check_fit(tensors, stated, pair)
    space, how = _choose_space(entry, stated, pixel_space, tensors["images"].shape[1])
    record |= {"layout": pair.layout, "citation": entry.citation, "url": entry.url, "pixel_space": how}
    record["value_range"] = _range(tensors["images"])
    provenance = {**stated.get("provenance", {"method": method or entry.method}), "import": record}
    if student_pixel_space is not None:
        provenance["student_pixel_space"] = student_pixel_space.to_dict()
    return DistilledSet(
        **tensors,
        pixel_space=space,
        labels=stated.get("labels") if labels is None else labels,
        provenance=provenance,
        label_names=stated.get("label_names") if label_names is None else list(label_names),
        target_transform=stated.get("target_transform"),
    )


def is_foreign(path: str | Path) -> bool:
    """Whether a folder holds such a pair and no distilled set, or a path is a `.pt` or `.pth` file; opens nothing."""
    path = Path(path).expanduser()
    if path.is_dir():
        return not (path / set_record.METADATA_FILE).exists() and holds_pair(path)
    return path.is_file() and path.suffix in (".pt", ".pth")


def _range(values: Tensor) -> list[float]:
    return [values.min().item(), values.max().item()]


def _check_class_order(labels: Tensor | None) -> None:
    if labels is None:
        return
    classes = int(labels.max()) + 1
    each, rest = divmod(len(labels), max(classes, 1))
    if rest or not each or not torch.equal(labels.cpu(), torch.arange(classes).repeat_interleave(each)):
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
    """Returns what `ssdd_hub_tensors.json` states, as the parts of a set; nothing for a foreign pair."""
    path = pair.folder / METADATA_FILE
    require_plain_pair(pair, METADATA_FILE, TRANSFORM_FILE)
    if not path.is_file():
        return {}
    try:
        check_size(path, _MOST_METADATA)
        stated = json.loads(path.read_text(encoding="utf-8"))
        files = {name: stated["tensors"][name]["file"] for name in NAMES}
        if (stated["format_version"], stated["layout"], files) != (FORMAT_VERSION, pair.layout, pair.files):
            raise ValueError("it is of another version, layout or pair of files")
        space, labels, names = PixelSpace.from_dict(stated["pixel_space"]), stated["labels"], stated["label_names"]
        if not all(map(math.isfinite, (*space.mean, *space.std))):
            raise ValueError("its pixel space is not finite")
        if labels is not None and any(type(label) is not int for label in labels):
            raise ValueError("its labels are not whole numbers")
        parts = {
            "tensors": Stated.of({"tensors": {name: stated["tensors"][name] for name in NAMES}}),
            "pixel_space": space,
            "labels": None if labels is None else torch.tensor(labels, dtype=torch.int64),
            "label_names": None if names is None else [str(name) for name in names],
            "provenance": dict(stated["provenance"]),
        }
        sha256 = str(stated["target_transform"]["sha256"]) if "target_transform" in stated else None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} does not state the tensors beside it ({error!r}): export them again, or remove it and give the "
            "pixel space"
        ) from error
    if sha256 is not None:
        transform = pair.folder / TRANSFORM_FILE
        if transform.is_file():  # and where there is none, `load` says so
            check_size(transform)
        parts["target_transform"] = TargetTransform.load(transform, sha256)
    return parts


def _check_fit(tensors: Mapping[str, Tensor], stated: Mapping[str, Any], pair: Pair) -> None:
    images, targets = (tuple(tensors[name].shape) for name in NAMES)
    fits = len(images) == 4 and len(targets) == 2 and images[0] == targets[0] and images[1] in (1, 3)
    if not fits or not all((*images, *targets)):
        raise InputError(
            f"{pair.files['images']} and {pair.files['targets']} must hold images (M, C, H, W), C 1 or 3, and targets "
            f"(M, D); got {images} and {targets}"
        )
    for name, wanted in stated.get("tensors", {}).items():
        if describe_tensor(tensors[name])["sha256"] != wanted.sha256:
            raise InputError(
                f"the {name} are not those that {METADATA_FILE} states, their sha256 differs: export again"
            )


def _choose_space(
    layout: Layout, stated: Mapping[str, Any], given: PixelSpace | None, channels: int
) -> tuple[PixelSpace, str]:
    """Returns the space of the images, and how it is known."""
    if stated:
        if given not in (None, stated["pixel_space"]):
            raise InputError(f"{METADATA_FILE} states another pixel space, {stated['pixel_space']}: give none")
        return stated["pixel_space"], f"stated in {METADATA_FILE}"
    if given is not None:
        return given, "given by the caller"
    if layout.raw_images:
        return PixelSpace.raw(channels), (
            "assumed: raw pixels in [0, 1], as in the released code, which feeds them to networks as they are and "
            "normalises the real images of the transfer"
        )
    known = "; ".join(f"{name} mean {space.mean} std {space.std}" for name, space in layout.real_spaces.items())
    raise InputError(f"these files do not state the pixel space of their images: give it. {layout.url} has {known}")
