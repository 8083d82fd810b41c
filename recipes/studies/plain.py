"""Plain KRR-ST without any speed-up: what `Distiller` is compared with, in speed and in result.

Eager float32 in PyTorch's default layout, the teacher on every batch, features with the constant concatenated, the
system solved by LU; after algorithm 1 of Lee et al., ICLR 2024. Weights get no gradient of the outer loss here either.
It shares no code with `Distiller` but the random streams, by which both draw the same students, ages and slots: the
same seed and settings give the same run but for rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.errors import require
from ssdd_hub.models.features import pre_logits
from ssdd_hub.seeds import generator, seeded

Part = Callable[[str], AbstractContextManager[None]]


class PlainDistiller:
    """Distils step by step, with all mathematics of `Distiller` and none of its speed-ups.

    Args:
        images: First images, `(M, C, H, W)`; all is computed in their type and on their device.
        targets: First targets, `(M, D)`.
        build: Returns a fresh student on the CPU; it is called under a seeded global generator.
        batches: Gives the real images of an outer step twice, each time `(B, C, H, W)`: as students see them, and as
            the teacher does.
        teacher: Gives the targets `(B, D)` of the latter.
        settings: The outer problem. `precision`, `kernel_precision`, `micro_batch`, `memory_budget`, `compile` and
            `winograd` are ignored; `pixel_space` and `augment` are for whoever gives images and batches.
        pool: The online students, of which `renewal` must be `train`.
        seed: Seed of the run.
        part: Counts the time of a part of the step; see `Stopwatch.part`.

    Attributes:
        images: The parameter `X_s`.
        targets: The parameter `Y_s`.
        outer_step: Outer steps done.
        ages: The age of each student.
        generations: How many students each slot has had before this one.

    Raises:
        SettingsError: The pool is to renew its students in another way.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        build: Callable[[], nn.Module],
        batches: Callable[[int], tuple[Tensor, Tensor]],
        teacher: Callable[[Tensor], Tensor],
        settings: DistillerSettings,
        pool: PoolSettings,
        seed: int,
        part: Part = lambda name: nullcontext(),
    ) -> None:
        require(
            (
                pool.renewal == "train",
                f"pool.renewal must be train in the plain implementation, got {pool.renewal!r}",
            )
        )
        self.images = nn.Parameter(images.clone())
        self.targets = nn.Parameter(targets.clone())
        self.build = build
        self.batches = batches
        self.teacher = teacher
        self.settings = settings
        self.pool = pool
        self.seed = seed
        self.part = part
        self.outer_step = 0
        self.outer = torch.optim.AdamW(
            [
                {"params": [self.images], "lr": settings.lr_images},
                {"params": [self.targets], "lr": settings.lr_targets},
            ],
            weight_decay=0.0,
        )
        self.ages, self.generations = [0] * pool.size, [0] * pool.size
        self.students = [self._fresh(slot) for slot in range(pool.size)]
        self.inner = [self._sgd(student) for student in self.students]

    def warm_up(self) -> Iterator[Tensor]:
        """Trains the first students to random ages in `[1, T)`, before the first step; yields each inner loss."""
        size, oldest = self.pool.size, self.pool.max_age
        if self.pool.warm_up and oldest > 1:
            ages = torch.randint(1, oldest, (size,), generator=generator(self.seed, "first ages")).tolist()
            for slot, age in enumerate(ages):
                for _ in range(age):
                    yield self._inner_step(slot)

    def step(self) -> dict[str, Any]:
        """Does one outer step, and the inner steps of the student that it drew.

        Returns:
            The outer `loss` and the last `inner_loss`, scalars; the drawn `student` and its `age` at the draw.
        """
        slot = int(torch.randint(self.pool.size, (), generator=generator(self.seed, "draw", self.outer_step)))
        age = self.ages[slot]
        with self.part("data"):
            real_images, pixels = self.batches(self.outer_step)
        loss = self._outer_loss(self.students[slot].eval(), real_images, pixels)
        with self.part("backward"):
            self.images.grad, self.targets.grad = torch.autograd.grad(loss, [self.images, self.targets])
        with self.part("update"):
            done = self.outer_step / self.settings.steps
            for group, first in zip(self.outer.param_groups, self._first_rates(), strict=True):
                group["lr"] = (1 - done) * first + done * self.settings.final_lr * first
            self.outer.step()
        with self.part("inner step"):
            for _ in range(self.settings.inner_steps):
                inner_loss = self._inner_step(slot)
                if self.ages[slot] == self.pool.max_age:
                    self._renew(slot)
        self.outer_step += 1
        return {"loss": loss.detach(), "inner_loss": inner_loss, "student": slot, "age": age}

    def _outer_loss(self, student: nn.Module, real_images: Tensor, pixels: Tensor) -> Tensor:
        with self.part("teacher"), torch.no_grad():
            wanted = self.teacher(pixels)
        with self.part("real features"), torch.no_grad():
            real = _with_one(pre_logits(student, real_images))
        with self.part("distilled features"):
            fitted = _with_one(pre_logits(student, self.images))
        with self.part("regression"):
            kernel = fitted @ fitted.T
            penalty = self.settings.ridge * kernel.detach().trace() * torch.eye(len(kernel)).to(kernel)
            prediction = (real @ fitted.T) @ torch.linalg.solve(kernel + penalty, self.targets)
            return functional.mse_loss(prediction, wanted)

    def _inner_step(self, slot: int) -> Tensor:
        outputs = self.students[slot].train()(self.images.detach())
        loss = functional.mse_loss(outputs, self.targets.detach())
        self.inner[slot].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.inner[slot].step()
        self.ages[slot] += 1
        return loss.detach()

    def _renew(self, slot: int) -> None:
        self.ages[slot] = 0
        self.generations[slot] += 1
        self.students[slot] = self._fresh(slot)
        self.inner[slot] = self._sgd(self.students[slot])

    def _fresh(self, slot: int) -> nn.Module:
        with seeded(self.seed, "student", slot, self.generations[slot]):
            student = self.build()
        return student.to(self.images.device, self.images.dtype)

    def _sgd(self, student: nn.Module) -> torch.optim.SGD:
        rate, momentum, decay = self.pool.learning_rate, self.pool.momentum, self.pool.weight_decay
        return torch.optim.SGD(student.parameters(), lr=rate, momentum=momentum, weight_decay=decay)

    def _first_rates(self) -> tuple[float, float]:
        return self.settings.lr_images, self.settings.lr_targets


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)
