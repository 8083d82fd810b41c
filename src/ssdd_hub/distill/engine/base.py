"""Interface of the engines, which compute the costly parts of a step; the mathematics is the same for all."""

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from ssdd_hub.bounds import Count, Positive, Settings, one_of
from ssdd_hub.distill.batches import Batches
from ssdd_hub.distill.engine.memory import MicroBatches
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.krr import Outer, Ridge, squared_error
from ssdd_hub.distill.pairs import Pairs

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
Precision = Annotated[str, one_of(PRECISIONS)]


@dataclass(frozen=True)
class EngineSettings(Settings, section="engine"):
    """How a step is computed; see `DistillerSettings` for all but `kind`.

    Attributes:
        kind: `fast`: whatever is quickest on the device. `eager`: the reference, plain PyTorch on all images at once,
            for which only the two precisions count.
    """

    kind: Annotated[str, one_of(("fast", "eager"))] = "fast"
    kernel_precision: Precision = "float32"
    precision: Precision = "float32"
    micro_batch: Count | None = None
    memory_budget: Positive | None = None
    compile: bool = False
    winograd: bool = True
    checkpointing: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of images, targets and students."""
        return PRECISIONS[self.precision]

    @property
    def kernel_dtype(self) -> torch.dtype:
        """Type in which the kernel is built and solved: never narrower than that of the students."""
        return torch.promote_types(PRECISIONS[self.kernel_precision], self.dtype)


class Engine(Protocol):
    """Computes the costly parts of a method's steps on one device.

    A student is a network with timm's `forward_features` and `forward_head`. Two students are of one architecture
    where they print alike and their parameters and buffers have the same shapes.

    Attributes:
        device: Where students and sets are.
        dtype: Type of images, targets and students.
        kernel_dtype: Type in which kernels are built and solved.
        watch: Seconds of each part of the steps.
        parts: How images pass the students, once the first outer step has planned it; None where nothing is planned.
    """

    device: torch.device
    dtype: torch.dtype
    kernel_dtype: torch.dtype
    watch: Stopwatch
    parts: MicroBatches | None

    def features(self, student: nn.Module, images: Tensor) -> Tensor:
        """Returns features `(n, F)` in eval mode, differentiable in the images `(n, C, H, W)`; weights are fixed."""

    def krr_gradients(
        self, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float | Ridge, outer: Outer = squared_error
    ) -> tuple[Tensor, ...]:
        """Returns the loss of `krr.Regression` on the features of a set and of real images, and its gradients.

        The gradients are those in images and targets of the set, and in what is learned of `outer` where that is a
        module; it is then always the same one.
        """

    def regression_step(self, student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
        """Takes one step of a student on the mean squared error of its head; returns the loss before it.

        The pairs are one batch; a student always has the same optimiser, with constant settings.
        """

    def forget(self) -> None:
        """Drops copies of students: states were loaded, or otherwise changed outside of `regression_step`."""
        return

    def prefetch(self, batches: Batches, steps: int) -> Batches:
        """Returns the same batches, prepared ahead where that helps; `steps` is their number."""
        return batches

    def launch_one_by_one(self) -> None:
        """Replays no CUDA graph from now on, so that the parts of a step can be timed on a GPU."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Returns the state on which rounding depends, for an exact resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        return
