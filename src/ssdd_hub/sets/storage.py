"""How a compact set is stored, and the way back to the images and targets that networks are trained on.

What is stored are the columns of a parameterisation, such as small images, each rounded to few bytes a value. The set
*is* what they decode to: nothing is known of the values before the rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ssdd_hub.bounds import Settings, one_of
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import Parameterisation
from ssdd_hub.distill.parameterisations.factor import Factor
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.errors import InputError, require
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record_schema import COLUMNS, STORED_TYPES, Stated
from ssdd_hub.sets.preview import to_exact_picture, to_png
from ssdd_hub.text import show

_KINDS: dict[str, type[Parameterisation]] = {kind.name: kind for kind in (Pixels, Factor)}
_AXIS = {"images": 1, "targets": 1, "view_targets": 2}
"""The dimension along which each value of a tensor has a scale of its own."""
_LARGEST_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class StorageSettings(Settings, section="storage"):
    """How many bytes a stored value takes.

    Attributes:
        pixels: `float32`, or `uint8`: 256 levels in each channel, stored as the PNG pictures that viewers show.
        targets: `float32`, `float16`, or `int8`: 256 levels in each dimension.
    """

    pixels: Annotated[str, one_of(STORED_TYPES["images"])] = "float32"
    targets: Annotated[str, one_of(STORED_TYPES["targets"])] = "float32"


class Levels(NamedTuple):
    """The values of stored whole numbers, `number * scale + offset`, with one scale for each channel or dimension."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def between(cls, least: Tensor, greatest: Tensor, dtype: torch.dtype) -> "Levels":
        """Returns the levels that reach from least to greatest values `(n,)`."""
        first = torch.iinfo(dtype).min
        span = greatest - least
        # A channel or dimension of one value has any scale.
        scale = torch.where(span > 0, span, torch.ones_like(span)).float() / 255
        return cls(tuple(scale.tolist()), tuple((least.float() - first * scale).tolist()))

    def encode(self, values: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
        """Returns the nearest numbers of a type."""
        scale, offset = self._along(values, axis)
        limits = torch.iinfo(dtype)
        return ((values - offset) / scale).round().clamp(limits.min, limits.max).to(dtype)

    def decode(self, numbers: Tensor, axis: int) -> Tensor:
        """Returns the values, float32, of which every machine computes the same bits."""
        scale, offset = self._along(numbers, axis)
        return numbers.float() * scale + offset

    def _along(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        shape = [-1 if dim == axis else 1 for dim in range(tensor.ndim)]
        scale, offset = (torch.tensor(part, device=tensor.device).view(shape) for part in self)
        return scale, offset


@dataclass(frozen=True)
class Decoder:
    """What turns stored rows into images and targets: levels to values, then a parameterisation.

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
        """Returns the tensors of a set, or of some of its rows; those that only sets have pass unchanged."""
        values = {name: self._values(name, tensor) for name, tensor in stored.items()}
        if self.kind is Pixels:
            return values
        columns = {name: values.pop(name) for name in ("images", "targets")}
        with torch.no_grad():
            pairs: Pairs = self.kind.from_columns(columns, self.kind.Settings(**self.args))()
        return {**pairs.detached()._asdict(), **values}

    def _values(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.levels:
            return tensor.float() if tensor.dtype == torch.float16 else tensor
        values = self.levels[name].decode(tensor, _AXIS[name])
        return self.pixel_space.normalise(values) if name == "images" else values

    def num_bytes(self) -> int:
        """Returns the bytes of its scales and offsets, as float32."""
        return 4 * sum(len(part) for levels in self.levels.values() for part in levels)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, read back by `of`."""
        levels = {name: {"scale": [*each.scale], "offset": [*each.offset]} for name, each in self.levels.items()}
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
        for name, each in levels.items():
            size = stated[name].shape[_AXIS[name]]
            fits = all(len(part) == size for part in each)
            require((fits, f"storage.{name} must state {size} scales and offsets, as the stored tensor has values"))
        chosen = storage.get("parameterisation") or {"name": Pixels.name}
        kind, args = _KINDS.get(str(chosen["name"])), chosen.get("args") or {}
        if kind is None or set(args) != set(kind.decodes_by):
            known = "; ".join(f"{name}, args {list(each.decodes_by)}" for name, each in _KINDS.items())
            raise InputError(f"storage.parameterisation must be one of {known}; got {show(chosen)}")
        kind.Settings(**args)  # checks the values
        return cls(space, kind, args, levels)

    def shown(self, stated: Mapping[str, Stated]) -> dict[str, Stated]:
        """Returns the tensors as they are decoded; their sha256 are those of the stored ones."""
        decoded = {name: replace(each, dtype=COLUMNS[name][1]) for name, each in stated.items()}
        decoded["images"] = replace(decoded["images"], shape=self.kind.shown_shape(stated["images"].shape, self.args))
        return decoded


def shown_shapes(metadata: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of a set by its record, the images as networks see them."""
    stated = Stated.of(metadata)
    shown = Decoder.of(metadata, stated).shown(stated)
    return {name: each.shape for name, each in shown.items()}


def num_bytes(stored: Mapping[str, Tensor], decoder: Decoder | None = None) -> dict[str, int]:
    """Returns the bytes of the `images`, `targets` and `decoder` of a set as they are stored.

    Images of 256 levels count as their PNG files; targets with those of views, and which views; the decoder as its
    numbers, of four bytes each. The target transform is left out: nobody needs it to pre-train.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in stored.items()}
    if stored["images"].dtype == torch.uint8:
        sizes["images"] = sum(len(to_png(to_exact_picture(image))) for image in stored["images"])
    targets = sum(sizes.get(name, 0) for name in ("targets", "views", "view_targets"))
    return {"images": sizes["images"], "targets": targets, "decoder": decoder.num_bytes() if decoder else 0}


class Packed(NamedTuple):
    """The stored tensors of a compact set, and their decoder."""

    tensors: Mapping[str, Tensor]
    decoder: Decoder

    @property
    def is_compact(self) -> bool:
        """Whether anything is stored otherwise than it is used."""
        types = {self.tensors[name].dtype for name in ("images", "targets")}
        return self.decoder.kind is not Pixels or types != {torch.float32}

    def decode(self) -> dict[str, Any]:
        """Returns what the set consists of."""
        return self.decoder(self.tensors)


def pack(
    parameterisation: Parameterisation,
    pixel_space: PixelSpace,
    settings: StorageSettings,
    view_targets: Tensor | None = None,
) -> Packed:
    """Returns the stored form of a set, rounded to the types of the settings.

    What parameterisations of other packages learn is stored as the images that they render.

    Args:
        parameterisation: The set.
        pixel_space: The space of its images.
        settings: The types.
        view_targets: Targets `(M, K, D)` of fixed views; stored like the others.

    Raises:
        InputError: Values are not finite, or too large for float16.
    """
    kind, columns = type(parameterisation), parameterisation.columns()
    args = {name: getattr(parameterisation.settings, name) for name in kind.decodes_by}
    if _KINDS.get(kind.name) is not kind or (kind is Factor and args["factor"] == 1):
        with torch.no_grad():
            kind, columns, args = Pixels, parameterisation().detached()._asdict(), {}
    if view_targets is not None:
        columns["view_targets"] = view_targets
    stored, levels = dict[str, Tensor](), dict[str, Levels]()
    for name, tensor in columns.items():
        values = tensor.detach().float().cpu()
        chosen = settings.pixels if name == "images" else settings.targets
        if not values.isfinite().all():
            raise InputError(
                f"the {name} hold NaN or infinite values, the distillation diverged: lower its learning rates"
            )
        stored[name], found = _round(name, values, getattr(torch, chosen), pixel_space)
        levels |= {} if found is None else {name: found}
    return Packed(stored, Decoder(pixel_space, kind, args, levels))


def _round(name: str, values: Tensor, dtype: torch.dtype, space: PixelSpace) -> tuple[Tensor, Levels | None]:
    if dtype == torch.float16 and values.abs().max() > _LARGEST_HALF:
        raise InputError(f"float16 holds values up to {_LARGEST_HALF:g}, and the {name} have {values.abs().max():g}")
    if dtype.is_floating_point:
        return values.to(dtype), None
    values = space.denormalise(values) if name == "images" else values
    others = [dim for dim in range(values.ndim) if dim != _AXIS[name]]
    least, greatest = values.amin(others), values.amax(others)
    if name == "images":
        # So that pictures look like what they show, and real images are stored as they are.
        least, greatest = least.clamp_max(0), greatest.clamp_min(1)
    levels = Levels.between(least, greatest, dtype)
    return levels.encode(values, _AXIS[name], dtype), levels
