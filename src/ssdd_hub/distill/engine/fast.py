"""The engine of ordinary runs: folded batch norm, Winograd, torch.compile, CUDA graphs, micro-batches."""

import copy
import logging
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from ssdd_hub.distill.batches import Ahead, Batches
from ssdd_hub.distill.engine.base import Engine, EngineSettings
from ssdd_hub.distill.engine.checkpointing import checkpointed_step
from ssdd_hub.distill.engine.compiled import SharedForward, Weights, weights_of
from ssdd_hub.distill.engine.cuda_graphs import CannotRecord, Recorded, SideStream, copy_all
from ssdd_hub.distill.engine.folded import FoldedFeatures
from ssdd_hub.distill.engine.krr_gradients import Form, gradients_by_parts
from ssdd_hub.distill.engine.memory import CPU_PART, MicroBatches, plan_micro_batches
from ssdd_hub.distill.engine.stage import Stage, Step
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.engine.winograd import train_by_winograd, use_winograd
from ssdd_hub.distill.krr import Outer, Ridge, squared_error
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import regression_step

_LOG = logging.getLogger(__name__)


class _Architecture:
    """What all students of one architecture share; `step` is given where steps are recorded."""

    def __init__(self, student: nn.Module, compiled: bool, winograd: bool, step: Step | None) -> None:
        self.folded = FoldedFeatures(student, compiled, winograd)
        self._shared: SharedForward | None = None
        if compiled or winograd:
            template = copy.deepcopy(student).train()
            self._shared = SharedForward(train_by_winograd(template) if winograd else template, compiled)
        self.stage = None if step is None else Stage(student, step)

    def train(self, student: nn.Module, images: Tensor) -> Tensor:
        """Returns the outputs of a student in train mode."""
        outputs: Tensor = student(images) if self._shared is None else self._shared(weights_of(student), images)
        return outputs


class FastEngine(Engine):
    """The engine that computes each part as is quickest on the device."""

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        self.device = accelerator.device
        self.dtype, self.kernel_dtype = settings.dtype, settings.kernel_dtype
        self.watch = Stopwatch()
        self.parts: MicroBatches | None = None
        self._settings, self._accelerator = settings, accelerator
        self.winograd = settings.winograd and use_winograd(accelerator.device, accelerator.mixed_precision)
        # Inner steps, and outer gradients, each until one cannot be recorded.
        self._recording = self._recording_gradients = settings.compile and accelerator.device.type == "cuda"
        self._recorded: Recorded[tuple[Tensor, ...]] | None = None
        self._recorded_of: tuple[Any, ...] | None = None
        self._architectures: dict[tuple[Any, ...], _Architecture] = {}
        self._known: WeakKeyDictionary[nn.Module, _Architecture] = WeakKeyDictionary()

    def features(self, student: nn.Module, images: Tensor) -> Tensor:
        """See `Engine.features`."""
        folded = self._architecture(student).folded
        read = partial(self._read, folded, folded.weights(student))
        size = self._settings.micro_batch or (CPU_PART if self.device.type == "cpu" else len(images))
        return torch.cat([read(part) for part in MicroBatches(size, recompute=False).split(images)])

    def krr_gradients(
        self, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float | Ridge, outer: Outer = squared_error
    ) -> tuple[Tensor, ...]:
        """See `Engine.krr_gradients`; the parts are halved when the memory is full."""
        shared = self._architecture(student)
        # A recording reads the stage, whose student then is always the same module.
        student = student if shared.stage is None else shared.stage.show(student)
        while True:
            if self.parts is None:
                self.parts = self._plan(shared.folded, student, pairs, real)
            compute = self._replay if self._recording_gradients else self._by_parts
            try:
                return compute(shared.folded, student, pairs, real, (ridge, outer), self.parts)
            except CannotRecord as error:
                _LOG.warning("%s; outer gradients are computed launch by launch", error)
                self._recording_gradients = False
            except RuntimeError as error:
                smaller = self.parts.smaller() if should_reduce_batch_size(error) else None
                if smaller is None:
                    raise
                self.parts, self._recorded = smaller, None
                _LOG.warning("the memory is full: from here on images pass in %s", smaller)

    def regression_step(self, student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
        """See `Engine.regression_step`."""
        stage = self._architecture(student).stage
        if stage is None:
            return self._step(student, optimizer, pairs)
        if type(optimizer) is torch.optim.SGD:
            return stage.step(student, optimizer, pairs)
        # The stage knows the state of SGD alone.
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
        self._recording = self._recording_gradients = False
        for shared in self._architectures.values():
            shared.stage = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the parts: another size rounds otherwise, and free memory differs from start to start."""
        return {"parts": None if self.parts is None else asdict(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Engine.load_state_dict`."""
        self.parts = MicroBatches(**state["parts"]) if state.get("parts") else None

    def _read(self, folded: FoldedFeatures, weights: Weights, images: Tensor) -> Tensor:
        features: Tensor
        with self._accelerator.autocast():
            features = folded(weights, images.contiguous(memory_format=torch.channels_last))
        return features

    def _plan(self, folded: FoldedFeatures, student: nn.Module, pairs: Pairs, real: Pairs) -> MicroBatches:
        """Returns how the images pass a student; other processes may plan otherwise."""
        forward, budget = partial(folded.plain, folded.weights(student)), self._settings.memory_budget
        size, most = self._settings.micro_batch, None if budget is None else int(budget * 2**30)
        return plan_micro_batches(forward, pairs.images.detach(), size, most, len(real.images))

    def _by_parts(
        self, folded: FoldedFeatures, student: nn.Module, pairs: Pairs, real: Pairs, form: Form, parts: MicroBatches
    ) -> tuple[Tensor, ...]:
        features = partial(self._read, folded, folded.weights(student))
        side = SideStream(self._recording_gradients)
        return gradients_by_parts(features, pairs, real, form, parts, self.kernel_dtype, self.watch, side)

    def _replay(
        self, folded: FoldedFeatures, student: nn.Module, pairs: Pairs, real: Pairs, form: Form, parts: MicroBatches
    ) -> tuple[Tensor, ...]:
        """Does the same by a recording, which reads copies of the set and of the batch."""
        if self._recorded is None or self._recorded_of != (student, parts, form):
            self._inputs = [part.clone() for part in (*pairs, *real)]
            own, batch = Pairs(*self._inputs[:2]), Pairs(*self._inputs[2:])
            self._recorded = Recorded(lambda: self._by_parts(folded, student, own, batch, form, parts))
            self._recorded_of = student, parts, form
        copy_all(self._inputs, (*pairs, *real))
        loss, *gradients = self._recorded()
        # Gradients are used before the next step; a loss is read long after it.
        return (loss.clone(), *gradients)

    def _step(self, student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
        if not self._settings.checkpointing:
            return regression_step(student, optimizer, pairs, self._forward)
        return checkpointed_step(student, optimizer, pairs, self._accelerator.autocast)

    def _forward(self, student: nn.Module, images: Tensor) -> Tensor:
        with self._accelerator.autocast():
            return self._architecture(student).train(student, images)

    def _architecture(self, student: nn.Module) -> _Architecture:
        found = self._known.get(student)
        if found is None:
            shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in student.state_dict().items())
            key = (type(student), str(student), shapes)
            if key not in self._architectures:
                step = self._step if self._recording else None
                self._architectures[key] = _Architecture(student, self._settings.compile, self.winograd, step)
            found = self._known[student] = self._architectures[key]
        return found
