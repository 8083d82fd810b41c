"""The pool of online students: draw one, let it take an inner step, renew it at age `T`.

Source: Lee et al., ICLR 2024, arXiv 2310.06511, algorithm 1. Their released code never sets a renewed student's age
back, so that in the long run every draw meets a network that was never trained: `renewal: never-train` does the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.bounds import Count, Fraction, Positive, Repeats, Settings, Weight, one_of
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.models.layout import quick_layout
from ssdd_hub.models.muon import build_muon
from ssdd_hub.runs.machine import require_memory
from ssdd_hub.seeds import draw_distinct, generator, seeded, seeded_training

InnerStep = Callable[[nn.Module, torch.optim.Optimizer, Pairs], Tensor]


@dataclass(frozen=True)
class PoolSettings(Settings, section="pool"):
    """How many students there are, how they age, and how they are trained.

    Attributes:
        size: Number of students `P`.
        max_age: Age `T`, in inner steps, at which a student is renewed.
        renewal: `train`: a renewed student has age 0 and ages like any other. `never-train`: as in the authors' code,
            a slot that has reached `max_age` once gets a fresh student at each visit, which takes no step.
        warm_up: Train each first student for a random age in `[1, max_age)` before the first outer step.
        learning_rate: Of the inner steps.
        momentum: Of the inner steps; of Adam the decay of the first moment, that of the second is 0.999.
        weight_decay: Of the inner steps, as an L2 penalty; of Muon it is decoupled.
        optimizer: Of the inner steps; `muon` is timm's, which takes another learning rate.
    """

    size: Repeats = 10
    max_age: Count = 1000
    renewal: Annotated[str, one_of(("train", "never-train"))] = "train"
    warm_up: bool = True
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.9
    weight_decay: Weight = 1e-3
    optimizer: Annotated[str, one_of(("sgd", "adam", "muon"))] = "sgd"

    def build_optimizer(self, student: nn.Module, fused: bool) -> torch.optim.Optimizer:
        """Returns a fresh optimiser of a student; the fused form is for GPUs."""
        rates: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "muon":
            return build_muon(student, self.momentum, **rates)
        rest = {**rates, "fused": fused}
        if self.optimizer == "adam":
            return torch.optim.Adam(student.parameters(), betas=(self.momentum, 0.999), **rest)
        return torch.optim.SGD(student.parameters(), momentum=self.momentum, **rest)


def require_room(settings: PoolSettings, student: nn.Module, device: torch.device | str) -> int:
    """Returns the bytes of the weights of so many students and their moments.

    Raises:
        InputError: A device cannot hold them.
    """
    weights = sum(parameter.numel() * parameter.itemsize for parameter in student.parameters())
    each = (3 if settings.optimizer == "adam" else 2) * weights
    require_memory("--pool.size", settings.size, each, device)
    return settings.size * each


@dataclass
class PooledStudent:
    """One slot of the pool: a student, its optimiser, its age in inner steps, and the number of students before it."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    age: int
    generation: int


class StudentPool:
    """`P` students of different ages.

    Everything random in it (first weights, first ages, draws, dropout) is a function of the seed and of counters.

    Args:
        build: Returns a fresh student on the CPU; it is called under a seeded global generator.
        settings: See `PoolSettings`.
        seed: Seed of the run.
        device: Where the students are.
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
        self.build, self.settings, self.seed = build, settings, seed
        self.device, self.dtype = device, dtype
        self.step: InnerStep = step or regression_step
        first = self._fresh(0, generation=0)
        require_room(settings, first.module, device)
        self.students = [first, *(self._fresh(slot, generation=0) for slot in range(1, settings.size))]

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

    def warm_up(self, images: Tensor, targets: Tensor, batch_size: int | None = None) -> Iterator[Tensor]:
        """Trains each student to its first age on images `(M, C, H, W)` and targets `(M, D)`; yields each loss.

        `batch_size` is the number of images of a step, drawn anew for each; None for all.
        """
        step = 0
        for slot, (student, age) in enumerate(zip(self.students, self.first_ages(), strict=True)):
            while student.age < age:
                if batch_size is None or batch_size >= len(images):
                    yield self._inner_step(slot, images, targets)
                else:
                    rows = draw_distinct(len(images), batch_size, self.seed, "warm-up batch", step).to(images.device)
                    yield self._inner_step(slot, images[rows], targets[rows])
                step += 1

    def draw(self, step: int) -> int:
        """Returns the slot that outer step `step` uses, uniform and a function of `(seed, step)` alone."""
        return int(torch.randint(self.settings.size, (), generator=generator(self.seed, "draw", step)))

    def student(self, slot: int) -> nn.Module:
        """Returns the student of a slot."""
        return self.students[slot].module

    def advance(self, slot: int, images: Tensor, targets: Tensor) -> Tensor | None:
        """Ages a slot by one: an inner step on the new set, without a graph, and renewal at `max_age`.

        Returns the inner loss before the step, a scalar; None when `never-train` replaced the student instead.
        """
        student, settings = self.students[slot], self.settings
        if settings.renewal == "never-train" and student.age >= settings.max_age:
            self.students[slot] = self._fresh(slot, student.generation + 1, age=student.age)
            return None
        loss = self._inner_step(slot, images, targets)
        if settings.renewal == "train" and student.age >= settings.max_age:
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
        """Restores what `state_dict` returned from a pool of the same settings."""
        for student, saved in zip(self.students, state["students"], strict=True):
            student.module.load_state_dict(saved["module"])
            student.optimizer.load_state_dict(saved["optimizer"])
            for parameter, state in student.optimizer.state.items():
                # As before they were saved: in the memory layout of their parameter.
                moments = {key: part for key, part in state.items() if torch.is_tensor(part) and part.ndim}
                state |= {key: torch.empty_like(parameter).copy_(part) for key, part in moments.items()}
            student.age, student.generation = saved["age"], saved["generation"]

    def _fresh(self, slot: int, generation: int, age: int = 0) -> PooledStudent:
        with seeded(self.seed, "student", slot, generation):
            module = self.build()
        layout = quick_layout(module, self.device)
        module = module.to(device=self.device, dtype=self.dtype, memory_format=layout)  # type: ignore[call-overload]
        optimizer = self.settings.build_optimizer(module, fused=torch.device(self.device).type == "cuda")
        return PooledStudent(module, optimizer, age, generation)

    def _inner_step(self, slot: int, images: Tensor, targets: Tensor) -> Tensor:
        student = self.students[slot]
        student.age += 1
        with seeded_training(student.module, self.seed, "dropout", slot, student.generation, student.age):
            return self.step(student.module, student.optimizer, Pairs(images, targets))


def regression_step(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    pairs: Pairs,
    forward: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__,
) -> Tensor:
    """Takes one step, in train mode, on the mean squared error of a student's head; returns the loss before it.

    `forward` maps a student and images to its outputs `(n, D)`; an engine has one that is quicker.
    """
    student.train()
    outputs = forward(student, pairs.images)
    loss = functional.mse_loss(outputs.to(pairs.targets.dtype), pairs.targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()
