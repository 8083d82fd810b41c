"""RFAD: kernel ridge regression on random features, those of several untrained networks.

Source: Loo et al., "Efficient Dataset Distillation using Random Feature Approximation", NeurIPS 2022, arXiv
2210.12067. The features of random networks approximate the kernel of infinitely wide ones (NNGP). With
`loss: squared_error` and `penalty: 1e-6` this is KIP with networks of finite width: Nguyen et al., "Dataset
Distillation with Infinitely Wide Convolutional Networks", NeurIPS 2021, arXiv 2107.13034.

The defaults are those of the released code, which also

* redraws the networks at every step (`redraw_every: 1`), although a variable of 10 steps is there;
* has networks twice as wide as usual and without norm: `student.model_args` of the recipe;
* draws 5,120 real images a step and solves in float64: `distiller.batch_size`, `distiller.kernel_precision`;
* keeps the first targets unless told to learn them: `lr_targets: 0` of the parameterisation;
* moves the set by AdaBelief at 1e-3, through a learned linear map of the pixels: neither is offered here, where AdamW
  moves a parameterisation;
* stops early on held-out real images, which is not offered.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from ssdd_hub.bounds import Count, Positive, Repeats, one_of
from ssdd_hub.distill.krr import squared_error
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.classes import CrossEntropy, require_classes
from ssdd_hub.distill.methods.kernel import KernelMethod, KernelSettings
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.models.features import pre_logits
from ssdd_hub.runs.machine import require_memory
from ssdd_hub.seeds import seeded

WEIGHT_VARIANCE, BIAS_STD = 2.0, 0.1  # of each layer: the weights' times the number of its inputs


@dataclass(frozen=True)
class RfadSettings(KernelSettings):
    """Settings of RFAD.

    Attributes:
        penalty: Regularisation relative to `trace(K_ss) / M`.
        loss: `squared_error`: half the mean squared error. `cross_entropy`: that of `exp(k)` times the prediction with
            a learned `k`, called Platt scaling; for class labels.
        networks: Networks whose features are put side by side.
        redraw_every: Outer steps after which others are drawn.
        weights: `gaussian`: of variance 2 / inputs, with biases of std 0.1, which keep the size of features from layer
            to layer. `student`: the network's own first weights.
        lr_scale: Adam's learning rate of `k`, which starts at 0.
    """

    penalty: Positive = 5e-3
    loss: Annotated[str, one_of(("squared_error", "cross_entropy"))] = "squared_error"
    networks: Repeats = 8
    redraw_every: Count = 1
    weights: Annotated[str, one_of(("gaussian", "student"))] = "gaussian"
    lr_scale: Positive = 1e-2


class Rfad(KernelMethod):
    """Predicts targets of real images from the set through random networks; the set is to predict them well."""

    name = "rfad"
    citation = "Loo et al., NeurIPS 2022, arXiv 2210.12067"
    Settings = RfadSettings
    has_own_networks = True
    settings: RfadSettings

    def __init__(self, settings: RfadSettings, problem: Problem) -> None:
        learned = CrossEntropy(1.0, learned=True) if settings.loss == "cross_entropy" else None
        super().__init__(settings, problem, learned or half_squared_error)
        self._scale, self._drawn = learned, (-1, nn.Module())
        if learned:
            require_classes(problem, "the cross-entropy of rfad", "--method.args '{loss: squared_error}'")
            self._optimizer = torch.optim.Adam(learned.parameters(), settings.lr_scale)

    def network(self, step: int) -> nn.Module:
        """Returns the networks of a step as one."""
        draw = step // self.settings.redraw_every
        if self._drawn[0] != draw:
            engine, count = self.problem.engine, self.settings.networks
            networks = nn.ModuleList()
            for number in range(count):
                with seeded(self.problem.network_seed, "random network", draw, number):
                    network = self.problem.build_student()
                    if self.settings.weights == "gaussian":
                        draw_gaussian(network)
                if number == 0:
                    size = sum(parameter.numel() * parameter.itemsize for parameter in network.parameters())
                    require_memory("--method.args networks", count, size, engine.device)
                networks.append(network)
            together = RandomFeatures(networks).to(engine.device, engine.dtype)
            self._drawn = draw, together.to(memory_format=torch.channels_last)
        return self._drawn[1]

    def after_step(self, pairs: Pairs, step: int) -> dict[str, Any]:
        """Takes a step of `k`; logs the `scale`, its exponential."""
        if self._scale is None:
            return {}
        with torch.no_grad():
            (gradient,) = self.found
            self._scale.log_scale.grad = reduce(gradient, "mean")
            self._optimizer.step()
            return {"scale": self._scale.log_scale.exp()}

    def state_dict(self) -> dict[str, Any]:
        """Returns `k` and its moments; networks are functions of the seed and the step."""
        if self._scale is None:
            return {}
        return {"scale": self._scale.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if self._scale is not None:
            self._scale.load_state_dict(state["scale"])
            self._optimizer.load_state_dict(state["optimizer"])


class RandomFeatures(nn.Module):
    """The features `(n, P·F)` of `P` networks side by side, scaled so that their kernel is that of one more layer.

    That is `2 / (P·F) · Σ φ φᵀ + 0.01`: the layer has weights of variance 2 over the number of inputs, and biases of
    std 0.1. Here the kernel is divided by 0.01, which changes no prediction, so that its constant is 1.
    """

    def __init__(self, networks: nn.ModuleList) -> None:
        super().__init__()
        self.networks = networks

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images `(n, C, H, W)` to the features."""
        features = torch.cat([pre_logits(network, images) for network in self.networks], 1)
        return features * math.sqrt(WEIGHT_VARIANCE / features.shape[1] / BIAS_STD**2)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Returns the features: there is no head."""
        return features


@torch.no_grad()
def draw_gaussian(network: nn.Module) -> None:
    """Draws the weights of all convolutions and linear layers anew, from torch's global generator."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.normal_(0, math.sqrt(WEIGHT_VARIANCE / layer.weight[0].numel()))
            if layer.bias is not None:
                layer.bias.normal_(0, BIAS_STD)


def half_squared_error(prediction: Tensor, targets: Tensor) -> Tensor:
    """Returns half the mean squared error over `B` and `D`."""
    return squared_error(prediction, targets) / 2
