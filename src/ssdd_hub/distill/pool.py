"""The pool of online students: draw one, let it take an inner step, renew it at age `T`.

Source: Lee et al., ICLR 2024, arXiv 2310.06511, algorithm 1. Their released code never puts a renewed student's age
back, so that in the long run every draw meets a network that was never trained: `renewal: never-train` does as much.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import require
from ssdd_hub.seeds import generator, seeded

RENEWALS = ("train", "never-train")
InnerStep = Callable[[nn.Module, torch.optim.Optimizer, Pairs], Tensor]


@dataclass(frozen=True)
class PoolSettings:
    """How many students there are, how they age, and how they are trained.

    Attributes:
        size: Number of students `P`.
        max_age: Age `T`, in inner steps, at which a student is renewed.
        renewal: `train`: a renewed student has age 0 and ages like any other. `never-train`: as in the authors' code,
            a slot that has reached `max_age` once gets a fresh student at each visit, which takes no step.
        warm_up: Train each first student for a random age in `[1, max_age)` before the first outer step.
        learning_rate: Of the inner SGD.
        momentum: Of the inner SGD.
        weight_decay: Of the inner SGD.
    """

    size: int = 10
    max_age: int = 1000
    renewal: str = "train"
    warm_up: bool = True
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        require(
            (self.size >= 1, f"pool.size must be at least 1, got {self.size}"),
            (self.max_age >= 1, f"pool.max_age must be at least 1, got {self.max_age}"),
            (self.renewal in RENEWALS, f"pool.renewal must be one of {', '.join(RENEWALS)}, got {self.renewal!r}"),
            (self.learning_rate > 0, f"pool.learning_rate must be above 0, got {self.learning_rate}"),
            (0 <= self.momentum < 1, f"pool.momentum must be in [0, 1), got {self.momentum}"),
            (self.weight_decay >= 0, f"pool.weight_decay must be at least 0, got {self.weight_decay}"),
        )


@dataclass
class PooledStudent:
    """One slot of the pool.

    Attributes:
        module: The student.
        optimizer: Its SGD.
        age: Inner steps that the algorithm counts for this slot.
        generation: How many students the slot has had before this one.
    """

    module: nn.Module
    optimizer: torch.optim.SGD
    age: int
    generation: int


class StudentPool:
    """`P` students of different ages.

    Everything random in it (first weights, first ages, draws) is a function of the seed and of counters.

    Args:
        build: Returns a fresh student on the CPU; it is called under a seeded global generator.
        settings: See `PoolSettings`.
        seed: Seed of the run.
        device: Where the students live.
        dtype: Type of their weights.
        step: Takes an inner step: a student, its optimiser and the set give the loss. None for the reference,
            `regression_step`; an engine has one that is quicker.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        settings: PoolSettings,
        seed: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        step: InnerStep | None = None,
    ) -> None:
        self.build = build
        self.settings = settings
        self.seed = seed
        self.device = device
        self.dtype = dtype
        self.step: InnerStep = step or regression_step
        self.students = [self._fresh(slot, generation=0) for slot in range(settings.size)]

    @property
    def ages(self) -> list[int]:
        """The age of each slot."""
        return [student.age for student in self.students]

    def first_ages(self) -> list[int]:
        """Returns the ages to which `warm_up` trains: uniform in `[1, max_age)`, or 0 where that is empty."""
        settings = self.settings
        if not settings.warm_up or settings.max_age == 1:
            return [0] * settings.size
        drawn = torch.randint(1, settings.max_age, (settings.size,), generator=generator(self.seed, "first ages"))
        return [int(age) for age in drawn]

    def warm_up(self, images: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Trains each student to its first age on the first set; yields the loss of each inner step.

        Args:
            images: `(M, C, H, W)`, in the students' pixel space.
            targets: `(M, D)`.
        """
        for student, age in zip(self.students, self.first_ages(), strict=True):
            while student.age < age:
                yield self._inner_step(student, images, targets)

    def draw(self, step: int) -> int:
        """Returns the slot that outer step `step` uses, uniform and a function of `(seed, step)` alone."""
        return int(torch.randint(self.settings.size, (), generator=generator(self.seed, "draw", step)))

    def student(self, slot: int) -> nn.Module:
        """Returns the student of a slot."""
        return self.students[slot].module

    def advance(self, slot: int, images: Tensor, targets: Tensor) -> Tensor | None:
        """Ages a slot by one: an inner step, and renewal at `max_age`.

        Args:
            slot: The drawn slot.
            images: The new set's images, `(M, C, H, W)`, without a graph.
            targets: The new set's targets, `(M, D)`, without a graph.

        Returns:
            The inner loss before the step, a scalar; None when `never-train` replaced the student instead.
        """
        student = self.students[slot]
        if self.settings.renewal == "never-train" and student.age >= self.settings.max_age:
            self.students[slot] = self._fresh(slot, student.generation + 1, age=student.age)
            return None
        loss = self._inner_step(student, images, targets)
        if self.settings.renewal == "train" and student.age >= self.settings.max_age:
            self.students[slot] = self._fresh(slot, student.generation + 1)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns all state, for `checkpoints.save_tree`."""
        return {
            "students": [
                {
                    "module": student.module.state_dict(),
                    "optimizer": student.optimizer.state_dict(),
                    "age": student.age,
                    "generation": student.generation,
                }
                for student in self.students
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned from a pool of the same settings."""
        for student, saved in zip(self.students, state["students"], strict=True):
            student.module.load_state_dict(saved["module"])
            student.optimizer.load_state_dict(saved["optimizer"])
            for parameter, state in student.optimizer.state.items():
                if state.get("momentum_buffer") is not None:
                    # As it was before it was saved: in the layout of its parameter.
                    state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])
            student.age = saved["age"]
            student.generation = saved["generation"]

    def _fresh(self, slot: int, generation: int, age: int = 0) -> PooledStudent:
        with seeded(self.seed, "student", slot, generation):
            module = self.build()
        # As in `pretrain`, the layout that is quicker on the CPU.
        module = module.to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        settings = self.settings
        optimizer = torch.optim.SGD(
            module.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=torch.device(self.device).type == "cuda",
        )
        return PooledStudent(module, optimizer, age, generation)

    def _inner_step(self, student: PooledStudent, images: Tensor, targets: Tensor) -> Tensor:
        student.age += 1
        return self.step(student.module, student.optimizer, Pairs(images, targets))


def regression_step(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    pairs: Pairs,
    forward: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__,
) -> Tensor:
    """Takes one step of a student on the mean squared error of its head; returns the loss before it, a scalar.

    Args:
        student: It is put in train mode.
        optimizer: Of its parameters.
        pairs: Images and targets, in one batch.
        forward: Maps a student and images to its outputs `(n, D)`; an engine has one that is quicker.
    """
    student.train()
    outputs = forward(student, pairs.images)
    loss = functional.mse_loss(outputs.to(pairs.targets.dtype), pairs.targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()
