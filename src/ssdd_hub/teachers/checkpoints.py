"""Weights trained elsewhere, by lightly, solo-learn, Lightning or the authors of KRR-ST, loaded into timm's networks.

A file is never trusted with code: safetensors, or `torch.load` with `weights_only`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssdd_hub.errors import InputError
from ssdd_hub.text import first_line

# What stands first in the file's names where the backbone has the word on the left. A `nn.Sequential` of a ResNet's
# children counts them: torchvision's have ReLU and max-pooling at 2 and 3, those of lightly's own ResNet have not.
LAYOUTS: dict[str, dict[str, str]] = {
    "names": {},
    "torchvision-children": dict(conv1="0", bn1="1", layer1="4", layer2="5", layer3="6", layer4="7"),
    "lightly-children": dict(conv1="0", bn1="1", layer1="2", layer2="3", layer3="4", layer4="5"),
}
# Of several networks in one file that fit equally, the trained one rather than its momentum copy.
_PREFERRED = ("", "backbone", "student_backbone", "encoder", "encoder_q", "base_encoder", "student", "model", "module")
_NESTED = ("state_dict", "model_state_dict", "model")
_HEADS = ("fc", "head", "classifier", "linear", "projector", "projection_head")
_PICKLES = (".pt", ".pth", ".ckpt")
_SHOWN = 3


@dataclass(frozen=True)
class LoadReport:
    """What was read from a checkpoint.

    Attributes:
        layout: One of `LAYOUTS`.
        prefix: What stood before the names of the backbone's weights, such as `backbone.`.
        loaded: Number of tensors that the backbone took.
        ignored: Number of other tensors in the file, by the part that they belong to: heads, momentum copies.
    """

    layout: str
    prefix: str
    loaded: int
    ignored: dict[str, int]

    def __str__(self) -> str:
        ignored = ", ".join(f"{part} ({count})" for part, count in self.ignored.items()) or "none"
        return f"{self.loaded} tensors of layout {self.layout} under {self.prefix!r}; ignored: {ignored}"


def load_checkpoint(backbone: nn.Module, path: str | Path, layout: str = "auto") -> LoadReport:
    """Loads weights trained elsewhere into a backbone; on failure the backbone stays as it was.

    The names may stand under a prefix (`backbone.`, `module.encoder.`) and inside a Lightning checkpoint; heads and
    momentum copies beside them are left out and reported. Nothing else may be missing or left over, but for
    `num_batches_tracked`, which old files lack. A file does not tell strides, padding and pooling: those must be the
    backbone's already. The ResNets for 32 px of solo-learn and of KRR-ST's authors are `ssdd_resnet18` with
    `stem_padding=2`, lightly's is `ssdd_resnet18`.

    Args:
        backbone: A timm network without a classifier.
        path: `*.safetensors`, or `*.pt`, `*.pth` or `*.ckpt` that hold tensors and plain values only.
        layout: One of `LAYOUTS`: `names` as in timm, torchvision and solo-learn; `torchvision-children` and
            `lightly-children`, the numbers of `nn.Sequential(*list(resnet.children())[:-1])`; or `auto`.

    Raises:
        InputError: The file cannot be read, holds code, or does not fit the backbone.
    """
    if layout not in ("auto", *LAYOUTS):
        raise InputError(f"the layout of a checkpoint must be auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
    path = Path(path).expanduser()
    weights = _read_state_dict(path)
    wanted = backbone.state_dict()
    layout, prefix = _locate(weights, list(wanted), path, list(LAYOUTS) if layout == "auto" else [layout])
    names = {prefix + _name_in(layout, name): name for name in wanted}
    found = {names[key]: value for key, value in weights.items() if key in names}
    others = [key for key in weights if key not in names]
    _check(wanted, found, [key for key in others if not _is_other_part(key, prefix)], path, backbone)
    backbone.load_state_dict({**wanted, **found})
    return LoadReport(layout, prefix, len(found), dict(Counter(key.split(".")[0] for key in others)))


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    content = _read_file(path)
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        nested = next((content[name] for name in _NESTED if isinstance(content.get(name), Mapping)), None)
        if nested is None:
            break
        content = nested
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict()")
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise InputError(f"{path} holds no weights but {_list(list(content))}: save model.state_dict()")
    return weights


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    if path.suffix not in (".safetensors", *_PICKLES):
        raise InputError(f"a checkpoint is a .safetensors, {', '.join(_PICKLES)} file, got {path.name}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise InputError(
            f"the checkpoint {path} is damaged ({first_line(error)[:200]}): fetch or make it again"
        ) from error
    except Exception as error:  # the unpickler raises its own kind, and on garbage whatever the garbage leads to
        raise InputError(
            f"the checkpoint {path} is damaged, or holds Python objects, which could run code and are not loaded. If "
            "you trust it, convert it where it was made: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt')"
        ) from error


def _name_in(layout: str, name: str) -> str:
    """Returns what the file calls a tensor of the backbone."""
    first, *others = name.split(".")
    if layout == "lightly-children":
        others = ["shortcut" if part == "downsample" else part for part in others]
    return ".".join([LAYOUTS[layout].get(first, first), *others])


def _locate(weights: Mapping[str, Tensor], wanted: list[str], path: Path, layouts: list[str]) -> tuple[str, str]:
    """Returns the layout and the prefix under which most of the wanted names are found."""
    prefixes = {prefix for key in weights for prefix in _prefixes(key)}
    counts = {
        (layout, prefix): sum(prefix + name in weights for name in names)
        for layout in layouts
        for names in [[_name_in(layout, name) for name in wanted]]
        for prefix in prefixes
    }
    most = max(counts.values())
    if most < len(wanted) / 2:  # a few names can agree by chance
        raise InputError(
            f"{path} holds no network like this backbone: it has {_list(list(weights))}, the backbone "
            f"{_list(wanted)}. Choose teacher.backbone as the network in the file"
        )
    best = sorted((place for place, count in counts.items() if count == most), key=_rank)
    equal = {prefix for layout, prefix in best if _rank((layout, prefix)) == _rank(best[0])}
    if len(equal) > 1:
        found = ", ".join(sorted(equal))
        raise InputError(f"{path} holds several networks that fit ({found}): save the one to use in a file of its own")
    return best[0]


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    return ("".join(f"{part}." for part in parts[:count]) for count in range(len(parts)))


def _rank(place: tuple[str, str]) -> int:
    part = place[1].rstrip(".").split(".")[-1]
    return _PREFERRED.index(part) if part in _PREFERRED else len(_PREFERRED)


def _is_other_part(key: str, prefix: str) -> bool:
    """Whether a tensor belongs to a head, or to a network beside the backbone."""
    return not key.startswith(prefix) or key.removeprefix(prefix).split(".")[0] in _HEADS


def _check(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], unexpected: list[str], path: Path, backbone: nn.Module
) -> None:
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    misfits = [
        f"{name} {_describe(value)} instead of {_describe(wanted[name])}"
        for name, value in found.items()
        if value.shape != wanted[name].shape or value.is_floating_point() != wanted[name].is_floating_point()
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape or type": misfits}
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {kind}: {_list(names)}" for kind, names in problems.items() if names)
        raise InputError(
            f"{path} does not fit {type(backbone).__name__} ({told}). Choose teacher.backbone and teacher.model-args "
            "as the network in the file"
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"


def _list(names: list[Any]) -> str:
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
