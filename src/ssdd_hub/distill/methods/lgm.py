"""LGM: linear gradient matching, the direction of the gradient of a random linear head on a frozen backbone.

Source: Cazenavette, Torralba and Sitzmann, "Dataset Distillation for Pre-Trained Self-Supervised Vision Models",
NeurIPS 2025, arXiv 2511.16674, and the code that they released, of which are the defaults. Their set is `pyramid`,
whose images begin with one pixel.

The gradient of the mean cross-entropy in the weights of a head is known: the mean of residuals times features. So no
step differentiates the backbone twice.

Ours are

* `real_views`, with `augment: none` always one: the backbone never changes, and features of augmented real images may
  be computed once;
* noise of mean 0, where their call adds 0.5 to the images that it changes;
* targets that are a teacher's: clusters of them are the classes. The paper has labels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ssdd_hub.bounds import Count, Positive, Several
from ssdd_hub.distill.backbone import build_backbone
from ssdd_hub.distill.engine.memory import plan_micro_batches
from ssdd_hub.distill.groups import Groups, require_source
from ssdd_hub.distill.method import Method, Problem
from ssdd_hub.distill.methods.frozen import FrozenSettings, KeptViews, augment_real, augment_set
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.seeds import draw_batch, generator


@dataclass(frozen=True)
class LgmSettings(FrozenSettings):
    """Settings of LGM; by default, as in the paper, a step sees fresh views of real images.

    Attributes:
        num_groups: Clusters of the targets, where these are a teacher's; class labels are groups of their own.
        real_images: Real images of a step, at most; the paper has as many as augmented images of the set.
        weight_std: Of the weights of the head, which each step draws anew.
    """

    num_groups: Several = 10
    real_images: Count = 100
    weight_std: Positive = 0.01


class Lgm(Method):
    """Linear gradient matching: 1 minus the cosine of a random head's gradients on the set and on real images.

    Several processes share the images out, and add up their gradients.
    """

    name = "lgm"
    citation = "Cazenavette et al., NeurIPS 2025, arXiv 2511.16674"
    Settings = LgmSettings
    stage = "real features"
    long_steps = True
    # They name the groups.
    moves_targets = False
    settings: LgmSettings
    groups: Groups

    def __init__(self, settings: LgmSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self._backbone = build_backbone(settings, problem)
        self._kept = self._keep() if settings.real_views or settings.augment == "none" else None
        self._recompute: bool | None = None

    def prepare(self, pairs: Pairs) -> Iterator[None]:
        """Finds the groups, at once, then computes the features of real images that are kept."""
        self.groups = Groups.find(self.problem, pairs.targets, self.settings.num_groups)
        return self._kept.compute() if self._kept else iter(())

    def preparation(self) -> int:
        """Returns in how many parts kept features are computed."""
        return len(self._kept) if self._kept else 0

    def judge(self) -> nn.Module:
        """Returns the backbone."""
        return self._backbone

    def rehearse(self) -> None:
        """Keeps features of few real images from here on, which stand for all."""
        if self._kept:
            self._kept.rehearsed = True

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns the distance; differentiable in the images. In one process only."""
        features = self._of_views(pairs.images, step, range(self.settings.views))
        head = self._head(features.shape[1], step)
        groups = self.groups.of_set.repeat(self.settings.views).to(head.device)
        return 1 - cosine(head_gradient(features, groups, head), self._real_gradient(head, step))

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the distance and its gradients.

        Where the activations of all views would not fit into half of the free memory, those of one view after another
        are made again.
        """
        watch, images = self.problem.engine.watch, pairs.images.detach().requires_grad_()
        if self._recompute is None:
            every = images.detach()[:1].expand(len(images) * self.settings.views, *images.shape[1:])
            self._recompute = plan_micro_batches(self._features, every).recompute
        views = range(self.settings.views)
        parts = [views[view : view + 1] for view in views] if self._recompute else [views]
        with watch.part("distilled features"), torch.set_grad_enabled(not self._recompute):
            made = [self._of_views(images, step, part) for part in parts]
        with watch.part("real features"):
            features = torch.cat([part.detach() for part in made]).requires_grad_()
            head = self._head(features.shape[1], step)
            wanted = self._real_gradient(head, step)
        with watch.part("regression"):
            groups = self.groups.of_set[torch.cat([self._mine(len(images), view) for view in views])]
            own = head_gradient(features, groups.to(head.device), head)
            whole = self._sum(own.detach()).requires_grad_()
            loss = 1 - cosine(whole, wanted)
            (upstream,) = torch.autograd.grad(loss, whole)
            (upstream,) = torch.autograd.grad(own, features, upstream)
        with watch.part("backward"):
            total = torch.zeros_like(images)
            for part, kept, of_part in zip(parts, made, torch.split(upstream, [*map(len, made)]), strict=True):
                if len(kept):
                    kept = self._of_views(images, step, part) if self._recompute else kept
                    total += torch.autograd.grad(kept, images, of_part)[0]
        return loss.detach(), self.problem.world * total, torch.zeros_like(pairs.targets)

    def real_rows(self, step: int) -> Tensor:
        """Returns the rows that a step draws."""
        total = len(self.groups.of_source)
        return draw_batch(
            total, min(self.settings.real_images, total), self.problem.seed, "real images of a head", step
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the groups, and whether activations are made twice, which rounds otherwise; not the features."""
        return {"groups": self.groups.state_dict(), "recompute": self._recompute}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.groups, self._recompute = Groups.load(self.problem, state["groups"]), state.get("recompute")

    def _keep(self) -> KeptViews:
        count = len(require_source(self.problem).bank)
        return KeptViews(
            lambda rows: self.groups.at(rows).images, self._features, count, self.settings, self.problem.seed
        )

    def _features(self, images: Tensor) -> Tensor:
        engine = self.problem.engine
        if not len(images):
            return self._features(images.new_zeros(1, *images.shape[1:]))[:0]
        return engine.features(self._backbone, images).to(engine.kernel_dtype)

    def _of_views(self, images: Tensor, step: int, views: range) -> Tensor:
        """Returns the features of this process's share of some views of the set, one view after another."""
        seen = []
        for view in views:
            shown = augment_set(images, self.settings.augment, self.problem.seed, step, view)
            seen.append(shown[self._mine(len(images), view)])
        return self._features(torch.cat(seen))

    def _head(self, width: int, step: int) -> Tensor:
        count, engine = int(self.groups.of_source.max()) + 1, self.problem.engine
        drawn = torch.randn(count, width, generator=generator(self.problem.seed, "linear head", step))
        return self.settings.weight_std * drawn.to(engine.device, engine.kernel_dtype)

    def _mine(self, count: int, view: int = 0) -> Tensor:
        """Returns this process's share of so many images, `(n,)`: in each view other ones, so that shares are even."""
        rows = torch.arange(count)
        return rows[(view * count + rows) % self.problem.world == self.problem.rank]

    def _sum(self, part: Tensor) -> Tensor:
        """Returns the sum over processes of what each has."""
        return part if self.problem.world == 1 else reduce(part.contiguous(), "sum")

    @torch.no_grad()
    def _real_gradient(self, head: Tensor, step: int) -> Tensor:
        settings, seed, rows = self.settings, self.problem.seed, self.real_rows(step)
        mine = self._mine(len(rows))
        if self._kept is None:
            seen = augment_real(self.groups.at(rows).images, settings.augment, seed, step)
            features = self._features(seen[mine])
        else:
            features = self._kept.draw(rows, step)[mine].to(head)
        return self._sum(head_gradient(features, self.groups.of_source[rows[mine]].to(head.device), head))


def head_gradient(features: Tensor, groups: Tensor, head: Tensor) -> Tensor:
    """Returns the sum over images of the gradients of the cross-entropy in a head's weights and biases, `(C, F + 1)`.

    Args:
        features: `(n, F)`; differentiable.
        groups: The classes of the images, `(n,)`, int64.
        head: Weights `(C, F)`; its biases are 0.
    """
    residual = (features @ head.T).softmax(1) - one_hot(groups, len(head)).to(features)
    return torch.cat([residual.T @ features, residual.sum(0)[:, None]], 1)


def cosine(found: Tensor, wanted: Tensor) -> Tensor:
    """Returns the cosine of two gradients, each taken as one vector."""
    lengths: Tensor = torch.linalg.vector_norm(found) * torch.linalg.vector_norm(wanted)
    return (found * wanted).sum() / lengths
