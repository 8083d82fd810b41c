"""The reference engine: plain PyTorch, everything at once, one launch after another."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from ssdd_hub.distill.batches import Batches
from ssdd_hub.distill.engine.base import Engine, EngineSettings
from ssdd_hub.distill.engine.folded import FeatureReader
from ssdd_hub.distill.engine.memory import Parts
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.krr import Regression
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import regression_step


def krr_loss(engine: Engine, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float) -> Tensor:
    """Returns the loss of `krr.Regression` on a student's features; differentiable in the pairs.

    Args:
        engine: Gives the features.
        student: With timm's `forward_features` and `forward_head`.
        pairs: The set.
        real: Real images and their targets.
        ridge: Regularisation relative to the trace of the kernel.
    """
    dtype = engine.kernel_dtype
    with torch.no_grad():
        real_features = engine.features(student, real.images).to(dtype)
    features = engine.features(student, pairs.images).to(dtype)
    return Regression(features, pairs.targets.to(dtype), ridge).loss(real_features, real.targets.to(dtype))


class EagerEngine:
    """The engine that others are compared with.

    Args:
        settings: Of which only the two precisions count.
        accelerator: Device and mixed precision. The kernel is never built in reduced precision.
    """

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        self.device = accelerator.device
        self.dtype, self.kernel_dtype = settings.dtype, settings.kernel_dtype
        self.watch = Stopwatch()
        self.parts: Parts | None = None
        self._accelerator = accelerator

    def features(self, student: nn.Module, images: Tensor) -> Tensor:
        """See `Engine.features`."""
        reader = FeatureReader(student.eval())
        # Detached, the weights are constants of the graph.
        weights = {name: value.detach() for name, value in reader.state_dict(keep_vars=True).items()}
        with self._accelerator.autocast():
            features: Tensor = functional_call(reader, weights, (images,))
        return features

    def krr_gradients(self, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float) -> tuple[Tensor, ...]:
        """See `Engine.krr_gradients`."""
        leaves = pairs.leaves()
        loss = krr_loss(self, student, leaves, real, ridge)
        return (loss.detach(), *torch.autograd.grad(loss, leaves))

    def regression_step(self, student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
        """See `Engine.regression_step`."""
        return regression_step(student, optimizer, pairs, self._forward)

    def forget(self) -> None:
        """Nothing is kept."""

    def prefetch(self, batches: Batches, steps: int) -> Batches:
        """Returns the batches as they are."""
        return batches

    def launch_one_by_one(self) -> None:
        """Nothing is replayed."""

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: all images pass at once."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing."""

    def _forward(self, student: nn.Module, images: Tensor) -> Tensor:
        with self._accelerator.autocast():
            outputs: Tensor = student(images)
        return outputs
