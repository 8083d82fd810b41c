"""Quantised: a wrapper that rounds the values of another parameterisation to few bits, in the loop as when stored.

Sources: rounding in the loop with gradients that pass as if it were not, QuADD (CVPR 2026); its range as parameters,
Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv 1902.08153 (LSQ), equation 3, and with an offset
Bhalgat et al., arXiv 2004.09576 (LSQ+). LSQ's factor on the gradient of the scale is left out: AdamW divides it out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import Self

from ssdd_hub.bounds import Weight, at_least, at_most, either
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import GIVEN, LearningRates, Parameterisation, Real
from ssdd_hub.distill.parameterisations.levels import Levels
from ssdd_hub.distill.parameterisations.plain import PLAIN
from ssdd_hub.errors import Check, InputError, require

_LEAST_SCALE = 1e-6
_TRIED = 25  # ranges, from the whole to a quarter of it


@dataclass(frozen=True)
class QuantisedSettings(LearningRates):
    """Settings of `quantised`.

    Attributes:
        of: The parameterisation whose values are rounded.
        of_args: Its settings.
        bits: Of a value: images, coefficients and bases have `2 ** bits` levels. In the loop values outside the range
            of their levels are clipped, and get no gradient.
        target_bits: The same of targets, or their coefficients and bases; 0 leaves them as they are.
        range: `learned`: scale and offset of the levels are parameters. `fixed`: they stay as they start, in the range
            that leaves the least squared error of the first values.
        per: `channel`: each channel of images has a range. `set`: one for all.
        lr_range: First learning rate of scales and offsets.
        real: The recipe's.
    """

    arguments_of: ClassVar[dict[str, str]] = {"of_args": "of"}

    of: str = "factor"
    of_args: dict[str, Any] = field(default_factory=dict)
    bits: Annotated[int, at_least(2), at_most(8)] = 4
    target_bits: Annotated[int, at_least(0), at_most(8)] = 0
    range: Annotated[str, either("learned", "fixed")] = "learned"
    per: Annotated[str, either("channel", "set")] = "channel"
    lr_range: Weight = 1e-4
    real: Real | None = field(default=None, metadata=GIVEN)

    def conflicts(self) -> Iterable[Check]:
        """Returns the checks of what is rounded, and of its settings."""
        yield self.target_bits != 1, f"{self.option('target_bits')} must be 0 or at least 2, got 1"
        try:
            self.inner()
        except InputError as error:
            yield False, str(error)

    def bits_of(self, name: str) -> int:
        """Returns the bits of a value of a tensor, 0 where it is not rounded."""
        return self.target_bits if name in ("targets", "target_bases") else self.bits

    def inner(self) -> tuple[type[Parameterisation], Any]:
        """Returns the class that is wrapped, and its settings."""
        shared = {"lr_images": self.lr_images, "lr_targets": self.lr_targets, "real": self.real}
        return PLAIN.find(self.of), PLAIN.settings(self.of, self.of_args, shared)


class Quantised(Parameterisation):
    """Another parameterisation, and a scale and an offset of the levels of each of its tensors.

    Args:
        settings: Its settings.
        of: What is rounded.
        ranges: First scale and offset of each tensor by the name of its parameter.
    """

    name = "quantised"
    citation = "Esser et al., ICLR 2020, arXiv 1902.08153"
    Settings = QuantisedSettings
    settings: QuantisedSettings

    def __init__(
        self, settings: QuantisedSettings, of: Parameterisation, ranges: dict[str, tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__(settings)
        self.of, self.rounded = of, tuple(ranges)
        for name, parts in ranges.items():
            for kind, part in zip(("scale", "offset"), parts, strict=True):
                # Of plain strides and in memory of its own, as checkpoints need it.
                own = part.detach().clone(memory_format=torch.contiguous_format)
                if settings.range == "learned":
                    self.register_parameter(f"{name}_{kind}", nn.Parameter(own))
                else:
                    self.register_buffer(f"{name}_{kind}", own)

    @classmethod
    def start(cls, pairs: Pairs, settings: QuantisedSettings) -> Self:
        """Starts what is wrapped, with ranges that leave little error."""
        kind, inner = settings.inner()
        of, ranges = kind.start(pairs, inner), dict[str, tuple[Tensor, Tensor]]()
        for name, part in of.named_parameters(recurse=False):
            bits = settings.bits_of(name)
            if bits:
                rows = part.detach()
                rows = rows.movedim(1, 0).flatten(1) if _by_channel(name, settings) else rows.flatten()[None]
                found = torch.stack([best_range(row, 2**bits - 1) for row in rows])
                shape = (-1, 1, 1) if name == "images" else ()
                ranges[name] = found[:, 0].reshape(shape), found[:, 1].reshape(shape)
        twice = sorted(of.levels().keys() & ranges.keys())
        require((not twice, f"{', '.join(twice)} would be rounded twice: set the step of {of.name} to 0 in of_args"))
        return cls(settings, of, ranges)

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns what the rounded values render."""
        return cast(Pairs, functional_call(self.of, self._rounded(), (rows,)))

    def __len__(self) -> int:
        """Returns `M`."""
        return len(self.of)

    def groups(self) -> list[dict[str, Any]]:
        """Returns the parameters of what is wrapped, and the ranges where they are learned."""
        own = [part for name, part in self.named_parameters() if not name.startswith("of.")]
        return [*self.of.groups(), *([{"params": own, "lr": self.settings.lr_range}] if own else [])]

    def penalty(self, rows: Tensor | None = None, moves_targets: bool = True) -> Tensor | None:
        """Returns that of what is wrapped."""
        return self.of.penalty(rows, moves_targets)

    def grow(self, step: int) -> bool:
        """Grows what is wrapped."""
        return self.of.grow(step)

    def stored(self) -> Parameterisation:
        """Returns what is wrapped, of the rounded values."""
        values = {name: part.detach() for name, part in self._rounded().items()}
        tensors = {**self.of.columns(), **self.of.shared(), **values}
        return type(self.of).from_columns(tensors, self.of.decoding())

    def levels(self) -> dict[str, Levels]:
        """Returns the levels of the rounded tensors; those of images are spread over 256, so that they can be seen."""
        found = self.of.levels()
        for name in self.rounded:
            scale, offset = (part.detach().double().flatten() for part in self._range(name))
            if name == "images":
                channels = self.of.get_parameter(name).shape[1]
                scale, offset = scale.expand(channels) / _spread(self._most(name)), offset.expand(channels)
            else:
                # From the lowest of the whole numbers of these bits with a sign.
                offset = offset + scale * ((self._most(name) + 1) // 2)
            found[name] = Levels(*(tuple(part.float().tolist()) for part in (scale, offset)))
        return found

    def _rounded(self) -> dict[str, Tensor]:
        return {
            name: round_to_levels(self.of.get_parameter(name), *self._range(name), self._most(name))
            for name in self.rounded
        }

    def _range(self, name: str) -> tuple[Tensor, Tensor]:
        scale, offset = (getattr(self, f"{name}_{kind}") for kind in ("scale", "offset"))
        return scale.clamp_min(_LEAST_SCALE), offset

    def _most(self, name: str) -> int:
        return (1 << self.settings.bits_of(name)) - 1


def round_to_levels(values: Tensor, scale: Tensor, offset: Tensor, most: int) -> Tensor:
    """Returns the nearest of the values `number * scale + offset`, of whole numbers from 0 to `most`.

    The rounding of numbers passes gradients as if it were not: that in a value is 1 inside the range and 0 outside, in
    the scale the number less what was rounded, outside the number, and in the offset 0 inside and 1 outside.
    """
    numbers = ((values - offset) / scale).clamp(0, most)
    return (numbers + (numbers.round() - numbers).detach()) * scale + offset


def best_range(values: Tensor, most: int) -> Tensor:
    """Returns the scale and offset, `(2,)`, of some ranges around the mean that leave the least squared error."""
    mean, found, least = values.mean(), torch.zeros(2).to(values), torch.inf
    for share in torch.linspace(1, 0.25, _TRIED).tolist():
        low, high = (mean + (end - mean) * share for end in values.aminmax())
        scale = ((high - low) / most).clamp_min(_LEAST_SCALE)
        error = (round_to_levels(values, scale, low, most) - values).square().sum().item()
        if error < least:
            found, least = torch.stack([scale, low]), error
    return found


def _by_channel(name: str, settings: QuantisedSettings) -> bool:
    return name == "images" and settings.per == "channel"


def _spread(most: int) -> int:
    """Returns by how much the numbers of pictures are multiplied, so that the last is nearly 255."""
    return 255 // most
