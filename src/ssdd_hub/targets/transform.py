"""The affine map of a teacher's features to targets, and back."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssdd_hub.bounds import among
from ssdd_hub.errors import Check, InputError, require
from ssdd_hub.files import atomic_path
from ssdd_hub.plain_files import require_modest_weights
from ssdd_hub.targets.bank import FeatureBank

if TYPE_CHECKING:
    from ssdd_hub.targets.labels import OneHot

PROJECTIONS = ("pca", "pca-standardise", "whiten")
TRANSFORMS = ("none", "centre", "standardise", "standardise-each", *PROJECTIONS)

# Least variance, relative to the largest, of a direction that is whitened: below it is only the rounding of what
# computed the features, to which that of their type is added.
LEAST_VARIANCE = 1e-10

# Relative error of sums in float64.
_ROUNDING_OF_SUMS = 1e-14

_MOST_DIMENSIONS = 2**14  # of features and targets
_LARGEST = 1e30  # which float32 holds, with room for products
_PROBES = 8
# Features read at a time; a constant, so that the sums are the same for every layout of shards.
_PART = 4096


@dataclass(frozen=True, eq=False)
class TargetTransform:
    """An affine map of teacher features to targets, `components (features - mean) / scale`, in float64.

    The rows of `components` are orthonormal: the principal directions, the greatest variance first. None for the kinds
    of `TRANSFORMS` that do not project, which have `D' = D`.
    """

    kind: str
    mean: Tensor  # (D,)
    scale: Tensor  # (D',), above 0
    components: Tensor | None = None  # (D', D)
    explained_variance: float = 1.0  # part of the features' variance that the targets keep, in [0, 1]

    @property
    def width(self) -> int:
        """Width `D'` of the targets."""
        return len(self.scale)

    @classmethod
    def fit(cls, kind: str, features: "FeatureBank | OneHot | Tensor", dim: int | None = None) -> "TargetTransform":
        """Measures the transform of features `(n, D)` in one pass, in float64; variances are divided by `n`.

        `dim` is `D'` for the kinds that project; None for all `D`, or for whitening all that have variance.
        """
        require(among("targets.transform", kind, TRANSFORMS))
        if not len(features):
            raise InputError("there are no features to measure a transform of: it takes one image at least")
        width, dtype = features[:1].shape[1], features[:1].dtype
        zeros, ones = torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
        if kind == "none":
            return cls(kind, zeros, ones)
        mean, covariance = _mean_and_covariance(features, full=kind in PROJECTIONS)
        if kind in PROJECTIONS:
            # A bank knows its rounding error; the type of a tensor bounds it.
            stated = features.index.rounding_error if isinstance(features, FeatureBank) else 0.0
            rounding = stated or torch.finfo(dtype).eps / 2
            return cls._project(kind, mean, covariance, dim, rounding)
        scale = ones
        if kind == "standardise":
            scale = ones * covariance.mean().sqrt()
        elif kind == "standardise-each":
            scale = covariance.sqrt()
        # A constant dimension has no scale of its own.
        return cls(kind, mean, torch.where(scale > 1e-12, scale, ones))

    @classmethod
    def _project(
        cls, kind: str, mean: Tensor, covariance: Tensor, dim: int | None, rounding: float
    ) -> "TargetTransform":
        variances, directions = torch.linalg.eigh(covariance)
        variances, components = variances.flip(0).clamp_min(0), directions.T.flip(0)
        # An eigenvector's sign is arbitrary: its largest entry becomes positive.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * torch.where(largest < 0, -1.0, 1.0)
        # By Weyl's inequality, features of rank r have at most r directions of more variance than all of rounding.
        noise = max(rounding, _ROUNDING_OF_SUMS) ** 2 * (variances.sum() + mean.square().sum())
        rank = int((variances > torch.maximum(LEAST_VARIANCE * variances[0], noise)).sum())
        wanted = (rank if kind == "whiten" else len(mean)) if dim is None else dim
        require(*_dim_checks(kind, dim, rank, len(mean)))
        kept, total = variances[:wanted], variances.sum()
        explained = min((kept.sum() / total).item(), 1.0) if total > 0 else 1.0
        scale = kept.sqrt() if kind == "whiten" else torch.ones_like(kept)
        if kind == "pca-standardise" and kept.sum() > 0:
            scale = scale * kept.mean().sqrt()
        return cls(kind, mean, scale, components[:wanted].contiguous(), explained)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "TargetTransform":
        """Returns the same map with its numbers on a device and in a type, where calls then need not convert them."""
        moved: dict[str, Any] = {name: tensor.to(device, dtype) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"mean": self.mean, "scale": self.scale}
        return tensors if self.components is None else {**tensors, "components": self.components}

    def __call__(self, features: Tensor) -> Tensor:
        """Maps teacher features `(..., D)` to targets `(..., D')` of the same type."""
        centred = features - self.mean.to(features)
        if self.components is not None:
            centred = centred @ self.components.to(features).T
        return centred / self.scale.to(features)

    def inverse(self, targets: Tensor) -> Tensor:
        """Maps targets `(..., D')`, or a student's output, back to features `(..., D)`.

        Where `D' < D`, these are the features nearest to the mean among all that have these targets.
        """
        centred = targets * self.scale.to(targets)
        if self.components is not None:
            centred = centred @ self.components.to(targets)
        return centred + self.mean.to(targets)

    def describe(self) -> dict[str, Any]:
        """Returns the JSON form; a projection's matrix is only in the file of `save`."""
        if self.kind == "none":
            return {"kind": self.kind}
        if self.components is not None:
            return {"kind": self.kind, "dim": self.width, "explained_variance": self.explained_variance}
        return {"kind": self.kind, "mean": self.mean.tolist(), "scale": self.scale.tolist()}

    def save(self, path: Path) -> str:
        """Writes all numbers to one safetensors file, the same bytes for the same map, and returns its sha256."""
        tensors = {name: tensor.to("cpu", torch.float64).contiguous() for name, tensor in self._tensors().items()}
        facts = json.dumps({"kind": self.kind, "explained_variance": self.explained_variance}, sort_keys=True)
        with atomic_path(path) as temporary:
            # A second entry of the metadata would come in any order.
            save_file(tensors, temporary, metadata={"target_transform": facts})
        return hashlib.sha256(path.read_bytes()).hexdigest()

    @classmethod
    def load(cls, path: Path, sha256: str | None = None, width: int = _MOST_DIMENSIONS) -> "TargetTransform":
        """Reads a file of `save` for targets of a width at most, and compares its sha256 if one is stated."""
        try:
            most = 8 * _MOST_DIMENSIONS * (width + 2) + 2**16
            if path.stat().st_size > most:
                raise ValueError(f"it has more than {most} bytes")
            require_modest_weights(path)
            if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise ValueError("its sha256 differs from the one stated")
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["target_transform"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            mean, scale, components = tensors["mean"], tensors["scale"], tensors.get("components")
            loaded = cls(facts["kind"], mean, scale, components, facts["explained_variance"])
            problem = next((problem for holds, problem in loaded._checks() if not holds), None)
            if problem:
                raise ValueError(problem)
            return loaded
        except (SafetensorError, OSError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not a whole target transform ({error}): fetch or make the set again"
            ) from error

    def _checks(self) -> Iterator[Check]:
        """Yields what a result of `fit` satisfies; each check relies on those before it."""
        kind, explained, mean, scale = self.kind, self.explained_variance, self.mean, self.scale
        yield kind in TRANSFORMS, f"its kind is {kind!r}, not one of {', '.join(TRANSFORMS)}"
        is_share = type(explained) in (int, float) and 0 <= explained <= 1
        yield is_share, f"its explained variance is {explained!r}, not a number in [0, 1]"
        for name, tensor in self._tensors().items():
            finite = tensor.dtype == torch.float64 and bool((tensor.abs() <= _LARGEST).all())
            yield finite, f"its {name} is not of finite numbers in float64, at most {_LARGEST:g}"
        fits = mean.ndim == scale.ndim == 1 and 0 < len(scale) <= len(mean)
        mismatch = f"its mean {tuple(mean.shape)} and scale {tuple(scale.shape)} do not fit"
        yield fits, mismatch
        yield bool((scale >= 1 / _LARGEST).all()), f"its scale is not above 0, at least {1 / _LARGEST:g}"
        unscaled = kind not in ("none", "centre", "pca") or bool((scale == 1).all())
        uncentred = kind != "none" or not mean.any()
        yield unscaled and uncentred, f"its numbers are not those of the kind {kind}"
        yield (self.components is not None) == (kind in PROJECTIONS), f"its components do not fit its kind {kind}"
        if self.components is None:
            yield len(scale) == len(mean), mismatch
            return
        shape = tuple(self.components.shape)
        yield shape == (len(scale), len(mean)), f"its components {shape}, mean and scale do not fit"
        # By some fixed vectors, since all products would take minutes.
        probes = torch.randn(len(scale), _PROBES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        error = (self.components @ (self.components.T @ probes) - probes).abs().max()
        yield bool(error <= 1e-4), "its components are not orthonormal"


def _dim_checks(kind: str, dim: int | None, rank: int, width: int) -> Iterator[Check]:
    if dim is not None:
        yield dim >= 1, f"targets.dim must be at least 1, got {dim}"
        yield dim <= width, f"targets.dim {dim} exceeds the {width} dimensions of the features: lower it"
    if kind == "whiten" and not rank:
        yield (
            False,
            "whitening divides by the std of the features, which are the same for all images: use more images, "
            "another teacher, or another --targets.transform",
        )
    elif kind == "whiten" and dim is not None:
        yield (
            dim <= min(rank, width),
            f"whitening to {dim} dimensions divides by their std, and only {rank} of the features' {width} directions "
            "have variance beyond rounding: lower --targets.dim, use more images, or --targets.transform pca",
        )


def _mean_and_covariance(features: "FeatureBank | OneHot | Tensor", full: bool) -> tuple[Tensor, Tensor]:
    """Returns the mean `(D,)` and the covariance `(D, D)`, or only its diagonal `(D,)`.

    The parts are merged by the pairwise update of Chan, Golub and LeVeque (1979), which loses no digits where the mean
    is much larger than the std.
    """
    count, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
    for start in range(0, len(features), _PART):
        part = features[start : start + _PART].to("cpu", torch.float64)
        part_mean = part.mean(0)
        centred = part - part_mean
        part_scatter = centred.T @ centred if full else centred.square().sum(0)
        if not count:
            count, mean, scatter = len(part), part_mean, part_scatter
            continue
        total = count + len(part)
        shift, weight = part_mean - mean, count * len(part) / total
        scatter = scatter + part_scatter + weight * (torch.outer(shift, shift) if full else shift.square())
        count, mean = total, mean + shift * (len(part) / total)
    return mean, scatter / count
