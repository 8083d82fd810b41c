"""The reference engine: plain PyTorch, everything at once, one launch after another."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from ssdd_hub.distill.engine.base import Engine, EngineSettings
from ssdd_hub.distill.engine.folded import FeatureReader
from ssdd_hub.distill.engine.krr_gradients import learned_of
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.krr import Outer, Regression, Ridge, squared_error
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import regression_step


def krr_loss(
    engine: Engine,
    student: nn.Module,
    pairs: Pairs,
    real: Pairs,
    ridge: float | Ridge,
    outer: Outer = squared_error,
) -> Tensor:
    """Returns the loss of `krr.Regression` on the features that an engine computes; differentiable in the pairs."""
    dtype = engine.kernel_dtype
    with torch.no_grad():
        real_features = engine.features(student, real.images).to(dtype)
    features = engine.features(student, pairs.images).to(dtype)
    return Regression(features, pairs.targets.to(dtype), ridge).loss(real_features, real.targets.to(dtype), outer)


class EagerEngine(Engine):
    """The engine that others are compared with; only the two precisions of the settings count."""

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        self.device = accelerator.device
        self.dtype, self.kernel_dtype = settings.dtype, settings.kernel_dtype
        self.watch, self.parts = Stopwatch(), None
        self._accelerator = accelerator

    def features(self, student: nn.Module, images: Tensor) -> Tensor:
        """See `Engine.features`."""
        reader = FeatureReader(student.eval())
        # Detached, the weights are constants of the graph.
        weights = {name: value.detach() for name, value in reader.state_dict(keep_vars=True).items()}
        with self._accelerator.autocast():
            features: Tensor = functional_call(reader, weights, (images,))
        return features

    def krr_gradients(
        self, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float | Ridge, outer: Outer = squared_error
    ) -> tuple[Tensor, ...]:
        """See `Engine.krr_gradients`."""
        leaves = pairs.leaves()
        loss = krr_loss(self, student, leaves, real, ridge, outer)
        return (loss.detach(), *torch.autograd.grad(loss, [*leaves, *learned_of(outer)]))

    def regression_step(self, student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
        """See `Engine.regression_step`."""
        return regression_step(student, optimizer, pairs, self._forward)

    def _forward(self, student: nn.Module, images: Tensor) -> Tensor:
        with self._accelerator.autocast():
            outputs: Tensor = student(images)
        return outputs
