"""Base of the kernel regression methods whose networks are not trained on the set."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ssdd_hub.bounds import Count, Settings
from ssdd_hub.distill.engine.eager import krr_loss
from ssdd_hub.distill.krr import Outer, Ridge
from ssdd_hub.distill.method import Method, Problem
from ssdd_hub.distill.pairs import Pairs


@dataclass(frozen=True)
class KernelSettings(Settings, section="method.args"):
    """What all of these methods have.

    Attributes:
        set_batch: Distilled images of each outer step; None for all, as in the papers.
    """

    set_batch: Count | None = None


class KernelMethod(Method):
    """Fits the regression on the set through the network of a step; the loss is one of its predictions.

    Args:
        settings: Of the type `Settings`; its `penalty` is the regularisation relative to `trace(K_ss) / M`.
        problem: The real data and the engine.
        outer: The loss; as a module it may have learned parameters.
    """

    def __init__(self, settings: Any, problem: Problem, outer: Outer) -> None:
        super().__init__(settings, problem)
        engine = problem.engine
        self.outer = outer.to(engine.device, engine.kernel_dtype) if isinstance(outer, nn.Module) else outer
        self.found: tuple[Tensor, ...] = ()

    def network(self, step: int) -> nn.Module:
        """Returns the network of a step, with timm's `forward_features` and `forward_head`."""
        raise NotImplementedError(f"{type(self).__name__} must implement network(step)")

    def real(self, step: int) -> Pairs:
        """Returns this process's real images of a step, as `network` sees them."""
        return self.problem.batch(step)

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns the loss of the predictions of the step's real images."""
        real, ridge = self.real(step), self._ridge(pairs)
        loss = krr_loss(self.problem.engine, self.network(step), pairs, real, ridge, self.outer)
        return loss * self.problem.share(real)

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the loss and its gradients, computed in parts that fit the memory.

        Those in what is learned of `outer` are kept as `found`; they are not yet averaged over processes.
        """
        real, ridge = self.real(step), self._ridge(pairs)
        found = self.problem.engine.krr_gradients(self.network(step), pairs, real, ridge, self.outer)
        share = self.problem.share(real)
        found = found if share == 1 else tuple(part * share for part in found)
        self.found = found[3:]
        return found[:3]

    def real_rows(self, step: int) -> Tensor | None:
        """Returns the rows of the batch."""
        return self.problem.batch_rows(step)

    def _ridge(self, pairs: Pairs) -> Ridge:
        return Ridge(self.settings.penalty / len(pairs.images), detached=False)
