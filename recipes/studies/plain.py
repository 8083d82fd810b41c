"""Plain KRR-ST, the parts of `krr_st_minimal.py` with all settings: what `Distiller` is compared with.

Eager float32 in PyTorch's default layout, the teacher on every batch. It shares no code with `Distiller` but the
random streams, by which both draw the same students, ages and slots: one seed gives one run but for rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from krr_st_minimal import Pool, regression_error
from ssdd_hub.data import crop_flip, draw_views
from ssdd_hub.distill import DistillerSettings, PoolSettings
from ssdd_hub.errors import Check, require
from ssdd_hub.models import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs import keep_freed_memory
from ssdd_hub.seeds import draw_batch, generator, seeded

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
        settings: The outer problem; what says how a step is computed is ignored.
        pool: The online students, of which `renewal` must be `train`.
        seed: Seed of the run.
        part: Counts the time of a part of the step; see `Stopwatch.part`.

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
        require(*plain_checks(settings, pool))
        self.images, self.targets = nn.Parameter(images.clone()), nn.Parameter(targets.clone())
        self.batches, self.teacher, self.settings, self.seed, self.part = batches, teacher, settings, seed, part
        self.warms_up, self.outer_step = pool.warm_up and pool.max_age > 1, 0
        groups = [
            {"params": [self.images], "lr": settings.lr_images},
            {"params": [self.targets], "lr": settings.lr_targets},
        ]
        self.outer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.generations = [-1] * pool.size

        def fresh(slot: int) -> nn.Module:
            self.generations[slot] += 1
            with seeded(seed, "student", slot, self.generations[slot]):
                student = build()
            return student.to(images.device, images.dtype)

        sgd = {"lr": pool.learning_rate, "momentum": pool.momentum, "weight_decay": pool.weight_decay}
        self.pool = Pool(fresh, pool.size, pool.max_age, **sgd)

    def warm_up(self) -> Iterator[Tensor]:
        """Trains the first students to random ages in `[1, T)`, before the first step; yields each inner loss."""
        drawn = generator(self.seed, "first ages")
        if self.warms_up:
            ages = torch.randint(1, self.pool.max_age, (len(self.pool.ages),), generator=drawn).tolist()
            for slot, age in enumerate(ages):
                for _ in range(age):
                    yield self.pool.train(slot, self.images, self.targets)

    def step(self) -> dict[str, Any]:
        """Does one outer step, and the inner steps of the student that it drew.

        Returns:
            The outer `loss` and the last `inner_loss`, scalars; the drawn `student` and its `age` at the draw.
        """
        settings, pool = self.settings, self.pool
        slot = int(torch.randint(len(pool.ages), (), generator=generator(self.seed, "draw", self.outer_step)))
        age, student = pool.ages[slot], pool.students[slot].eval()
        with self.part("data"):
            real_images, pixels = self.batches(self.outer_step)
        with self.part("teacher"), torch.no_grad():
            wanted = self.teacher(pixels)
        with self.part("real features"), torch.no_grad():
            known = pre_logits(student, real_images)
        with self.part("distilled features"):
            fitted = pre_logits(student, self.images)
        with self.part("regression"):
            loss = regression_error(fitted, self.targets, known, wanted, settings.ridge)
        with self.part("backward"):
            self.images.grad, self.targets.grad = torch.autograd.grad(loss, [self.images, self.targets])
        with self.part("update"):
            done, rates = self.outer_step / settings.steps, (settings.lr_images, settings.lr_targets)
            for group, first in zip(self.outer.param_groups, rates, strict=True):
                group["lr"] = (1 - done) * first + done * settings.final_lr * first
            self.outer.step()
        with self.part("inner step"):
            for _ in range(settings.inner_steps):
                inner_loss = pool.train(slot, self.images, self.targets)
        self.outer_step += 1
        return {"loss": loss.detach(), "inner_loss": inner_loss, "student": slot, "age": age}


def plain_checks(settings: DistillerSettings, pool: PoolSettings) -> Iterator[Check]:
    """Yields that settings are those of which there is a plain implementation."""
    for name, given, kept in (
        ("pool.renewal", pool.renewal, "train"),
        ("pool.optimizer", pool.optimizer, "sgd"),
        ("distiller.optimizer", settings.optimizer, "adamw"),
        ("distiller.set_batch", settings.set_batch, None),
    ):
        yield given == kept, f"{name} must be {kept or 'left out'} in the plain implementation, got {given!r}"


def real_batches(
    pixels: Tensor, space: PixelSpace, settings: DistillerSettings, seed: int, device: torch.device
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Returns batches of uint8 pixels `(N, C, H, W)`, cropped and flipped anew where the settings ask for it."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        indices = draw_batch(len(pixels), settings.batch_size, seed, "real batch", step)
        seen = pixels[indices].to(device).float() / 255
        if settings.augment:
            seen = crop_flip(seen, draw_views(settings.batch_size, generator(seed, "augment", step)))
        return space.normalise(seen), seen

    return batch


@contextmanager
def giving_memory_back(device: torch.device) -> Iterator[None]:
    """Gives freed memory back on the CPU, as the C library does by itself: to keep it is a speed-up of the recipes."""
    if device.type == "cpu":
        keep_freed_memory(False)
    try:
        yield
    finally:
        if device.type == "cpu":
            keep_freed_memory()
