"""FRePo: kernel ridge regression on the features of online students, for class labels or a teacher's targets.

Source: Zhou et al., "Dataset Distillation using Neural Feature Regression", NeurIPS 2022, arXiv 2206.00719.

Beside KRR-ST: the kernel has no constant, its regularisation is relative to `trace(K_ss) / M` and is differentiated
through, and where targets are class labels a small term rewards the margin between the two largest entries of each
target of the set. The pool's settings are the recipe's; the paper's are those of the defaults here, a network without
norm whose widths double from block to block, and `distiller.optimizer: lamb` at 3e-4.

Where the released code (JAX; a later form in PyTorch) differs from this:

* A student that has taken 100 steps takes one more in JAX, and is then replaced by one that waits for its next visit;
  here, as in PyTorch, it is replaced at once.
* The first students start with ages spread evenly below `max_age`, but untrained. Here they are trained to random
  ages, or with `pool.warm_up: false` have age 0.
* An inner step takes at most 1,000 (PyTorch: 500) images of the set, drawn anew, while the outer step sees all. Here
  `set_batch` holds for both.
* PyTorch's form leaves out the factor 1/2 of the squared error, so that the margin counts half as much
  (`margin: 0.5`), moves the set by Adam at 1e-3 (here: `distiller.optimizer: adamw`), and warms the inner learning
  rate up over 500 steps, which students of at most 100 never reach; that is not offered.
* Learning rates of the set decay by a cosine to 10 %; here linearly, to `distiller.final_lr`.
* Mirror images are appended for small sets (`flip: true`), and real images are whitened (ZCA), which is not offered.
* The first targets of the set are divided by `√(C / 10)`; here they start as those of the real images.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssdd_hub.bounds import Count, Positive, Settings, Weight
from ssdd_hub.distill.engine.eager import krr_loss
from ssdd_hub.distill.krr import Ridge
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.krr_st import KrrSt
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import PoolSettings, StudentPool

ADAM: dict[str, Any] = {"optimizer": "adam", "learning_rate": 3e-4, "weight_decay": 0.0}


@dataclass(frozen=True)
class FrepoSettings(Settings, section="method.args"):
    """Settings of FRePo; the defaults are the paper's.

    Attributes:
        penalty: Regularisation relative to `trace(K_ss) / M`.
        margin: Weight of the margin term; without class labels there is none.
        flip: Let the regression see the mirror image of each image too, with the same target.
        inner_steps: Inner steps of the drawn student after each outer step.
        pool: The online students.
        set_batch: Distilled images of each outer step and the inner steps after it; None for all.
    """

    penalty: Positive = 1e-6
    margin: Weight = 1.0
    flip: bool = False
    inner_steps: Count = 1
    pool: PoolSettings = field(default_factory=lambda: PoolSettings(max_age=100, **ADAM))
    set_batch: Count | None = None


class Frepo(KrrSt):
    """Fits the regression on the set through a student of the pool, and trains the student on the new set."""

    name = "frepo"
    citation = "Zhou et al., NeurIPS 2022, arXiv 2206.00719"
    Settings = FrepoSettings  # type: ignore[assignment]
    settings: FrepoSettings

    def __init__(self, settings: FrepoSettings, problem: Problem, pool: StudentPool | None = None) -> None:
        super().__init__(settings, problem, pool)  # type: ignore[arg-type]
        self._margin = settings.margin if problem.has_classes else 0.0

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns half the squared error, summed over entries, of the drawn student, and the margin term."""
        student, real, seen = self.pool.student(self._draw(step)), self.problem.batch(step), self._seen(pairs)
        loss = krr_loss(self.problem.engine, student, seen, real, self._ridge(seen))
        return loss * self._weight(real) + self._margin_term(pairs.targets)

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the loss and its gradients, computed in parts that fit the memory."""
        student, real, leaves = self.pool.student(self._draw(step)), self.problem.batch(step), pairs.leaves()
        seen, margin, weight = self._seen(leaves), self._margin_term(leaves.targets), self._weight(real)
        found = self.problem.engine.krr_gradients(student, seen.detached(), real, self._ridge(seen))
        loss, *gradients = (part * weight for part in found)
        whole = torch.autograd.grad([*seen, margin], leaves, [*gradients, torch.ones_like(margin)])
        return loss + margin.detach(), *whole

    def _seen(self, pairs: Pairs) -> Pairs:
        if not self.settings.flip:
            return pairs
        return Pairs(torch.cat([pairs.images, pairs.images.flip(-1)]), torch.cat([pairs.targets, pairs.targets]))

    def _ridge(self, seen: Pairs) -> Ridge:
        return Ridge(self.settings.penalty / len(seen.images), constant=False, detached=False)

    def _weight(self, real: Pairs) -> float:
        """Returns what makes a mean over images and entries half the mean over images of the sum over entries."""
        return real.targets.shape[1] / 2 * self.problem.share(real)

    def _margin_term(self, targets: Tensor) -> Tensor:
        """Returns `-mean(min(first - second, 1 / C))` of the two largest entries of each target `(M, C)`."""
        if not self._margin:
            # With a graph, as `gradients` needs it.
            return targets.sum() * 0
        first, second = targets.topk(2, dim=1).values.unbind(1)
        return -self._margin * (first - second).clamp(max=1 / targets.shape[1]).mean()
