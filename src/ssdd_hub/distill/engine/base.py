"""The face of the engines: how the costly parts of a step are computed; the mathematics is the same for all."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssdd_hub.distill.batches import Batches
from ssdd_hub.distill.engine.memory import Parts
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import require

KINDS = ("fast", "eager")
PRECISIONS = ("float32", "float64")


@dataclass(frozen=True)
class EngineSettings:
    """How a step is computed.

    Attributes:
        kind: `fast`: with folded batch norm, in micro-batches, and with whatever else is quicker on the device.
            `eager`: the reference, plain PyTorch, of all images at once; `micro_batch`, `memory_budget`, `compile` and
            `winograd` change nothing there.
        kernel_precision: Type in which the kernel is built and solved.
        precision: Type of images, targets and students.
        micro_batch: Images per forward pass of the outer step; None for what is quick on the device.
        memory_budget: GiB for the activations of distilled images; None for half of the memory that is free.
        compile: Compile the networks with torch.compile; on a GPU also replay all launches of a step as one.
        winograd: Compute 3x3 convolutions of many channels by Winograd's algorithm, on the CPU in full precision.
    """

    kind: str = "fast"
    kernel_precision: str = "float32"
    precision: str = "float32"
    micro_batch: int | None = None
    memory_budget: float | None = None
    compile: bool = False
    winograd: bool = True

    def __post_init__(self) -> None:
        micro_batch, budget = self.micro_batch, self.memory_budget
        require(
            (self.kind in KINDS, f"the kind of engine must be one of {', '.join(KINDS)}, got {self.kind!r}"),
            *(
                (
                    getattr(self, name) in PRECISIONS,
                    f"{name} must be one of {', '.join(PRECISIONS)}, got {getattr(self, name)!r}",
                )
                for name in ("kernel_precision", "precision")
            ),
            (micro_batch is None or micro_batch >= 1, f"micro_batch must be at least 1, got {micro_batch}"),
            (budget is None or budget > 0, f"memory_budget must be above 0, got {budget}"),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of images, targets and students."""
        found: torch.dtype = getattr(torch, self.precision)
        return found

    @property
    def kernel_dtype(self) -> torch.dtype:
        """Type in which the kernel is built and solved: never narrower than that of the students."""
        return torch.promote_types(getattr(torch, self.kernel_precision), self.dtype)


class Engine(Protocol):
    """Computes for a method what takes the time, on one device.

    Attributes:
        device: Where students and sets are.
        dtype: Type of images, targets and students.
        kernel_dtype: Type in which kernels are built and solved.
        watch: Counts the seconds of each part of the steps.
        parts: How images pass the students, once the first outer step has planned it; None where it plans nothing.
    """

    device: torch.device
    dtype: torch.dtype
    kernel_dtype: torch.dtype
    watch: Stopwatch
    parts: Parts | None

    def features(self, student: nn.Module, images: Tensor) -> Tensor:
        """Returns a student's features `(n, F)` in eval mode; its weights are constants.

        Args:
            student: With timm's `forward_features` and `forward_head`. Two students are of one architecture where they
                print alike and their parameters and buffers have the same shapes.
            images: `(n, C, H, W)`, in its pixel space; the features are differentiable in them.
        """

    def krr_gradients(self, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float) -> tuple[Tensor, ...]:
        """Returns the loss of `krr.Regression` on a student's features, and its gradients in images and targets.

        Args:
            student: As for `features`.
            pairs: The set.
            real: Real images and their targets.
            ridge: Regularisation relative to the trace of the kernel.
        """

    def regression_step(self, student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
        """Takes one step of a student on the mean squared error of its head; returns the loss before it.

        Args:
            student: As for `features`.
            optimizer: Of its parameters, always the same one, with settings that stay.
            pairs: What it learns, in one batch.
        """

    def forget(self) -> None:
        """Drops copies of students: states were loaded, or otherwise changed outside of `regression_step`."""

    def prefetch(self, batches: Batches, steps: int) -> Batches:
        """Returns the same batches, prepared ahead where that helps; `steps` is their number."""

    def launch_one_by_one(self) -> None:
        """Replays nothing from now on, so that the parts of a step can be timed on a GPU."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what rounding depends on, for an exact resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
