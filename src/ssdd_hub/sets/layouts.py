"""Pairs of `.pt` files, images and targets, as other code names them: found, and read without trusting them.

A file is never trusted with code, size or shape: `torch.load` with `weights_only`, and checks before anything is done
with what it gives.
"""

import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils.sha import sha_fileobj
from torch import Tensor

from ssdd_hub.bounds import among
from ssdd_hub.errors import InputError, require
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.plain_files import LEAST_BYTES, require_plain, require_uncompressed

# Most bytes of a file, and of a tensor in it: a file of a few bytes can claim to hold any number of values.
MAX_BYTES = 4 * 2**30

# The two tensors, and what they may be called where a file holds a dictionary.
NAMES = {
    "images": ("x_syn", "images", "image_syn", "syn_images", "image_tensor", "x"),
    "targets": ("y_syn", "targets", "labels", "label_syn", "soft_labels", "y"),
}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_IMAGENET = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The std of both codes, narrower than that of all pixels (0.2470, 0.2435, 0.2616).
_NARROW_CIFAR10 = PixelSpace((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@dataclass(frozen=True)
class Layout:
    """The file names of another code's distilled sets, and how it reads their values.

    Attributes:
        images: Name of the file of images; `{step}` stands for a number or `best`.
        targets: Name of the file of targets.
        method: The method of such a set, for its provenance.
        real_spaces: The space in which the code feeds real images to the same networks, by their dataset.
        citation: The paper.
        url: The code.
        rate: Name of the file of the learning rate to pre-train with, or None.
        raw_images: Whether images are pixels in [0, 1], so that no other space needs to be stated.
    """

    images: str
    targets: str
    method: str
    real_spaces: Mapping[str, PixelSpace]
    citation: str
    url: str
    rate: str | None = None
    raw_images: bool = False

    def files(self, step: str = "1000") -> dict[str, str]:
        """Returns the names of the two files, by default of the step that MKDT's evaluation reads by default."""
        return {"images": self.images.format(step=step), "targets": self.targets.format(step=step)}

    def find_steps(self, folder: Path, names: Iterable[str]) -> list[str]:
        """Returns the steps that file names state and of which the folder has both files, the highest last."""
        step = "([0-9]{1,12}|best)"
        patterns = [re.escape(name).replace(r"\{step\}", step) for name in (self.images, self.targets)]
        matches = [re.fullmatch(pattern, name) for name in names for pattern in patterns]
        steps = {(match.groups() or ("",))[0] for match in matches if match}
        whole = [step for step in steps if all((folder / name).is_file() for name in self.files(step).values())]
        return sorted(whole, key=lambda step: int(step) if step.isdigit() else -1)


LAYOUTS: dict[str, Layout] = {
    # The images start as raw pixels and are fed to networks as they are, also to the pre-trained ones. The real images
    # of the transfer are normalised: pre-training and fine-tuning then see different spaces.
    "krr-st": Layout(
        images="x_syn.pt",
        targets="y_syn.pt",
        method="krr-st",
        raw_images=True,
        real_spaces={
            "cifar100": PixelSpace((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
            "tinyimagenet": PixelSpace((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
            "imagenet": PixelSpace((0.4810, 0.4574, 0.4078), (0.2633, 0.2560, 0.2708)),
            "imagenette": PixelSpace((0.4655, 0.4546, 0.4250), (0.2804, 0.2754, 0.2965)),
        },
        citation="Lee et al., Self-Supervised Dataset Distillation for Transfer Learning, ICLR 2024, arXiv 2310.06511",
        url="https://github.com/db-Lee/selfsup_dd",
    ),
    # Images, and the real ones, are normalised by mean and std of their dataset; the learning rate is learned.
    "mkdt": Layout(
        images="images_{step}.pt",
        targets="labels_{step}.pt",
        rate="synlr_{step}.pt",
        method="mkdt",
        real_spaces={
            "cifar10": _NARROW_CIFAR10,
            "cifar100": PixelSpace((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
            "tinyimagenet": _IMAGENET,
        },
        citation="Joshi et al., Dataset Distillation via Knowledge Distillation, ICLR 2025, arXiv 2410.02116",
        url="https://github.com/BigML-CS-UCLA/MKDT",
    ),
    # Images are used as they are, sorted by class, the same number of each; real ones are normalised, or whitened
    # with `use_zca`, which no pixel space describes. Targets are scores of classes, never features of a teacher.
    "dd-ranking": Layout(
        images="images.pt",
        targets="labels.pt",
        rate="lr.pt",
        method="unknown",
        real_spaces={
            **dict.fromkeys(("cifar10", "cifar100"), _NARROW_CIFAR10),
            **dict.fromkeys(("tinyimagenet", "imagenet"), _IMAGENET),
        },
        citation="Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation, arXiv 2505.13300",
        url="https://github.com/NUS-HPC-AI-Lab/DD-Ranking",
    ),
}


@dataclass(frozen=True)
class Pair:
    """The files of the two tensors of a set, the same name twice where one holds both, and of the learning rate."""

    layout: str
    folder: Path
    files: Mapping[str, str]
    rate: str | None = None

    @property
    def is_one_file(self) -> bool:
        """Whether one file holds both tensors."""
        return len(set(self.files.values())) == 1

    @property
    def names(self) -> list[str]:
        """All files, each once, in alphabetical order."""
        return sorted({*self.files.values(), *filter(None, [self.rate])})

    def require_plain(self, *others: str) -> None:
        """Raises an `InputError` for links, FIFOs and devices among the files and others beside them."""
        # A single file of both tensors was named by the caller, who may reach it by a link.
        own = [] if self.is_one_file else self.names
        require_plain(self.folder, [*own, *others])


def get_layout(name: str) -> Layout:
    """Returns an entry of `LAYOUTS`; raises an `InputError` where there is none of this name."""
    require(among("a layout", name, LAYOUTS))
    return LAYOUTS[name]


def find_pair(path: Path, layout: str) -> Pair:
    """Finds the two files by their names, of several steps the highest, in a folder or beside one of them.

    With a layout other than `auto`, a file of any name can hold both tensors. Raises an `InputError` unless there is
    exactly one pair.
    """
    known = LAYOUTS if layout == "auto" else {layout: get_layout(layout)}
    if not path.is_dir() and not path.is_file():
        raise InputError(f"there is neither a folder nor a file {path}")
    folder, names = (path, os.listdir(path)) if path.is_dir() else (path.parent, [path.name])
    pairs = []
    for name, entry in known.items():
        for step in entry.find_steps(folder, names)[-1:]:
            rate = entry.rate and entry.rate.format(step=step)
            pairs.append(Pair(name, folder, entry.files(step), rate if rate and (folder / rate).is_file() else None))
    if not pairs and path.is_file() and layout != "auto":
        pairs = [Pair(layout, folder, dict.fromkeys(NAMES, path.name))]
    if len(pairs) != 1:
        wanted = "; ".join(" and ".join(entry.files("STEP").values()) for entry in known.values())
        raise InputError(
            f"{path} must hold, or be of, exactly one pair of files ({wanted}), found {len(pairs)}: give the folder "
            "of one, and its layout if there are more; a file of both tensors needs its layout too"
        )
    return pairs[0]


def read_pair(pair: Pair) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads `images` and `targets`, on the CPU and without gradients, and records what was read.

    Both are float32, unless the targets are whole numbers in one dimension, which can only be classes. The record has
    `files` with their sha256, `conversions`, and `learning_rate` where the pair has one. Raises an `InputError` for a
    file that is damaged, too large or holds code, and a tensor that is missing, too large or not of finite float32.
    """
    pair.require_plain()
    read = {name: _read_file(pair.folder / name) for name in pair.names}
    record: dict[str, Any] = {"files": {name: sha256 for name, (_, sha256) in read.items()}, "conversions": []}
    tensors = {}
    for index, (part, name) in enumerate(pair.files.items()):
        content = read[name][0]
        if isinstance(content, list | tuple):
            # One entry; or both, in this order, in a file that holds both.
            content = content[index if pair.is_one_file else 0] if len(content) == 1 + pair.is_one_file else None
        elif isinstance(content, Mapping):
            usual = [key for key in NAMES[part] if key in content]
            content = content[usual[0]] if len(usual) == 1 else None
        tensors[part] = _to_plain(content, part, name, record["conversions"])
    if pair.rate is not None:
        rate = read[pair.rate][0]
        number = rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate
        if not isinstance(number, int | float) or not 0 < number < float("inf"):
            raise InputError(f"{pair.rate} must hold one learning rate above 0: correct or remove it")
        record["learning_rate"] = float(number)
    return tensors, record


def _read_file(path: Path) -> tuple[Any, str]:
    """Returns what a file holds, and its sha256."""
    try:
        check_size(path)
        require_uncompressed(path)
        with path.open("rb") as file:
            digest = sha_fileobj(file).hex()
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True), digest
    except InputError:
        raise
    except Exception as error:  # the unpickler raises its own kind, and on garbage whatever the garbage leads to
        raise InputError(
            f"{path} is damaged, or holds Python objects, which could run code and are not loaded: fetch it again, or "
            "save the bare tensor where it was made"
        ) from error


def check_size(path: Path, most: int | None = None) -> None:
    """Raises an `InputError` for a file of more than `MAX_BYTES`, or `most`, also if only unpacking makes it so."""
    most = MAX_BYTES if most is None else most
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    if size > most:
        raise InputError(f"{path} is too large: it has {size} bytes, and at most {most} are read")


def _to_plain(content: Any, part: str, name: str, conversions: list[str]) -> Tensor:
    """Returns plain float32 numbers, or classes, and notes a conversion."""
    if not isinstance(content, Tensor):
        raise InputError(f"{name} must hold the {part} as a tensor, or one tensor named {', '.join(NAMES[part])}")
    if content.is_nested or content.layout != torch.strided or content.device.type != "cpu" or content.is_quantized:
        raise InputError(f"{name} must hold the {part} as plain numbers, got {content.layout} on {content.device}")
    # Before anything is done with it: a view can repeat one number without end.
    if content.numel() * max(4, content.element_size()) > MAX_BYTES:
        raise InputError(f"the {part} in {name} are too large: {tuple(content.shape)} is more than {MAX_BYTES} bytes")
    held = content.untyped_storage().nbytes()
    if content.numel() * content.element_size() > max(LEAST_BYTES, held):
        raise InputError(
            f"the {part} in {name} are a view that repeats {held} bytes to {tuple(content.shape)}: save a copy, by "
            "clone(), where they were made"
        )
    tensor = content.detach().resolve_neg()
    if part == "targets" and tensor.ndim == 1 and tensor.dtype in _INTEGERS:
        return tensor
    if tensor.dtype not in _FLOATS:
        raise InputError(f"the {part} in {name} must be floating-point, got {tensor.dtype}: convert and save them")
    if not tensor.isfinite().all():
        raise InputError(f"the {part} in {name} hold NaN or infinite values: fetch or make them again")
    values = tensor.to(torch.float32).contiguous()
    if not values.isfinite().all():
        raise InputError(f"the {part} in {name} hold values beyond float32: scale them and save them again")
    if tensor.dtype != torch.float32:
        conversions.append(f"{part} from {str(tensor.dtype).removeprefix('torch.')} to float32")
    return values
