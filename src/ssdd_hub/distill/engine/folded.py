"""Student features with batch norm folded into the convolutions; weights are fixed during the outer step.

One function serves all students of a pool and takes their weights as arguments, so it is compiled once.
"""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ssdd_hub.distill.engine.compiled import SharedForward, Weights, weights_of
from ssdd_hub.distill.engine.winograd import FrozenConvolution, is_supported, transform
from ssdd_hub.models.features import pre_logits


class FoldedFeatures(SharedForward):
    """The features `(n, F)` of all students of one architecture in eval mode; one of them is copied."""

    def __init__(self, student: nn.Module, compiled: bool = False, winograd: bool = False) -> None:
        self._folds = list(_foldable(student))
        model = copy.deepcopy(student).eval().requires_grad_(False)
        for convolution, norm in self._folds:
            layer = cast(nn.Conv2d, model.get_submodule(convolution))
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)
            model.set_submodule(norm, nn.Identity())
        self._transformed = [name for name, layer in model.named_modules() if winograd and is_supported(layer)]
        for name in self._transformed:
            # Every call brings its own filters, 8 times as large as weights: those of the copy have no values.
            model.set_submodule(name, FrozenConvolution(cast(nn.Conv2d, model.get_submodule(name))).to("meta"))
        self._names = weights_of(model).keys()
        super().__init__(FeatureReader(model), compiled)

    @torch.no_grad()
    def weights(self, student: nn.Module) -> Weights:
        """Returns the present weights of a student in the form that the call takes, without a graph."""
        own = weights_of(student)
        for convolution, norm in self._folds:
            own[f"{convolution}.weight"], own[f"{convolution}.bias"] = fold_batch_norm(
                cast(nn.Conv2d, student.get_submodule(convolution)), cast(nn.BatchNorm2d, student.get_submodule(norm))
            )
        # Folded first: the filters that are transformed contain the scale of the norm.
        for name in self._transformed:
            own[f"{name}.weight"], own[f"{name}.adjoint"] = transform(own[f"{name}.weight"])
        return {f"model.{name}": own[name].detach() for name in self._names}


class FeatureReader(nn.Module):
    """A network whose outputs are the features of another, which has timm's `forward_features` and `forward_head`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to features `(n, F)`."""
        return pre_logits(self.model, images)


def fold_batch_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of one convolution that equals a convolution and a norm in eval mode.

    `s (w * x + b - mean) + shift` with `s = weight / sqrt(var + eps)` is a convolution of weight `s w`.
    """
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    bias = (-mean if convolution.bias is None else convolution.bias - mean) * scale
    return convolution.weight * scale[:, None, None, None], bias + norm.bias if norm.affine else bias


def _foldable(student: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields the names of convolutions and of the batch norms that alone read them: neighbours in a sequence."""
    for name, module in student.named_modules():
        # Not of a subclass, whose forward may read the convolution a second time.
        if type(module) is nn.Sequential:
            prefix = f"{name}." if name else ""
            for (first, before), (second, after) in pairwise(module.named_children()):
                if type(before) is nn.Conv2d and type(after) is nn.BatchNorm2d and after.track_running_stats:
                    yield prefix + first, prefix + second
