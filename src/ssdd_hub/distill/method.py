"""What a method of distillation is: it says how good a set is, and in which direction it gets better."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssdd_hub.arguments import find_problems
from ssdd_hub.distill.batches import Batches
from ssdd_hub.distill.engine.base import Engine
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import require
from ssdd_hub.selection.source import Source


@dataclass(frozen=True)
class MethodSettings:
    """Which method distils.

    Attributes:
        name: One of `ssdd_hub.list_methods()`.
        args: Settings of the method.
    """

    name: str = "krr_st"
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(*((False, f"method.args: {problem}") for problem in find_problems(self.args)))


@dataclass(frozen=True)
class Problem:
    """What every method is given.

    Attributes:
        batches: The real images of each step with their targets.
        build_student: Returns a fresh student on the CPU; call it under `seeds.seeded`.
        engine: Computes what takes the time.
        batch_size: Real images `B` of a step, over all processes.
        seed: Of everything random: draw from `seeds.generator(seed, purpose, step)`, and a resumed run draws alike.
        source: All real images, their targets and the teacher; None where a script has only batches.
        rank: This process.
        world: Number of processes.
    """

    batches: Batches
    build_student: Callable[[], nn.Module]
    engine: Engine
    batch_size: int
    seed: int = 0
    source: Source | None = None
    rank: int = 0
    world: int = 1

    def batch(self, step: int) -> Pairs:
        """Returns this process's slice of the real batch of a step, for losses that are means over real images."""
        with self.engine.watch.part("data"):
            return Pairs(*self.batches(step, self.rank, self.world))

    def whole_batch(self, step: int) -> Pairs:
        """Returns the whole batch on every process, for losses that are no means over real images."""
        with self.engine.watch.part("data"):
            return Pairs(*self.batches(step, 0, 1))

    def share(self, batch: Pairs) -> float:
        """Returns by what to multiply a mean over this process's slice, so that the mean over processes is right.

        It is 1 where all slices have one size.
        """
        return len(batch.images) * self.world / self.batch_size


class Method:
    """How good a set is. One file, one subclass, one entry in `methods/registry.py` or an entry point.

    A method sees pairs as they are now, and knows nothing of how they are stored. Every process holds the same pairs;
    what `gradients` returns is averaged over processes.

    Args:
        settings: Of the type `Settings`.
        problem: The real data and the engine.

    Attributes:
        name: By which recipes know it.
        citation: The paper.
        Settings: A frozen dataclass. Fields called `ridge`, `inner_steps` and `pool` get the recipe's settings of that
            name.
        stage: What `prepare` is called in the log.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    Settings: ClassVar[type]
    stage: ClassVar[str] = "prepare"

    def __init__(self, settings: Any, problem: Problem) -> None:
        self.settings = settings
        self.problem = problem

    def prepare(self, pairs: Pairs) -> Iterator[Tensor]:
        """Does what comes before the first step, and yields a loss for each of its steps; by default nothing.

        Args:
            pairs: The first set, without a graph.
        """
        yield from ()

    def preparation(self) -> int:
        """Returns how many losses `prepare` yields."""
        return 0

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns how bad a set is, a scalar that is differentiable in images and targets.

        The same arguments give the same loss: what is random is a function of `problem.seed` and `step`.

        Args:
            pairs: The set as it is now.
            step: The outer step.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement loss(pairs, step)")

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the loss and its gradients in images and targets, by default those that autograd finds.

        A method overrides this where it can do with less time or memory.

        Args:
            pairs: The set as it is now, without a graph.
            step: The outer step.
        """
        leaves = pairs.leaves()
        loss = self.loss(leaves, step)
        # Not every loss looks at the targets.
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

    def state_dict(self) -> dict[str, Any]:
        """Returns all state, of what `checkpoints.save_tree` takes, so that a resumed run goes on exactly."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned from a method of the same settings."""
