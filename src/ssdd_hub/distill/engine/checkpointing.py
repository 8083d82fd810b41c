"""A step of a student that keeps only the activations between its blocks, and computes the others a second time."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import regression_step
from ssdd_hub.errors import InputError


def check_checkpointing(student: nn.Module) -> None:
    """Refuses a student that cannot recompute its activations; it is left without doing so."""
    try:
        student.set_grad_checkpointing(True)  # type: ignore[operator]
        student.set_grad_checkpointing(False)  # type: ignore[operator]
    except (AssertionError, AttributeError) as error:
        raise InputError(
            f"{type(student).__name__} has no activation checkpointing: leave out --distiller.checkpointing and lower "
            "--distiller.set-batch, or choose another student"
        ) from error


def checkpointed_step(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    pairs: Pairs,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """Does what `pool.regression_step` does, with gradients that differ by rounding at most.

    The student itself is called, and not its copy with weights passed in: the second pass would meet the copy's own.
    """
    before: list[Tensor] = []

    def forward(student: nn.Module, images: Tensor) -> Tensor:
        with autocast():
            outputs: Tensor = student(images)
        before.extend(buffer.clone() for buffer in student.buffers())
        return outputs

    student.set_grad_checkpointing(True)  # type: ignore[operator]
    try:
        return regression_step(student, optimizer, pairs, forward)
    finally:
        student.set_grad_checkpointing(False)  # type: ignore[operator]
        # The second pass has moved the statistics of batch norms once more.
        for buffer, value in zip(student.buffers(), before, strict=bool(before)):
            buffer.copy_(value)
