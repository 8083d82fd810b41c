"""Interface of the methods: the loss of a set and its gradients."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssdd_hub.distill.batches import Batches
from ssdd_hub.distill.engine.base import Engine
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import Check, InputError, require
from ssdd_hub.seeds import derive_seed, draw_distinct, seeded
from ssdd_hub.selection.source import Source
from ssdd_hub.teachers.teacher import Teacher


@dataclass(frozen=True)
class Problem:
    """The real data and the engine, given to every method.

    Attributes:
        batches: The real images of each step with their targets.
        build_student: Returns a fresh student on the CPU; call it under `seeds.seeded`.
        engine: Computes what takes the time.
        batch_size: Real images `B` of a step, over all processes.
        seed: Of everything random: draw from `seeds.generator(seed, purpose, step)`, and a resumed run draws alike.
        source: All real images, their targets and the teacher; None where a script has only batches.
        rank: This process.
        world: Number of processes.
        frozen: A network whose features a method may read, where targets are class labels; None where there is none.
        folder: Where a run keeps what `Method.prepare` makes, if it is much; None where there is no run.
        own_networks: Whether each process has networks of its own; see `DistillerSettings`.
    """

    batches: Batches
    build_student: Callable[[], nn.Module]
    engine: Engine
    batch_size: int
    seed: int = 0
    source: Source | None = None
    rank: int = 0
    world: int = 1
    frozen: Teacher | None = None
    folder: Path | None = None
    own_networks: bool = False

    @property
    def network_seed(self) -> int:
        """Seed of networks and of what they see, another one on each process where each has networks of its own.

        The first process has `seed` itself, so that alone it does what it does without networks of its own.
        """
        return derive_seed(self.seed, "process", self.rank) if self.own_networks and self.rank else self.seed

    @property
    def has_classes(self) -> bool:
        """Whether the targets are class labels, centred one-hot vectors; False where there is no source."""
        return self.source is not None and self.source.classes is not None

    def batch(self, step: int) -> Pairs:
        """Returns this process's slice of the real batch of a step, for losses that are means over real images."""
        return self._timed(step, self.rank, self.world)

    def whole_batch(self, step: int) -> Pairs:
        """Returns the whole batch on every process, for losses that are no means over real images."""
        return self._timed(step, 0, 1)

    def _timed(self, step: int, rank: int, world: int) -> Pairs:
        with self.engine.watch.part("data"):
            return Pairs(*self.batches(step, rank, world))

    def batch_rows(self, step: int) -> Tensor | None:
        """Returns the indices `(B,)` of the real images of a whole batch; None where they are not known."""
        rows: Callable[[int], Tensor] | None = getattr(self.batches, "rows", None)
        return rows(step) if rows else None

    def share(self, batch: Pairs) -> float:
        """Returns the factor of a mean over this slice, 1 for equal slices, for the right mean over processes."""
        return len(batch.images) * self.world / self.batch_size


class Method:
    """A distillation method. One file, one subclass, one entry in `methods/registry.py` or an entry point.

    A method sees the present pairs, and nothing of how they are stored. Every process holds the same pairs; what
    `gradients` returns is averaged over processes. All else is the same on every process too, unless
    `problem.own_networks`: then networks, and the real images that train them, come from `problem.network_seed`.

    Args:
        settings: Of the type `Settings`.
        problem: The real data and the engine.

    Attributes:
        name: Its name in recipes.
        citation: The paper.
        Settings: A frozen dataclass. Fields called `ridge`, `inner_steps`, `set_batch` and `pool` get the recipe's
            settings of that name.
        stage: The name of `prepare` in the log.
        has_own_networks: Whether it can have others on each process.
        long_steps: Whether an outer step takes as long as tens of training steps, so that few are worth an estimate.
        moves_targets: Whether the last `gradients` are to move the targets; by gradients of zero, momentum would.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    Settings: ClassVar[type]
    stage: ClassVar[str] = "prepare"
    has_own_networks: ClassVar[bool] = False
    long_steps: ClassVar[bool] = False
    moves_targets = True

    def __init__(self, settings: Any, problem: Problem) -> None:
        require(self.own_networks_check(problem.own_networks))
        self.settings = settings
        self.problem = problem

    @classmethod
    def own_networks_check(cls, wanted: bool) -> Check:
        """Returns whether the method can do what the setting `distiller.own_networks` asks for."""
        problem = f"the method {cls.name} has none, or says nothing of it: leave it at false"
        return cls.has_own_networks or not wanted, f"distiller.own_networks gives each process networks, and {problem}"

    @classmethod
    def batches(cls, settings: Any, count: int) -> dict[str, int]:
        """Returns how many images the smallest training steps of students see, by the option that decides each.

        Other than steps on the whole set, which is of `count` images; by default there are none.
        """
        return {}

    def prepare(self, pairs: Pairs) -> Iterator[Tensor | None]:
        """Does what precedes the first step, given the first set without a graph.

        Yields the loss after each step of a training, and None after each part of other work.
        """
        yield from ()

    def preparation(self) -> int:
        """Returns how often `prepare` yields."""
        return 0

    def rehearse(self) -> None:
        """Is told that steps are only timed: on stand-ins of real targets, and without what `prepare` makes."""

    def rows(self, count: int, step: int) -> Tensor | None:
        """Returns the indices `(n,)` of the pairs, of `count`, that an outer step is given; None for all.

        A function of `problem.seed` and `step`, the same on all processes; by default those of the setting
        `set_batch`, where there is one.
        """
        size = getattr(self.settings, "set_batch", None)
        if size is None or size >= count:
            return None
        return draw_distinct(count, size, self.problem.seed, "set batch", step)

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns the loss of a set at an outer step, a scalar that is differentiable in images and targets.

        The same arguments give the same loss: what is random is a function of `problem.seed` and `step`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement loss(pairs, step)")

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the loss and its gradients in images and targets, by default by autograd.

        Override it to spend less time or memory. The pairs have no graph.
        """
        leaves = pairs.leaves()
        loss = require_scalar(self.loss(leaves, step), self, "loss")
        # Not every loss depends on the targets.
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return (loss.detach(), *found)

    def after_step(self, pairs: Pairs, step: int) -> dict[str, Any]:
        """Does what follows the update of the set, such as training a student on it; by default nothing.

        Args:
            pairs: The new set, without a graph.
            step: The outer step that made it.

        Returns:
            What is logged: numbers, scalar tensors or None, by name.
        """
        return {}

    def learned(self) -> dict[str, float]:
        """Returns what the method has learned beside the set that a use of it may take over, for its record."""
        return {}

    def network_of(self, record: Mapping[str, Any]) -> str:
        """Returns the network that a record of the log is about, in words; empty where it is not known."""
        return ""

    def real_rows(self, step: int) -> Tensor | None:
        """Returns the indices of the real images that an outer step draws, for messages; None where it has none.

        A method that takes `problem.batch` or `problem.whole_batch` of the step returns `problem.batch_rows(step)`.
        """
        return None

    def judge(self) -> nn.Module:
        """Returns the network through which the held-out error of the set is measured; it is not changed.

        By default an untrained one, always the same. A method that trains students on the set returns one of these.
        """
        engine = self.problem.engine
        with seeded(self.problem.seed, "judge"):
            return self.problem.build_student().to(engine.device, engine.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Returns all state, of types that `checkpoints.save_tree` takes, so that a resumed run goes on exactly."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned from a method of the same settings."""


def require_scalar(loss: Tensor, method: Method, function: str) -> Tensor:
    """Returns a loss; raises an `InputError` where it is no scalar, of which autograd says nothing that helps."""
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(
            f"{function} of the method {method.name} must return a tensor of no dimensions, got {found}: take its "
            "mean or its sum"
        )
    return loss
