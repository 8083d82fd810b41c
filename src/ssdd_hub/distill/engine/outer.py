"""The outer loss of a drawn student and its gradients, in parts that the memory has room for."""

import logging
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from ssdd_hub.distill.engine.cuda_graphs import CannotRecord, Recorded, copy_all
from ssdd_hub.distill.engine.folded import FrozenFeatures, Weights
from ssdd_hub.distill.engine.memory import Parts, plan_parts
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.engine.winograd import pays
from ssdd_hub.distill.krr import Regression

_LOG = logging.getLogger(__name__)


class OuterGradient:
    """Loss and gradients of the regression that a student's features make of a distilled set.

    Args:
        student: One of the pool; it is copied.
        images: The parameter `X_s`, `(M, C, H, W)`; it stays where it is.
        targets: The parameter `Y_s`, `(M, D)`; likewise.
        batch_size: Real images `B` over all processes.
        ridge: Regularisation relative to the trace of the kernel.
        kernel_dtype: Type in which the kernel is built and solved.
        accelerator: Device, processes and mixed precision. The kernel is never built in reduced precision.
        compiled: Compile the networks; on a GPU also record all launches as one.
        winograd: See `DistillerSettings`.
        micro_batch: Images per forward pass; None for what is quick on the device.
        budget: Bytes for activations; None for half of the memory that is free.

    Attributes:
        parts: How images pass the students, once the first call has planned it.
        watch: Counts the seconds of each part.
    """

    def __init__(
        self,
        student: nn.Module,
        images: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        ridge: float,
        kernel_dtype: torch.dtype,
        accelerator: Accelerator,
        compiled: bool = False,
        winograd: bool = False,
        micro_batch: int | None = None,
        budget: int | None = None,
    ) -> None:
        self.images, self.targets = images, targets
        self.batch_size, self.ridge, self.kernel_dtype = batch_size, ridge, kernel_dtype
        self.accelerator = accelerator
        self.micro_batch, self.budget = micro_batch, budget
        winograd = winograd and pays(accelerator.device, accelerator.mixed_precision)
        self.frozen = FrozenFeatures(student, compiled, winograd)
        self.parts: Parts | None = None
        self.watch = Stopwatch()
        self.recording = compiled and accelerator.device.type == "cuda"
        self._recorded: Recorded[list[Tensor]] | None = None
        self._recorded_of: tuple[nn.Module, Parts] | None = None

    def __call__(self, student: nn.Module, real_images: Tensor, real_targets: Tensor) -> list[Tensor]:
        """Returns this process's share of the loss and its gradients in images and targets.

        Args:
            student: Of the architecture; its weights rest. When launches are recorded it is always the same module.
            real_images: This process's part of the batch, `(b, C, H, W)`.
            real_targets: Their targets, `(b, D)`.
        """
        while True:
            if self.parts is None:
                self.parts = self._plan(self.frozen.weights(student), len(real_images))
            try:
                if self.recording:
                    return self._again(student, real_images, real_targets, self.parts)
                return self._by_parts(self.frozen.weights(student), real_images, real_targets, self.parts)
            except CannotRecord as error:
                _LOG.warning("%s; outer gradients are computed launch by launch", error)
                self.recording = False
            except RuntimeError as error:
                smaller = self.parts.smaller() if should_reduce_batch_size(error) else None
                if smaller is None:
                    raise
                self.parts, self._recorded = smaller, None
                _LOG.warning("the memory is full: from here on images pass in %s", smaller)

    def _again(self, student: nn.Module, real_images: Tensor, real_targets: Tensor, parts: Parts) -> list[Tensor]:
        """Does the same by a recording, which reads a copy of the batch."""
        if self._recorded is None or self._recorded_of != (student, parts):
            self._batch = real_images.clone(), real_targets.clone()
            self._recorded = Recorded(lambda: self._by_parts(self.frozen.weights(student), *self._batch, parts))
            self._recorded_of = student, parts
        copy_all(self._batch, (real_images, real_targets))
        loss, *gradients = self._recorded()
        # Gradients are used before the next step; a loss is read long after it.
        return [loss.clone(), *gradients]

    def _plan(self, weights: Weights, real: int) -> Parts:
        """Returns how the images pass a student; other processes may plan otherwise."""
        forward = partial(self.frozen.plain, weights)
        return plan_parts(forward, self.images.detach(), self.micro_batch, self.budget, real)

    def _by_parts(self, weights: Weights, real_images: Tensor, real_targets: Tensor, parts: Parts) -> list[Tensor]:
        """Returns the loss and its gradients in images and targets."""
        watch, features = self.watch, partial(self._features, weights)
        images = [part.requires_grad_() for part in parts.split(self.images.detach())]
        with watch.part("distilled features"), torch.set_grad_enabled(not parts.recompute):
            kept = [features(part) for part in images]
        # The factorisation of the kernel leaves most of a GPU idle.
        beside = _Beside(self.recording)
        with watch.part("real features"), beside:
            real_features = torch.cat([features(part) for part in parts.split(real_images)])
        with watch.part("regression"), torch.autocast(self.accelerator.device.type, enabled=False):
            distilled_features = torch.cat([part.detach() for part in kept]).requires_grad_()
            fitted = self._fit(distilled_features)
            beside.join()
            loss = self._loss(fitted, real_features, real_targets)
            gradient, targets_gradient = torch.autograd.grad(loss, [distilled_features, self.targets])
        with watch.part("backward"):
            images_gradient = [
                torch.autograd.grad(features(part) if parts.recompute else feature, part, out)[0]
                for part, feature, out in zip(images, kept, parts.split(gradient), strict=True)
            ]
        return [loss.detach(), torch.cat(images_gradient), targets_gradient]

    def _fit(self, features: Tensor) -> Regression:
        exact = features.dtype == torch.bfloat16 and self.kernel_dtype == torch.float32
        exact_in = torch.bfloat16 if exact else None
        return Regression(features.to(self.kernel_dtype), self.targets.to(self.kernel_dtype), self.ridge, exact_in)

    def _loss(self, regression: Regression, real_features: Tensor, real_targets: Tensor) -> Tensor:
        """Returns this process's share of the outer loss."""
        # The mean over processes of these is the mean over the whole batch, also when the slices differ in size.
        share: float = len(real_features) * self.accelerator.num_processes / self.batch_size
        # What the regression multiplies in a narrower type it takes in that.
        narrow = real_features.is_cuda and real_features.dtype == regression.exact_in
        features = real_features if narrow and not regression.in_feature_space else real_features.to(self.kernel_dtype)
        return regression.loss(features, real_targets.to(self.kernel_dtype)) * share

    def _features(self, weights: Weights, images: Tensor) -> Tensor:
        """Returns features `(n, F)`; in eval mode no image sees another."""
        features: Tensor
        with self.accelerator.autocast():
            features = self.frozen(weights, images.contiguous(memory_format=torch.channels_last))
        return features


class _Beside:
    """A second stream of a GPU, whose work and that of the first fill each other's gaps; nothing where it is off."""

    def __init__(self, on: bool) -> None:
        self._stream = torch.cuda.Stream() if on else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> None:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
            self._context = torch.cuda.stream(self._stream)
            self._context.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: object) -> None:
        if self._stream is not None:
            self._context.__exit__(*exception)

    def join(self) -> None:
        """Lets the first stream wait for the second."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
