"""Base of the methods that match set and real images group by group: distribution and gradient matching."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssdd_hub.bounds import Count
from ssdd_hub.data.augment import AUGMENTATIONS
from ssdd_hub.distill.groups import Groups
from ssdd_hub.distill.method import Method, Problem, require_scalar
from ssdd_hub.distill.networks import FRESH, ON_SET, Augmented, Networks, NetworkSettings
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import require
from ssdd_hub.seeds import draw_distinct, generator


@dataclass(frozen=True)
class MatchingSettings(NetworkSettings):
    """Settings that all matching methods have.

    Attributes:
        num_groups: Clusters of the targets, where these are a teacher's; class labels are groups of their own.
        real_images: Real images of each group that a step draws, at most.
        set_images: Images of the set of each group that a step sees, at most; None for all.
        augment: How both are augmented, all of a group in the same way: `none`; `dsa`, one of six operations;
            `colour-crop-cutout`, these three.
    """

    num_groups: Count = 10
    real_images: Count = 256
    set_images: Count | None = None
    augment: Augmented = "dsa"


class Matching(Method):
    """Sums a loss over groups; a subclass has the loss of one.

    Several processes share the groups out; where each has networks of its own, it matches all groups in them, with
    real images of its own.

    The real images are those of `problem.source`, with the targets of the images as they are, whatever augments them.
    """

    has_own_networks = True
    settings: MatchingSettings
    groups: Groups
    networks: Networks

    def __init__(self, settings: MatchingSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        # Class labels say which images are matched, and have no gradient.
        self.moves_targets = not problem.has_classes
        needed = f"Settings of the method {self.name} must extend ssdd_hub.distill.methods.matching.MatchingSettings"
        require((isinstance(settings, MatchingSettings), f"{needed}, got {type(settings).__name__}"))

    @classmethod
    def batches(cls, settings: MatchingSettings, count: int) -> dict[str, int]:
        """See `Method.batches`; real images are as many as is asked for."""
        if settings.networks == FRESH or not settings.training_steps:
            return {}
        size = min(settings.training_batch, count) if settings.networks == ON_SET else settings.training_batch
        return {"--method.args.training_batch": size}

    def prepare(self, pairs: Pairs) -> Iterator[Tensor]:
        """Finds the groups, at once."""
        self._begin(Groups.find(self.problem, pairs.targets, self.settings.num_groups))
        return iter(())

    def match(self, network: int, group: int, own: Pairs, real: Pairs) -> Tensor:
        """Returns the loss of one group, a scalar.

        Args:
            network: Its number, for `networks.get`.
            group: Its number.
            own: The images of the set, augmented, and their targets; differentiable.
            real: Real images, augmented alike, and their targets.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement match(network, group, own, real)")

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns the sum over this process's groups, times the number of processes that share them."""
        shares = (self._loss(Pairs(*(part[rows] for part in pairs)), group, step) for group, rows in self._mine(step))
        # Of no groups, a loss that still has a gradient.
        return sum(shares, start=0 * pairs.images.sum())

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the same loss and its gradients, those of each group computed alone, to save memory."""
        total, found = pairs.images.new_zeros(()), tuple(torch.zeros_like(part) for part in pairs)
        for group, rows in self._mine(step):
            leaves = Pairs(*(part[rows] for part in pairs)).leaves()
            loss = self._loss(leaves, group, step)
            with self.problem.engine.watch.part("backward"):
                parts = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            for whole, part in zip(found, parts, strict=True):
                whole[rows] = part
            total += loss.detach()
        return (total, *found)

    def after_step(self, pairs: Pairs, step: int) -> dict[str, Any]:
        """Trains networks; logs their mean loss as `inner_loss`."""
        with self.problem.engine.watch.part("inner step"):
            return {"inner_loss": self.networks.train(pairs, step)}

    def network_of(self, record: Mapping[str, Any]) -> str:
        """Returns the number of the network that a step matches in."""
        return f"network {self.networks.draw(record['step'] - 1)}"

    def real_rows(self, step: int) -> Tensor:
        """Returns the rows that a step draws, of all groups."""
        return torch.cat(
            [self.groups.real_rows(group, self.settings.real_images, step) for group in self.groups.present]
        )

    def judge(self) -> nn.Module:
        """Returns the network that has been trained longest; an untrained one where none has been."""
        return self.networks.oldest() or super().judge()

    def state_dict(self) -> dict[str, Any]:
        """Returns the groups and the networks that were trained."""
        return {"groups": self.groups.state_dict(), "networks": self.networks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._begin(Groups.load(self.problem, state["groups"]))
        self.networks.load_state_dict(state["networks"])
        self.problem.engine.forget()

    def _begin(self, groups: Groups) -> None:
        self.groups, self.networks = groups, Networks(self.settings, self.problem, groups)

    def _mine(self, step: int) -> Iterator[tuple[int, Tensor]]:
        """Yields this process's groups with the images of the set of each that a step sees, as indices `(m,)`."""
        seed, most = self.problem.network_seed, self.settings.set_images
        shared = not self.problem.own_networks
        for group in self.groups.present[self.problem.rank :: self.problem.world] if shared else self.groups.present:
            rows = self.groups.rows(group)
            if most is not None and most < len(rows):
                rows = rows[draw_distinct(len(rows), most, seed, f"set images of group {group}", step)]
            yield group, rows.to(self.problem.engine.device)

    def _loss(self, own: Pairs, group: int, step: int) -> Tensor:
        watch = self.problem.engine.watch
        with watch.part("data"):
            real = self._augmented(self.groups.real(group, self.settings.real_images, step), group, step)
        with watch.part("distilled features"):
            loss = self.match(self.networks.draw(step), group, self._augmented(own, group, step), real)
            require_scalar(loss, self, "match")
        return loss if self.problem.own_networks else self.problem.world * loss

    def _augmented(self, pairs: Pairs, group: int, step: int) -> Pairs:
        # The same draw for the set and for real images.
        drawn = generator(self.problem.network_seed, "siamese augmentation", step, group)
        return Pairs(AUGMENTATIONS[self.settings.augment](pairs.images, drawn, True), pairs.targets)
