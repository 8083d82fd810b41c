"""Quantised storage of a compact set, and its decoder back to the images and targets that networks train on.

What is stored are the columns of a parameterisation, such as small images, each rounded to few bytes a value. The set
*is* what they decode to: nothing is known of the values before the rounding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ssdd_hub.bounds import Settings, one_of
from ssdd_hub.distill.parameterisations.base import Parameterisation
from ssdd_hub.distill.parameterisations.dct import Dct
from ssdd_hub.distill.parameterisations.factor import Factor
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.distill.parameterisations.views import Views
from ssdd_hub.errors import InputError, require
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record_schema import COLUMNS, STORED_TYPES, Stated
from ssdd_hub.sets.preview import to_exact_picture, to_png
from ssdd_hub.text import first_line, show

_KINDS: dict[str, type[Parameterisation]] = {kind.name: kind for kind in (Pixels, Factor, Dct, Views)}
_COLUMNS = ("images", "coefficients", "targets", "view_targets")
"""The stored tensors that a decoder changes."""
_LARGEST_HALF = torch.finfo(torch.float16).max
_CODEC = ("zstd", 19)
_MOST_TRIED = 2**26  # values of an image that is decoded to see whether a record fits


@dataclass(frozen=True)
class StorageSettings(Settings, section="storage"):
    """How many bytes a stored value takes.

    Attributes:
        pixels: `float32`, or `uint8`: 256 levels in each channel, stored as the PNG pictures that viewers show.
        targets: `float32`, `float16`, or `int8`: 255 levels, the same in all dimensions.
    """

    pixels: Annotated[str, one_of(STORED_TYPES["images"])] = "float32"
    targets: Annotated[str, one_of(STORED_TYPES["targets"])] = "float32"


class Levels(NamedTuple):
    """Affine quantisation: a stored number stands for `number * scale + offset`, by channel of images or for all."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def of_pixels(cls, pixels: Tensor) -> "Levels":
        """Returns 256 levels of each channel of pixels `(M, C, H, W)`, which reach from 0 to 1 at least.

        So pictures look like what they show, and real images are stored as they are.
        """
        least, greatest = pixels.amin((0, 2, 3)).clamp_max(0), pixels.amax((0, 2, 3)).clamp_min(1)
        scale = (greatest - least).float() / 255
        return cls(tuple(scale.tolist()), tuple(least.float().tolist()))

    @classmethod
    def of_step(cls, step: float) -> "Levels":
        """Returns the multiples of a step."""
        return cls((float(np.float32(step)),), (0.0,))

    def encode(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the nearest numbers of a type."""
        scale, offset = self._shaped(values)
        limits = torch.iinfo(dtype)
        return ((values - offset) / scale).round().clamp(limits.min, limits.max).to(dtype)

    def decode(self, numbers: Tensor) -> Tensor:
        """Returns the values, float32, of which every machine computes the same bits."""
        scale, offset = self._shaped(numbers)
        return numbers.float() * scale + offset

    def _shaped(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) if len(self.scale) == 1 else (-1, 1, 1)
        scale, offset = (torch.tensor(part, device=tensor.device).view(shape) for part in self)
        return scale, offset


@dataclass(frozen=True)
class Decoder:
    """The decoder of a compact set: dequantises stored rows, and renders them by a parameterisation.

    Attributes:
        pixel_space: The space of the images; the levels of their pixels are those of values in `[0, 1]`.
        kind: The parameterisation.
        args: Its settings that decide what it renders.
        levels: Of each tensor that is stored as whole numbers.
    """

    pixel_space: PixelSpace
    kind: type[Parameterisation] = Pixels
    args: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, Levels] = field(default_factory=dict)

    def __call__(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of a set, or of some of its rows; those that only sets have pass unchanged.

        Views that are drawn from a seed are those of the first rows, whichever these are.
        """
        values = {name: self._values(name, tensor) for name, tensor in stored.items()}
        if self.kind is Pixels:
            return values
        columns = {name: values.pop(name) for name in [*values] if name in self.kind.stores}
        with torch.no_grad():
            return {**self.kind.from_columns(columns, self.args).as_set(), **values}

    def _values(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.levels:
            return tensor.float() if tensor.dtype == torch.float16 else tensor
        values = self.levels[name].decode(tensor)
        return self.pixel_space.normalise(values) if name == "images" else values

    def num_bytes(self) -> int:
        """Returns the bytes of its scales and offsets, as float32."""
        return 4 * sum(len(part) for levels in self.levels.values() for part in levels)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, read back by `of`."""
        parts = ((name, self.levels[name]) for name in _COLUMNS if name in self.levels)
        levels = {name: {"scale": [*each.scale], "offset": [*each.offset]} for name, each in parts}
        return {"parameterisation": {"name": self.kind.name, "args": dict(self.args)}, **levels}

    @classmethod
    def of(cls, metadata: Mapping[str, Any], stated: Mapping[str, Stated]) -> "Decoder":
        """Reads the `storage` of a record that keeps to the schema; the plain decoder where there is none.

        Raises:
            InputError: It does not fit the tensors, or the parameterisation is unknown or has other settings.
        """
        space, storage = PixelSpace.from_dict(metadata["pixel_space"]), metadata.get("storage") or {}
        whole = [name for name, entry in stated.items() if entry.dtype in ("uint8", "int8")]
        missing = [name for name in whole if storage.get(name) is None]
        require((not missing, f"storage: scale and offset of {', '.join(missing)} must be stated"))
        levels = {name: Levels(*(tuple(storage[name][part]) for part in Levels._fields)) for name in whole}
        channels = space.channels
        for name, each in levels.items():
            wanted = channels if name == "images" else 1
            fits = all(len(part) == wanted for part in each)
            require((fits, f"storage.{name} must state {wanted} scale(s) and offset(s)"))
        chosen = storage.get("parameterisation") or {"name": Pixels.name}
        kind, args = _KINDS.get(str(chosen["name"])), chosen.get("args") or {}
        if kind is None:
            raise InputError(f"storage.parameterisation must be one of {', '.join(_KINDS)}; got {show(chosen)}")
        decoder = cls(space, kind, args, levels)
        decoder.shown(stated)
        return decoder

    def shown(self, stated: Mapping[str, Stated]) -> dict[str, Stated]:
        """Returns the tensors as they are decoded; their sha256 are those of the stored ones.

        Raises:
            InputError: The parameterisation takes other settings, or stores other tensors.
        """
        shapes = {name: each.shape[1:] for name, each in stated.items() if name in self.kind.stores}
        try:
            made = self.kind.shown_shapes(shapes, self.args)
            if all(0 < math.prod(each) <= _MOST_TRIED for each in (*made.values(), *shapes.values())):
                # One row, to see whether it fits.
                row = {name: torch.zeros(1, *each) for name, each in shapes.items()}
                with torch.no_grad():
                    tensors = self.kind.from_columns(row, self.args).as_set()
                made = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
        except InputError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"storage.parameterisation {self.kind.name} with {show(self.args)} does not fit the stored "
                f"{' and '.join(name for name in shapes if name != 'targets')}: {first_line(error)}"
            ) from error
        twice = sorted((made.keys() & stated.keys()) - {*self.kind.stores})
        require((not twice, f"tensors: {' and '.join(twice)} of a set of {self.kind.name} are not stored, but made"))
        first = stated["images" if "images" in stated else "coefficients"]
        decoded = {name: replace(each, dtype=COLUMNS[name][1]) for name, each in stated.items() if name in COLUMNS}
        return decoded | {
            name: replace(stated.get(name, first), shape=(first.shape[0], *shape), dtype=COLUMNS[name][1])
            for name, shape in made.items()
        }


def shown_shapes(metadata: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of a set by its record, the images as networks see them."""
    stated = Stated.of(metadata)
    shown = Decoder.of(metadata, stated).shown(stated)
    return {name: each.shape for name, each in shown.items()}


def num_bytes(stored: Mapping[str, Tensor], decoder: Decoder | None = None) -> dict[str, int]:
    """Returns the bytes of the `images`, `targets` and `decoder` of a set as they are stored.

    Images of 256 levels count as their PNG files, other whole numbers as compressed as in the set's files; targets
    with those of views, and which views; the decoder as its numbers, of four bytes each. The target transform is left
    out: nobody needs it to pre-train.
    """
    sizes = {name: _bytes_of(name, tensor) for name, tensor in stored.items()}
    images = sizes.get("images", 0) + sizes.get("coefficients", 0)
    targets = sum(sizes.get(name, 0) for name in ("targets", "views", "view_targets"))
    return {"images": images, "targets": targets, "decoder": decoder.num_bytes() if decoder else 0}


def _bytes_of(name: str, tensor: Tensor) -> int:
    if name == "images" and tensor.dtype == torch.uint8:
        return sum(len(to_png(to_exact_picture(image))) for image in tensor)
    raw = tensor.contiguous().cpu().numpy().tobytes()
    return len(raw) if tensor.is_floating_point() else len(pa.Codec(*_CODEC).compress(raw, asbytes=True))


class Packed(NamedTuple):
    """The stored tensors of a compact set, and their decoder."""

    tensors: Mapping[str, Tensor]
    decoder: Decoder

    @property
    def is_compact(self) -> bool:
        """Whether anything is stored otherwise than it is used."""
        types = {tensor.dtype for name, tensor in self.tensors.items() if name in _COLUMNS}
        return self.decoder.kind is not Pixels or types != {torch.float32}

    def decode(self) -> dict[str, Any]:
        """Returns what the set consists of."""
        return self.decoder(self.tensors)


def pack(
    parameterisation: Parameterisation,
    pixel_space: PixelSpace,
    settings: StorageSettings,
    view_targets: Tensor | None = None,
    target_step: float = 0.0,
) -> Packed:
    """Returns the stored form of a set, rounded to the types of the settings.

    What parameterisations of other packages learn is stored as the images that they render.

    Args:
        parameterisation: The set.
        pixel_space: The space of its images.
        settings: The types.
        view_targets: Targets `(M, K, D)` of fixed views; stored like the others.
        target_step: Between the levels of `int8` targets, at least.

    Raises:
        InputError: Values are not finite, or too large for float16.
    """
    learned = parameterisation.stored()
    steps = learned.steps()
    kind, columns, args = type(learned), learned.columns(), learned.decoding()
    if not _is_known(learned) or (kind is Factor and args["factor"] == 1):
        with torch.no_grad():
            kind, columns, args = Pixels, learned.as_set(), {}
    if view_targets is not None:
        columns["view_targets"] = view_targets
    stored, levels = dict[str, Tensor](), dict[str, Levels]()
    for name, tensor in columns.items():
        if not tensor.is_floating_point():
            stored[name] = tensor.cpu()
            continue
        values = tensor.detach().float().cpu()
        if not values.isfinite().all():
            advice = "the distillation diverged: lower its learning rates"
            raise InputError(f"the {name} hold NaN or infinite values, {advice}")
        if steps.get(name):
            levels[name], dtype = Levels.of_step(steps[name]), torch.int8
        elif name == "coefficients":
            dtype = torch.float32
        else:
            dtype = getattr(torch, settings.pixels if name == "images" else settings.targets)
        if name == "images" and dtype == torch.uint8:
            values = pixel_space.denormalise(values)
            levels[name] = Levels.of_pixels(values)
        elif dtype == torch.int8 and name not in levels:
            levels[name] = Levels.of_step(max(target_step, values.abs().max().item() / 127) or 1.0)
        elif dtype == torch.float16 and values.abs().max() > _LARGEST_HALF:
            most = values.abs().max()
            raise InputError(f"float16 holds values up to {_LARGEST_HALF:g}, and the {name} have {most:g}")
        stored[name] = levels[name].encode(values, dtype) if name in levels else values.to(dtype)
    return Packed(stored, Decoder(pixel_space, kind, args, levels))


def _is_known(parameterisation: Parameterisation) -> bool:
    """Whether decoders know a parameterisation, and the one that it is of, if any."""
    inner = getattr(parameterisation, "of", None)
    known = _KINDS.get(parameterisation.name) is type(parameterisation)
    return known and (inner is None or _is_known(inner))
