"""Bases: images as linear combinations of shared basis images, started by PCA.

Sources: Deng and Russakovsky, "Remember the Past: Distilling Datasets into Addressable Memories for Neural Networks",
NeurIPS 2022, arXiv 2206.02916 (RTP), where bases that all images share, and how each is made of them, are learned; and
Yu et al., ICLR 2025, arXiv 2507.21455 (Boost), where they start as principal components.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ssdd_hub.bounds import Count, Weight
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import LearningRates, Parameterisation
from ssdd_hub.distill.parameterisations.levels import Levels, require_in_steps, round_to_steps
from ssdd_hub.errors import InputError, require

_MOST_VALUES = 2**26


@dataclass(frozen=True)
class BasesSettings(LearningRates):
    """Settings of `bases`.

    Attributes:
        bases: Principal components beside the mean; as many as images or pixels, where there are fewer of these.
        lr_bases: First learning rate of the bases, whose squares sum to 1; `lr_images` is that of the coefficients.
        step: Coefficients are rounded to its multiples, -128 to 127 of them, in the loop as they are when stored;
            gradients pass as if they were not. In units of the students' pixel space. 0 leaves them as they are.
        target_step: The same of targets.
    """

    bases: Count = 64
    lr_bases: Weight = 1e-4
    step: Weight = 0.0
    target_step: Weight = 0.0


class Bases(Parameterisation):
    """Coefficients `(M, 1 + K)`, images `(1 + K, C, H, W)` that all share, first the mean, and targets `(M, D)`."""

    name = "bases"
    citation = "Deng and Russakovsky, NeurIPS 2022, arXiv 2206.02916"
    Settings = BasesSettings
    shared_names: ClassVar[tuple[str, ...]] = ("bases",)
    settings: BasesSettings
    coefficients: Tensor
    bases: Tensor
    targets: Tensor

    @classmethod
    def start(cls, pairs: Pairs, settings: BasesSettings) -> Self:
        """Takes the principal components of the images: exact where no image lies outside them."""
        shape, count = pairs.images.shape[1:], min(settings.bases, len(pairs.images), pairs.images[0].numel())
        _check((1 + count, *shape))
        # In full precision on the CPU, so that machines differ in the last bits of the type alone.
        values = pairs.images.detach().to("cpu", torch.float64).flatten(1)
        mean = values.mean(0)
        parts = principal_directions(values - mean, count)
        length = mean.square().sum().sqrt()
        coefficients = torch.cat([length.expand(len(values), 1), (values - mean) @ parts.T], 1)
        require_in_steps(coefficients, settings.step, "step")
        require_in_steps(pairs.targets, settings.target_step, "target_step")
        bases = torch.cat([(mean / length if length else mean)[None], parts]).view(-1, *shape)
        return cls(
            settings, coefficients=coefficients.to(pairs.images), bases=bases.to(pairs.images), targets=pairs[1]
        )

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns the bases summed by each image's coefficients, with its target."""
        coefficients, targets = (part if rows is None else part[rows] for part in (self.coefficients, self.targets))
        images = round_to_steps(coefficients, self.settings.step) @ self.bases.flatten(1)
        return Pairs(images.view(-1, *self.bases.shape[1:]), round_to_steps(targets, self.settings.target_step))

    def __len__(self) -> int:
        """Returns `M`."""
        return len(self.targets)

    def groups(self) -> list[dict[str, Any]]:
        """Returns the coefficients, the targets and the bases with their first learning rates."""
        rates = (self.settings.lr_images, self.settings.lr_targets, self.settings.lr_bases)
        parts = (self.coefficients, self.targets, self.bases)
        return [{"params": [part], "lr": rate} for part, rate in zip(parts, rates, strict=True)]

    def decoding(self) -> dict[str, Any]:
        """Returns the steps."""
        return {"step": self.settings.step, "target_step": self.settings.target_step}

    def levels(self) -> dict[str, Levels]:
        """Returns the multiples of the steps of coefficients and targets."""
        return Levels.of_steps(coefficients=self.settings.step, targets=self.settings.target_step)

    @classmethod
    def shown_shape(cls, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the shape of a base."""
        own, (count,) = shapes["bases"], shapes["coefficients"]
        if own[0] != count:
            raise InputError(f"there must be one coefficient for each of the {own[0]} bases; got {count}")
        _check(own)
        return own[1:]


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
