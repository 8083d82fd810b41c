"""The engine of ordinary runs: folded batch norm, Winograd, torch.compile, CUDA graphs, micro-batches."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssdd_hub.distill.batches import Batches
from ssdd_hub.distill.engine.base import EngineSettings
from ssdd_hub.distill.engine.compiled import SharedForward
from ssdd_hub.distill.engine.folded import FoldedFeatures
from ssdd_hub.distill.engine.krr_gradients import KrrGradients
from ssdd_hub.distill.engine.memory import CPU_PART, Parts
from ssdd_hub.distill.engine.prefetch import Ahead
from ssdd_hub.distill.engine.stage import Stage, Step
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.engine.winograd import pays
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import regression_step


class _Architecture:
    """What all students of one architecture share.

    Args:
        student: One of them; it is copied.
        compiled: Whether to compile.
        winograd: Whether to compute 3x3 convolutions of many channels by Winograd's algorithm.
        step: Takes a step launch by launch, where steps are to be recorded; else None.
    """

    def __init__(self, student: nn.Module, compiled: bool, winograd: bool, step: Step | None) -> None:
        self.folded = FoldedFeatures(student, compiled, winograd)
        self.forward: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__
        if compiled or winograd:
            self.forward = SharedForward(student.train(), compiled, winograd)
        self.stage = None if step is None else Stage(student, step)


class FastEngine:
    """The engine that does each part as is quickest on the device.

    Args:
        settings: See `EngineSettings`.
        accelerator: Device and mixed precision. The kernel is never built in reduced precision.

    Attributes:
        krr: Computes the gradients of kernel regressions.
    """

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        self.device = accelerator.device
        self.dtype, self.kernel_dtype = settings.dtype, settings.kernel_dtype
        self._settings, self._accelerator = settings, accelerator
        self._winograd = settings.winograd and pays(accelerator.device, accelerator.mixed_precision)
        self._recording = settings.compile and accelerator.device.type == "cuda"
        self._architectures: dict[tuple[Any, ...], _Architecture] = {}
        self._known: WeakKeyDictionary[nn.Module, _Architecture] = WeakKeyDictionary()
        budget = settings.memory_budget
        self.krr = KrrGradients(
            accelerator,
            settings.kernel_dtype,
            recording=self._recording,
            micro_batch=settings.micro_batch,
            budget=None if budget is None else int(budget * 2**30),
        )

    @property
    def watch(self) -> Stopwatch:
        """Counts the seconds of each part of the steps."""
        return self.krr.watch

    @watch.setter
    def watch(self, watch: Stopwatch) -> None:
        self.krr.watch = watch

    @property
    def parts(self) -> Parts | None:
        """How images pass the students, once the first outer step has planned it."""
        return self.krr.parts

    @parts.setter
    def parts(self, parts: Parts | None) -> None:
        self.krr.parts = parts

    def features(self, student: nn.Module, images: Tensor) -> Tensor:
        """See `Engine.features`."""
        folded = self._architecture(student).folded
        read = partial(self.krr.features, folded, folded.weights(student))
        size = self._settings.micro_batch or (CPU_PART if self.device.type == "cpu" else len(images))
        return torch.cat([read(part) for part in Parts(size, recompute=False).split(images)])

    def krr_gradients(self, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float) -> tuple[Tensor, ...]:
        """See `Engine.krr_gradients`."""
        shared = self._architecture(student)
        # A recording reads the stage, whose student then is always the same module.
        student = student if shared.stage is None else shared.stage.show(student)
        return self.krr(shared.folded, student, pairs, real, ridge)

    def regression_step(self, student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
        """See `Engine.regression_step`."""
        stage = self._architecture(student).stage
        if stage is None:
            return self._step(student, optimizer, pairs)
        if type(optimizer) is torch.optim.SGD:
            return stage.step(student, optimizer, pairs)
        # Of another optimiser's state the stage knows nothing.
        stage.leave()
        return self._step(student, optimizer, pairs)

    def forget(self) -> None:
        """See `Engine.forget`."""
        for shared in self._architectures.values():
            if shared.stage is not None:
                shared.stage.forget()

    def prefetch(self, batches: Batches, steps: int) -> Batches:
        """See `Engine.prefetch`."""
        return Ahead(batches, steps) if self._recording else batches

    def launch_one_by_one(self) -> None:
        """See `Engine.launch_one_by_one`."""
        self.krr.recording = self._recording = False
        for shared in self._architectures.values():
            shared.stage = None

    def state_dict(self) -> dict[str, Any]:
        """Returns how images pass: another size rounds otherwise, and free memory differs from start to start."""
        return {"parts": None if self.parts is None else asdict(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.parts = Parts(**state["parts"]) if state.get("parts") else None

    def _step(self, student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
        return regression_step(student, optimizer, pairs, self._forward)

    def _forward(self, student: nn.Module, images: Tensor) -> Tensor:
        with self._accelerator.autocast():
            return self._architecture(student).forward(student, images)

    def _architecture(self, student: nn.Module) -> _Architecture:
        found = self._known.get(student)
        if found is None:
            shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in student.state_dict().items())
            key = (type(student), str(student), shapes)
            if key not in self._architectures:
                step = self._step if self._recording else None
                self._architectures[key] = _Architecture(student, self._settings.compile, self._winograd, step)
            found = self._known[student] = self._architectures[key]
        return found
