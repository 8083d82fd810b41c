"""Loads weights trained elsewhere, by lightly, solo-learn, Lightning or the authors of KRR-ST, into timm's networks.

Files run no code: safetensors, or `torch.load` with `weights_only`.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssdd_hub.errors import InputError
from ssdd_hub.plain_files import require_modest_weights
from ssdd_hub.text import first_line

# First parts of the file's names, by those of the backbone. A `nn.Sequential` of a ResNet's children numbers them:
# torchvision's have ReLU and max-pooling at 2 and 3, those of lightly's own ResNet have not.
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
_MOST_LEVELS = 8  # of mappings around the weights
_MOST_PARTS, _LONGEST_PART = 100, 80  # of other networks' names, in the report


class LoadReport(NamedTuple):
    """Counts of a checkpoint's tensors: those loaded under a layout and a prefix, others by their part of the file."""

    layout: str
    prefix: str
    loaded: int
    ignored: dict[str, int]


def load_checkpoint(backbone: nn.Module, path: str | Path) -> LoadReport:
    """Loads weights trained elsewhere into a timm network without a classifier, which a failure leaves as it was.

    Files are `*.safetensors`, or `*.pt`, `*.pth` and `*.ckpt` that hold tensors and plain values only. Names may be
    those of any of `LAYOUTS`, have a prefix (`backbone.`, `module.encoder.`) and be inside a Lightning checkpoint;
    heads and momentum copies beside them are left out and reported. Nothing else may be missing or left over, except
    `num_batches_tracked`, which old files lack. Strides, padding and pooling are not in a file: the backbone must have
    the right ones. The ResNets for 32 px of solo-learn and of KRR-ST's authors are `ssdd_resnet18` with
    `stem_padding=2`, lightly's is `ssdd_resnet18`.

    Raises:
        InputError: The file cannot be read, holds code, or does not fit the backbone.
    """
    path = Path(path).expanduser()
    weights = _read_state_dict(path)
    wanted = backbone.state_dict()
    layout, prefix = _locate(weights, list(wanted), path)
    names = {prefix + _name_in(layout, name): name for name in wanted}
    found = {names[key]: value for key, value in weights.items() if key in names}
    others = [key for key in weights if key not in names]
    parts = {key: key.removeprefix(prefix).split(".")[0] for key in others if key.startswith(prefix)}
    _check(wanted, found, [key for key, part in parts.items() if part not in _HEADS], path, backbone)
    backbone.load_state_dict({**wanted, **found})
    ignored = Counter(key.split(".", 1)[0][:_LONGEST_PART] for key in others).most_common(_MOST_PARTS)
    return LoadReport(layout, prefix, len(found), dict(ignored))


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    content, levels = _read_file(path), 0
    while isinstance(content, Mapping):
        levels += 1
        if levels > _MOST_LEVELS:  # of a mapping that holds itself there are as many as one looks for
            raise InputError(f"{path} holds mappings more than {_MOST_LEVELS} deep: save model.state_dict()")
        weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        nested = next((content[name] for name in _NESTED if isinstance(content.get(name), Mapping)), None)
        if weights:
            return weights
        if nested is None:
            raise InputError(f"{path} holds no weights but {_list(list(content))}: save model.state_dict()")
        content = nested
    raise InputError(f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict()")


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    if path.suffix not in (".safetensors", *_PICKLES):
        raise InputError(f"a checkpoint is a .safetensors, {', '.join(_PICKLES)} file, got {path.name}")
    try:
        require_modest_weights(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
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
    """Returns a layout's name of a tensor of the backbone."""
    first, *others = name.split(".")
    if layout == "lightly-children":
        others = ["shortcut" if part == "downsample" else part for part in others]
    return ".".join([LAYOUTS[layout].get(first, first), *others])


def _locate(weights: Mapping[str, Tensor], wanted: list[str], path: Path) -> tuple[str, str]:
    """Returns the layout and the prefix under which most of the wanted names are found."""
    names = {layout: {_name_in(layout, name) for name in wanted} for layout in LAYOUTS}
    longest = 1 + max(name.count(".") for known in names.values() for name in known)
    counts: Counter[tuple[str, str]] = Counter()
    for key in weights:
        # From the end of the name, so that the time does not grow with the square of its parts.
        for cut in range(1, longest + 1):
            name = ".".join(key.rsplit(".", cut)[-cut:])
            counts.update((layout, key.removesuffix(name)) for layout, known in names.items() if name in known)
            if len(name) == len(key):
                break
    most = max(counts.values(), default=0)
    if most < len(wanted) / 2:  # a few names can agree by chance
        raise InputError(
            f"{path} holds no network like this backbone: it has {_list(list(weights))}, the backbone "
            f"{_list(wanted)}. Choose teacher.backbone as the network in the file"
        )
    best = sorted((place for place, count in counts.items() if count == most), key=lambda place: _rank(place[1]))
    equal = sorted({prefix for _, prefix in best if _rank(prefix) == _rank(best[0][1])})
    if len(equal) > 1:
        raise InputError(
            f"{path} holds several networks that fit ({', '.join(equal)}): save the one to use in a file of its own"
        )
    return best[0]


def _rank(prefix: str) -> int:
    part = prefix.rstrip(".").split(".")[-1]
    return _PREFERRED.index(part) if part in _PREFERRED else len(_PREFERRED)


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
        listed = "; ".join(f"{len(names)} {kind}: {_list(names)}" for kind, names in problems.items() if names)
        raise InputError(
            f"{path} does not fit {type(backbone).__name__} ({listed}). Choose teacher.backbone and "
            "teacher.model-args as the network in the file"
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"


def _list(names: list[Any]) -> str:
    return ", ".join(str(name)[:_LONGEST_PART] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
