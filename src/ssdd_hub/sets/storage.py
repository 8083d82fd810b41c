"""Quantised storage of a compact set, and its decoder back to the images and targets that networks train on.

What is stored are the columns of a parameterisation, such as small images, each rounded to few bytes a value. The set
*is* what they decode to: nothing is known of the values before the rounding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ssdd_hub.bounds import Settings, one_of
from ssdd_hub.distill.parameterisations.base import Parameterisation
from ssdd_hub.distill.parameterisations.bases import Bases
from ssdd_hub.distill.parameterisations.dct import Dct
from ssdd_hub.distill.parameterisations.factor import Factor
from ssdd_hub.distill.parameterisations.levels import Levels
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.distill.parameterisations.views import SHIFT, Views
from ssdd_hub.errors import InputError, require
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record_schema import COLUMNS, STORED_TYPES, Stated
from ssdd_hub.sets.preview import has_few_levels, to_exact_picture, to_png
from ssdd_hub.sets.shared import compressed, to_bytes
from ssdd_hub.text import first_line, show

_KINDS: dict[str, type[Parameterisation]] = {kind.name: kind for kind in (Pixels, Factor, Dct, Bases, Views)}
_COLUMNS = ("images", "coefficients", "targets", "view_targets", "bases", "target_bases")
"""The stored tensors that a decoder changes."""
_LARGEST_HALF = torch.finfo(torch.float16).max
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


@dataclass(frozen=True)
class Decoder:
    """The decoder of a compact set: dequantises stored rows, and renders them by a parameterisation.

    Attributes:
        pixel_space: The space of the images; the levels of their pixels are those of values in `[0, 1]`.
        kind: The parameterisation.
        args: Its settings that decide what it renders.
        levels: Of each tensor that is stored as whole numbers.
        shared: The stored tensors that are one for all rows; on the `meta` device, without values, where only a record
            was read.
    """

    pixel_space: PixelSpace
    kind: type[Parameterisation] = Pixels
    args: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, Levels] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of a set, or of some of its rows; those that only sets have pass unchanged.

        Views that are drawn from a seed are those of the first rows, whichever these are.
        """
        values = {name: self._values(name, tensor) for name, tensor in stored.items()}
        if self.kind is Pixels:
            return values
        columns = {name: values.pop(name) for name in [*values] if name in self.kind.stores}
        columns |= {name: self._values(name, tensor) for name, tensor in self.shared.items()}
        with torch.no_grad():
            return {**self.kind.from_columns(columns, self.args).as_set(), **values}

    def _values(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.levels:
            return tensor.float() if tensor.dtype == torch.float16 else tensor
        values = self.levels[name].decode(tensor)
        return self.pixel_space.normalise(values) if name == "images" else values

    def num_bytes(self) -> int:
        """Returns the bytes of what all rows share, as stored, and of scales and offsets, as float32."""
        shared = sum(_bytes_of(name, tensor) for name, tensor in self.shared.items())
        return shared + 4 * sum(len(part) for levels in self.levels.values() for part in levels)

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
        shared = Stated.of_shared(metadata)
        whole = [name for name, entry in {**stated, **shared}.items() if entry.dtype in ("uint8", "int8")]
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
        unloaded = {
            name: torch.empty(each.shape, dtype=getattr(torch, each.dtype), device="meta")
            for name, each in shared.items()
        }
        decoder = cls(space, kind, args, levels, unloaded)
        decoder.shown(stated)
        return decoder

    def shown(self, stated: Mapping[str, Stated]) -> dict[str, Stated]:
        """Returns the tensors as they are decoded; their sha256 are those of the stored ones.

        Raises:
            InputError: The parameterisation takes other settings, or stores other tensors.
        """
        shapes = {name: each.shape[1:] for name, each in stated.items() if name in self.kind.stores}
        shared = {name: tuple(each.shape) for name, each in self.shared.items()}
        try:
            names = self.kind.shared_of(self.args)
            wanted, got = (" and ".join(each) or "none" for each in (names, shared))
            problem = f"storage.shared of {self.kind.name} must state {wanted}; got {got}"
            require((shared.keys() == {*names}, problem))
            made = self.kind.shown_shapes({**shapes, **shared}, self.args)
            sizes = (*made.values(), *shapes.values(), *shared.values())
            if all(0 < math.prod(each) <= _MOST_TRIED for each in sizes):
                # One row, to see whether it fits.
                row = {name: torch.zeros(1, *each) for name, each in shapes.items()}
                row |= {name: torch.zeros(each) for name, each in shared.items()}
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

    Images of 256 levels count as their PNG files, those of fewer as these files packed at once, other whole numbers as
    compressed as in the set's files; targets with those of views, and which views; the decoder as its numbers, of four
    bytes each, and what all rows share. The target transform is left out: nobody needs it to pre-train.
    """
    sizes = {name: _bytes_of(name, tensor) for name, tensor in stored.items()}
    images = sizes.get("images", 0) + sizes.get("coefficients", 0)
    targets = sum(sizes.get(name, 0) for name in ("targets", "views", "view_targets"))
    return {"images": images, "targets": targets, "decoder": decoder.num_bytes() if decoder else 0}


def _bytes_of(name: str, tensor: Tensor) -> int:
    if name == "images" and tensor.dtype == torch.uint8:
        few = has_few_levels(tensor)
        files = [to_png(to_exact_picture(image), packed=not few) for image in tensor]
        return len(compressed(b"".join(files))) if few else sum(map(len, files))
    return tensor.numel() * tensor.element_size() if tensor.is_floating_point() else len(compressed(to_bytes(tensor)))


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
    learned, found = parameterisation.stored(), parameterisation.levels()
    kind, columns, shared, args = type(learned), learned.columns(), learned.shared(), learned.decoding()
    is_ours = _is_known(learned)
    if not is_ours or (kind is Factor and args["factor"] == 1):
        with torch.no_grad():
            kind, columns, shared, args = Pixels, learned.as_set(), {}, {}
    if not is_ours:
        found = {name: each for name, each in found.items() if name in ("targets", "view_targets")}
    if view_targets is not None:
        columns["view_targets"] = view_targets
    stored, levels = dict[str, Tensor](), dict[str, Levels]()
    for name, tensor in {**columns, **shared}.items():
        if not tensor.is_floating_point():
            stored[name] = tensor.cpu()
            continue
        values = tensor.detach().float().cpu()
        if not values.isfinite().all():
            advice = "the distillation diverged: lower its learning rates"
            raise InputError(f"the {name} hold NaN or infinite values, {advice}")
        if name == "images" and (name in found or settings.pixels == "uint8"):
            values, dtype = pixel_space.denormalise(values), torch.uint8
            levels[name] = found[name].in_pixels(pixel_space) if name in found else Levels.of_pixels(values)
        elif name in found:
            levels[name], dtype = found[name], torch.int8
        elif name in ("images", "coefficients"):
            dtype = torch.float32
        elif name in SHIFT:
            dtype = torch.float32 if settings.targets == "float32" else torch.float16
        elif name in shared and name != "target_bases":
            dtype = torch.float32 if settings.pixels == "float32" else torch.int8
        else:
            dtype = getattr(torch, settings.targets)
        if dtype == torch.int8 and name not in levels:
            levels[name] = Levels.of_step(max(target_step, values.abs().max().item() / 127) or 1.0)
        elif dtype == torch.float16 and values.abs().max() > _LARGEST_HALF:
            most = values.abs().max()
            raise InputError(
                f"float16 holds values up to {_LARGEST_HALF:g}, and the {name} have {most:g}: store targets as "
                "float32 (--storage.targets float32, with which a run goes on)"
            )
        stored[name] = levels[name].encode(values, dtype) if name in levels else values.to(dtype)
    shared = {name: stored.pop(name) for name in shared}
    return Packed(stored, Decoder(pixel_space, kind, args, levels, shared))


def _is_known(parameterisation: Parameterisation) -> bool:
    """Whether decoders know a parameterisation, and the one that it is of, if any."""
    inner = getattr(parameterisation, "of", None)
    known = _KINDS.get(parameterisation.name) is type(parameterisation)
    return known and (inner is None or _is_known(inner))
