"""KRR-ST as it is written down first: what the fast implementation is compared with, in speed and in result.

Eager float32 in PyTorch's default layout, the teacher on every batch, features with the constant concatenated, the
system solved by LU; after algorithm 1 of Lee et al., ICLR 2024. Weights get no gradient of the outer loss here either.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.backbones import pre_logits

Part = Callable[[str], AbstractContextManager[None]]


class PlainDistiller:
    """Distils with one outer and one inner step at a time, without renewal of students.

    Args:
        images: First images, `(M, C, H, W)`.
        targets: First targets, `(M, D)`.
        students: The pool.
        lr: AdamW's learning rate of images and targets.
        ridge: Regularisation relative to the trace of the kernel.
        part: Counts the time of a part of the step; see `Stopwatch.part`.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        students: list[nn.Module],
        lr: float = 1e-4,
        ridge: float = 1e-6,
        part: Part = lambda name: nullcontext(),
    ) -> None:
        self.images = nn.Parameter(images.clone())
        self.targets = nn.Parameter(targets.clone())
        self.students = students
        self.ridge = ridge
        self.part = part
        self.outer = torch.optim.AdamW([self.images, self.targets], lr=lr, weight_decay=0.0)
        self.inner = [
            torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for student in students
        ]

    def step(self, slot: int, real_images: Tensor, teacher: Callable[[Tensor], Tensor]) -> Tensor:
        """Does one outer and one inner step with a student; returns the outer loss.

        Args:
            slot: Which student.
            real_images: `(B, C, H, W)`.
            teacher: Gives their targets, `(B, D)`.
        """
        student = self.students[slot].eval()
        with self.part("teacher"), torch.no_grad():
            wanted = teacher(real_images)
        with self.part("real features"), torch.no_grad():
            real = _with_one(pre_logits(student, real_images))
        with self.part("distilled features"):
            fitted = _with_one(pre_logits(student, self.images))
        with self.part("regression"):
            kernel = fitted @ fitted.T
            penalty = self.ridge * kernel.detach().trace() * torch.eye(len(kernel)).to(kernel)
            prediction = (real @ fitted.T) @ torch.linalg.solve(kernel + penalty, self.targets)
            loss = functional.mse_loss(prediction, wanted)
        with self.part("backward"):
            gradients = torch.autograd.grad(loss, [self.images, self.targets])
            self.images.grad, self.targets.grad = gradients
        with self.part("update"):
            self.outer.step()
        with self.part("inner step"):
            inner_loss = functional.mse_loss(student.train()(self.images.detach()), self.targets.detach())
            self.inner[slot].zero_grad()
            inner_loss.backward()  # type: ignore[no-untyped-call]
            self.inner[slot].step()
        return loss.detach()


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)
