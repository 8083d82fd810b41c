"""Bases: images as linear combinations of shared basis images, and targets of shared vectors, started by PCA.

Sources: Deng and Russakovsky, "Remember the Past: Distilling Datasets into Addressable Memories for Neural Networks",
NeurIPS 2022, arXiv 2206.02916 (RTP), where bases that all images share, and how each is made of them, are learned; and
Yu et al., ICLR 2025, arXiv 2507.21455 (Boost), where they start as principal components, and targets have bases too:
`target_bases`. Its components are those of the whole source, `components: source`, here of a sample; RTP's may be
of half the sides, `factor: 2`. No code of Boost was released, and the mean as one more base is our own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ssdd_hub.bounds import Count, Natural, Weight, at_least, at_most, one_of
from ssdd_hub.data.tiles import enlarge, shrink
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import GIVEN, LearningRates, Parameterisation, Real
from ssdd_hub.distill.parameterisations.levels import Levels, require_in_steps, round_to_steps
from ssdd_hub.errors import InputError, require

_MOST_VALUES = 2**26
_SAMPLE, _SAMPLED_VALUES = 4096, 2**25  # images that components are found of, and their values, at most


@dataclass(frozen=True)
class BasesSettings(LearningRates):
    """Settings of `bases`.

    Attributes:
        bases: Principal components beside the mean; as many as images or pixels, where there are fewer of these.
        target_bases: The same of targets, which are then sums of shared vectors; 0 leaves them as they are.
        components: Of what: `set`, of the first images and targets; `source`, of a sample of the real ones.
        factor: Sides of images by those of the bases, which are enlarged bilinearly.
        lr_bases: First learning rate of the bases, whose squares sum to 1; `lr_images` is that of the coefficients,
            `lr_targets` that of those of targets.
        step: Coefficients are rounded to its multiples, -128 to 127 of them, in the loop as they are when stored;
            gradients pass as if they were not. In units of the students' pixel space. 0 leaves them as they are.
        target_step: The same of targets, or of their coefficients.
        real: The recipe's.
    """

    bases: Count = 64
    target_bases: Natural = 0
    components: Annotated[str, one_of(("set", "source"))] = "set"
    factor: Annotated[int, at_least(1), at_most(64)] = 1
    lr_bases: Weight = 1e-4
    step: Weight = 0.0
    target_step: Weight = 0.0
    real: Real | None = field(default=None, metadata=GIVEN)


class Bases(Parameterisation):
    """Coefficients `(M, 1 + K)`, images `(1 + K, C, H, W)` that all share, first the mean, and targets `(M, D)`.

    With `target_bases`, `(1 + V, D)`, first the mean, targets are stored as coefficients `(M, 1 + V)`.
    """

    name = "bases"
    citation = "Deng and Russakovsky, NeurIPS 2022, arXiv 2206.02916"
    Settings = BasesSettings
    shared_names: ClassVar[tuple[str, ...]] = ("bases", "target_bases")
    settings: BasesSettings
    coefficients: Tensor
    bases: Tensor
    targets: Tensor
    target_bases: Tensor

    @classmethod
    def start(cls, pairs: Pairs, settings: BasesSettings) -> Self:
        """Takes the principal components: exact where no image, and no target, lies outside them."""
        factor, (height, width) = settings.factor, pairs.images.shape[-2:]
        fits = height % factor == 0 == width % factor
        require((fits, f"factor of bases must divide the {height} x {width} pixels of the images, got {factor}"))
        of = pairs
        if settings.components == "source":
            if settings.real is None:
                raise InputError("there are no real images to find components of: take components of the set")
            of = settings.real.draw(max(1, min(_SAMPLE, _SAMPLED_VALUES // pairs.images[0].numel())))
        images, values = (shrink(part.images, factor) for part in (pairs, of))
        count = min(settings.bases, len(values), values[0].numel())
        _check((1 + count, *images.shape[1:]))
        coefficients, bases = components(images, values, count)
        parts = {"coefficients": coefficients, "bases": bases, "targets": pairs.targets}
        if settings.target_bases:
            count = min(settings.target_bases, *of.targets.shape)
            parts["targets"], parts["target_bases"] = components(pairs.targets, of.targets, count)
        require_in_steps(coefficients, settings.step, "step")
        require_in_steps(parts["targets"], settings.target_step, "target_step")
        return cls(settings, **{name: part.to(pairs.images) for name, part in parts.items()})

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns the bases summed by each image's coefficients, with its target."""
        images, codes = self.coded(rows)
        return Pairs(images, self.decoded(codes))

    def coded(self, rows: Tensor | None = None) -> Pairs:
        """Returns the images, and the rounded targets or their coefficients."""
        coefficients, codes = (part if rows is None else part[rows] for part in (self.coefficients, self.targets))
        images = round_to_steps(coefficients, self.settings.step) @ self.bases.flatten(1)
        images = enlarge(images.view(-1, *self.bases.shape[1:]), self.settings.factor)
        return Pairs(images, round_to_steps(codes, self.settings.target_step))

    def decoded(self, codes: Tensor) -> Tensor:
        """Returns the bases of targets summed by coefficients, where there are any."""
        return codes @ self.target_bases if self.settings.target_bases else codes

    def encoded(self, targets: Tensor) -> Tensor:
        """Returns the coefficients of targets in the first bases, where there are any."""
        if not self.settings.target_bases:
            return targets
        first, bases = self.targets.detach()[:1, 0], self.target_bases.detach()
        codes = (targets - first * bases[0]) @ bases[1:].T
        return torch.cat([first.expand(*codes.shape[:-1], 1), codes], -1)

    def __len__(self) -> int:
        """Returns `M`."""
        return len(self.targets)

    def groups(self) -> list[dict[str, Any]]:
        """Returns the coefficients, the targets and the bases with their first learning rates."""
        rates = (self.settings.lr_images, self.settings.lr_targets)
        groups = [([self.coefficients], rates[0]), ([self.targets], rates[1])]
        groups += [([self.get_parameter(name)], self.settings.lr_bases) for name in self.shared()]
        return [{"params": parts, "lr": rate} for parts, rate in groups]

    def decoding(self) -> dict[str, Any]:
        """Returns the steps, and the factor and the bases of targets where there are any."""
        made = {"step": self.settings.step, "target_step": self.settings.target_step}
        made |= {"factor": self.settings.factor} if self.settings.factor > 1 else {}
        return {**made, **({"target_bases": len(self.target_bases) - 1} if self.settings.target_bases else {})}

    @classmethod
    def shared_of(cls, args: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the names of the bases."""
        return cls.shared_names if args.get("target_bases") else cls.shared_names[:1]

    def levels(self) -> dict[str, Levels]:
        """Returns the multiples of the steps of coefficients and targets."""
        return Levels.of_steps(coefficients=self.settings.step, targets=self.settings.target_step)

    @classmethod
    def shown_shape(cls, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the shape of a base, enlarged."""
        own, factor = shapes["bases"], BasesSettings(factor=args.get("factor", 1)).factor
        _one_each(own, shapes["coefficients"])
        return (own[1], own[2] * factor, own[3] * factor)

    @classmethod
    def shown_shapes(
        cls, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of images and targets."""
        shown = super().shown_shapes(shapes, args)
        if "target_bases" in shapes:
            _one_each(shapes["target_bases"], shapes["targets"])
            shown["targets"] = shapes["target_bases"][1:]
        return shown


def components(values: Tensor, of: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns coefficients of values, and the mean and `count` principal components of others, each of length 1.

    Both are float64, on the CPU.
    """
    # In full precision on the CPU, so that machines differ in the last bits of the type alone.
    own, others = (part.detach().to("cpu", torch.float64).flatten(1) for part in (values, of))
    mean = others.mean(0)
    parts = principal_directions(others - mean, count)
    length = mean.square().sum().sqrt()
    coefficients = torch.cat([length.expand(len(own), 1), (own - mean) @ parts.T], 1)
    return coefficients, torch.cat([(mean / length if length else mean)[None], parts]).view(-1, *values.shape[1:])


def _one_each(bases: tuple[int, ...], coefficients: tuple[int, ...]) -> None:
    (count,) = coefficients
    if bases[0] != count:
        raise InputError(f"there must be one coefficient for each of the {bases[0]} bases; got {count}")
    _check(bases)


def principal_directions(values: Tensor, count: int) -> Tensor:
    """Returns the first right singular vectors `(count, P)` of values `(M, P)`, float64, on the CPU; orthonormal.

    By the eigenvectors of the smaller matrix of products, of which only these are computed. Directions whose singular
    values are below 1e-8 of the largest are rounding, which float32 cannot tell from none.
    """
    # Imported here: sets are read without waiting for scipy.
    from scipy.linalg import eigh

    wide = values.shape[1] > len(values)
    products = values @ values.T if wide else values.T @ values
    size = len(products)
    found = torch.from_numpy(eigh(products.numpy(), subset_by_index=[size - count, size - 1])[1]).flip(1)
    # Rounding leaves the directions of small values neither of length 1 nor orthogonal.
    return torch.linalg.qr(values.T @ found).Q.T if wide else found.T


def _check(shape: tuple[int, ...]) -> None:
    """Refuses more bases than can be computed with."""
    size = math.prod(shape)
    advice = f"at most {_MOST_VALUES}; got {size}: use smaller images, or fewer bases"
    require((size <= _MOST_VALUES, f"bases computes with pixels times bases, {advice}"))
