"""Features, pixel space, and hashes of any timm model."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssdd_hub.bounds import among
from ssdd_hub.errors import InputError, nearest, require
from ssdd_hub.models.stored_models import create_model
from ssdd_hub.pixel_space import PixelSpace

FEATURES = ("pre_logits", "cls", "mean")
STUDENT_FEATURES = (*FEATURES, "flat")
OTHER_WEIGHTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""The arguments of `timm.create_model` that load other weights, of which timm goes on to state its own licence."""

_PIXELS = 512 * 32**2  # of all images that a network sees at a time on the CPU


def in_parts(images: Tensor, side: int | None = None) -> tuple[Tensor, ...]:
    """Returns images `(n, C, H, W)` in parts that a network sees one after another, without activations to keep.

    On the CPU a part has as many pixels as 512 images of 32 px at most, which bounds the memory. `side` is the height
    and width that the network resizes them to, where it does.
    """
    pixels = max(images.shape[-2] * images.shape[-1], (side or 0) ** 2)
    return torch.split(images, max(1, _PIXELS // pixels if images.device.type == "cpu" else len(images)))


def pre_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the input of a timm model's classifier, the features of students and by default of teachers.

    `(n, C, H, W)` in the model's pixel space become `(n, F)`; `F` is timm's `head_hidden_size`, which is not always
    `num_features`.
    """
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return features


def read_features(model: nn.Module, images: Tensor, kind: str = "pre_logits") -> Tensor:
    """Returns one feature vector per image, `(n, F)`, of a width that depends on the kind.

    Where a model normalises after pooling (`fc_norm`, as in ViTs that average), token and mean are normalised too.

    Args:
        model: A module with timm's `forward_features` and `forward_head`.
        images: `(n, C, H, W)`, in the model's pixel space.
        kind: One of `STUDENT_FEATURES`: `pre_logits`; `cls`, the class token; `mean`, over patch tokens (class and
            register tokens left out) or over the feature map; `flat`, all that the last layer before the head gives.

    Raises:
        InputError: The kind is not known, or the model has no such features.
    """
    return read_maps(model, model.forward_features(images), kind)  # type: ignore[operator]


def read_maps(model: nn.Module, maps: Any, kind: str) -> Tensor:
    """Returns the same, given what the model's `forward_features` made of the images."""
    require(among("features", kind, STUDENT_FEATURES))
    if kind == "pre_logits":
        features: Tensor = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return features
    if kind == "flat":
        if not isinstance(maps, Tensor):
            raise InputError(f"{type(model).__name__} gives no single map to flatten: use features pre_logits")
        return maps.flatten(1)
    features = _class_token(model, maps) if kind == "cls" else _mean(model, maps)
    norm = getattr(model, "fc_norm", None)
    return features if norm is None else norm(features)


def _class_token(model: nn.Module, maps: Any) -> Tensor:
    if not (_has_class_token(model) and isinstance(maps, Tensor) and maps.ndim == 3):
        raise InputError(f"{type(model).__name__} has no class token: use features pre_logits or mean")
    return maps[:, 0]


def _mean(model: nn.Module, maps: Any) -> Tensor:
    """Averages `(n, C, H, W)`, `(n, H, W, C)` or, without its prefix tokens, `(n, L, C)`."""
    if isinstance(maps, Tensor) and maps.ndim == 4:
        return maps.mean((1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else (2, 3))
    prefix = _count_prefix(model)
    if not isinstance(maps, Tensor) or maps.ndim != 3 or prefix is None or maps.shape[1] <= prefix:
        raise InputError(
            f"{type(model).__name__} gives no feature map or patch tokens to average: use features pre_logits"
        )
    return maps[:, prefix:].mean(1)


def _has_class_token(model: nn.Module) -> bool:
    return bool(getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None))


def _count_prefix(model: nn.Module) -> int | None:
    """Returns the number of tokens before those of the patches; None where it is unknown."""
    if hasattr(model, "num_prefix_tokens"):
        return int(model.num_prefix_tokens)  # type: ignore[arg-type]
    if _has_class_token(model):  # VOLO states no number
        return 1
    # CoaT has class tokens of other names.
    return None if any(name.startswith("cls_token") for name, _ in model.named_parameters()) else 0


@torch.no_grad()
def measure_width(model: nn.Module, in_chans: int, image_size: int, kind: str = "pre_logits") -> int:
    """Returns the width of a model's features, by a dry forward pass in eval mode; every part keeps its own mode.

    Raises:
        InputError: The model has no features of this kind.
    """
    modes = {module: module.training for module in model.modules()}
    images = next(model.parameters()).new_zeros(1, in_chans, image_size, image_size)
    try:
        return read_features(model.eval(), images, kind).shape[1]
    finally:
        for module, mode in modes.items():
            module.training = mode


def hash_weights(model: nn.Module, double: bool = False) -> str:
    """Returns the sha256 of names, types, shapes and values of all weights and buffers, as if in double on request."""
    return hash_tensors(model.state_dict(), double)


def hash_tensors(tensors: Mapping[str, Tensor], double: bool = False) -> str:
    """Returns the hash of `hash_weights` for what `state_dict()` gave."""
    digest = hashlib.sha256()
    for name, found in sorted(tensors.items()):
        tensor = found.double() if double and found.is_floating_point() else found
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_structure(model: nn.Module) -> str:
    """Returns the sha256 of what weights do not tell: each part's type and plain attributes, such as its stride."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        # Names with an underscore are PyTorch's own state, such as hooks.
        names = (key for key in vars(module) if not key.startswith("_") and key != "training")
        facts = {key: value for key in names if _is_plain(value := vars(module)[key])}
        # JSON makes a list of a tuple, as a saved model's configuration does.
        digest.update(f"{name} {type(module).__name__} {json.dumps(facts, sort_keys=True)}\n".encode())
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    """Whether JSON writes a value alike in every process."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def read_pixel_space(
    name: str,
    config: Mapping[str, Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: int | None,
) -> PixelSpace:
    """Returns the pixel space of a model: of mean and std per channel where given, else of timm's data config.

    That states three channels even of a model built for another number, `channels`, where this was given.

    Raises:
        InputError: Mean and std do not fit each other, or what is stated does not fit the channels.
    """
    if mean is not None or std is not None:
        return PixelSpace(tuple(mean or ()), tuple(std or ()))
    stated = PixelSpace(config["mean"], config["std"])
    if channels is None or stated.channels == channels:
        return stated
    if len({*stated.mean}) > 1 or len({*stated.std}) > 1:
        raise InputError(
            f"the teacher {name} has {channels} channel(s), and timm states mean and std of {stated.channels}: give "
            "teacher.mean and teacher.std"
        )
    return PixelSpace(stated.mean[:1] * channels, stated.std[:1] * channels)


def input_args(name: str, in_chans: int, image_size: int) -> dict[str, int]:
    """Returns the arguments of `timm.create_model` for images: the size too, where a model is built for one."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    fixed = config is not None and config.fixed_input_size
    return {"in_chans": in_chans, **({"img_size": image_size} if fixed else {})}


def create_backbone(
    name: str, *, pretrained: bool, input_size: int | None = None, what: str = "teacher backbone", **model_args: Any
) -> nn.Module:
    """Calls `stored_models.create_model` without a classifier, with one clear error for all that can go wrong.

    `input_size` is the height and width for a model that is built for one size, `what` the word for it in an error.

    Raises:
        InputError: timm does not know the name, an argument does not fit or is one of `OTHER_WEIGHTS`, the weights
            cannot be loaded, or what is stored under the name does not pass `stored_models`.
    """
    others = ", ".join(argument for argument in OTHER_WEIGHTS if argument in model_args)
    if others:
        raise InputError(
            f"{what} {name!r} must be built without {others}: pass a file of other weights as --teacher.checkpoint"
        )
    try:
        backbone = create_model(name, pretrained=pretrained, num_classes=0, args=model_args)
        stated = getattr(backbone, "pretrained_cfg", None) or {}
        if input_size and stated.get("fixed_input_size") and tuple(stated["input_size"][1:]) != (input_size,) * 2:
            # Only the built model tells that it has one size, wherever its weights are stored.
            args = {**model_args, "img_size": input_size}
            backbone = create_model(name, pretrained=pretrained, num_classes=0, args=args)
    except InputError:
        raise
    except Exception as error:  # timm, the Hub client and safetensors each raise their own kinds
        raise InputError(
            f"{what} {name!r} (pretrained={pretrained}, {model_args}) cannot be built: "
            f"{shorten_error(error)}. Use a name from timm.list_models(), local-dir:FOLDER with config.json and "
            f"model.safetensors, or hf-hub:OWNER/NAME{'' if ':' in name else nearest(name, timm.list_models())}"
        ) from error
    return backbone


def shorten_error(error: Exception) -> str:
    """Returns the first two lines of a message; timm's list every tensor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line[:200] for line in lines[:2]).rstrip(".:") or type(error).__name__
