"""The loss of a kernel regression on student features and its gradients, in parts that the memory has room for."""

import logging
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from ssdd_hub.distill.engine.cuda_graphs import CannotRecord, Recorded, copy_all
from ssdd_hub.distill.engine.folded import FoldedFeatures, Weights
from ssdd_hub.distill.engine.memory import Parts, plan_parts
from ssdd_hub.distill.engine.narrow_kernel import narrow_kernel
from ssdd_hub.distill.engine.ridge_solve import solve_ridge
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.krr import Regression, linear_kernel
from ssdd_hub.distill.pairs import Pairs

_LOG = logging.getLogger(__name__)


class KrrGradients:
    """Loss and gradients of the regression that a student's features make of a set.

    Args:
        accelerator: Device and mixed precision. The kernel is never built in reduced precision.
        kernel_dtype: Type in which the kernel is built and solved.
        recording: Record all launches as one, on a GPU.
        micro_batch: Images per forward pass; None for what is quick on the device.
        budget: Bytes for activations; None for half of the memory that is free.

    Attributes:
        parts: How images pass the students, once the first call has planned it.
        watch: Counts the seconds of each part.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        kernel_dtype: torch.dtype,
        *,
        recording: bool = False,
        micro_batch: int | None = None,
        budget: int | None = None,
    ) -> None:
        self.accelerator, self.kernel_dtype = accelerator, kernel_dtype
        self.micro_batch, self.budget = micro_batch, budget
        self.parts: Parts | None = None
        self.watch = Stopwatch()
        self.recording = recording
        self._recorded: Recorded[tuple[Tensor, ...]] | None = None
        self._recorded_of: tuple[nn.Module, Parts, float] | None = None

    def __call__(
        self, folded: FoldedFeatures, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float
    ) -> tuple[Tensor, ...]:
        """Returns the loss and its gradients in images and targets.

        Args:
            folded: The features of the student's architecture.
            student: Its weights are constants. When launches are recorded it is always the same module.
            pairs: The set.
            real: Real images and their targets.
            ridge: Regularisation relative to the trace of the kernel.
        """
        while True:
            if self.parts is None:
                self.parts = self._plan(folded, student, pairs, real)
            try:
                if self.recording:
                    return self._again(folded, student, pairs, real, ridge, self.parts)
                return self._by_parts(folded, student, pairs, real, ridge, self.parts)
            except CannotRecord as error:
                _LOG.warning("%s; outer gradients are computed launch by launch", error)
                self.recording = False
            except RuntimeError as error:
                smaller = self.parts.smaller() if should_reduce_batch_size(error) else None
                if smaller is None:
                    raise
                self.parts, self._recorded = smaller, None
                _LOG.warning("the memory is full: from here on images pass in %s", smaller)

    def features(self, folded: FoldedFeatures, weights: Weights, images: Tensor) -> Tensor:
        """Returns features `(n, F)`; in eval mode no image sees another."""
        features: Tensor
        with self.accelerator.autocast():
            features = folded(weights, images.contiguous(memory_format=torch.channels_last))
        return features

    def _again(
        self, folded: FoldedFeatures, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float, parts: Parts
    ) -> tuple[Tensor, ...]:
        """Does the same by a recording, which reads copies of the set and of the batch."""
        if self._recorded is None or self._recorded_of != (student, parts, ridge):
            self._inputs = [part.clone() for part in (*pairs, *real)]
            own, batch = Pairs(*self._inputs[:2]), Pairs(*self._inputs[2:])
            self._recorded = Recorded(lambda: self._by_parts(folded, student, own, batch, ridge, parts))
            self._recorded_of = student, parts, ridge
        copy_all(self._inputs, (*pairs, *real))
        loss, *gradients = self._recorded()
        # Gradients are used before the next step; a loss is read long after it.
        return (loss.clone(), *gradients)

    def _plan(self, folded: FoldedFeatures, student: nn.Module, pairs: Pairs, real: Pairs) -> Parts:
        """Returns how the images pass a student; other processes may plan otherwise."""
        forward = partial(folded.plain, folded.weights(student))
        return plan_parts(forward, pairs.images.detach(), self.micro_batch, self.budget, len(real.images))

    def _by_parts(
        self, folded: FoldedFeatures, student: nn.Module, pairs: Pairs, real: Pairs, ridge: float, parts: Parts
    ) -> tuple[Tensor, ...]:
        """Returns the loss and its gradients in images and targets."""
        watch, features = self.watch, partial(self.features, folded, folded.weights(student))
        images = [part.requires_grad_() for part in parts.split(pairs.images.detach())]
        targets = pairs.targets.detach().requires_grad_()
        with watch.part("distilled features"), torch.set_grad_enabled(not parts.recompute):
            kept = [features(part) for part in images]
        # The factorisation of the kernel leaves most of a GPU idle.
        beside = _Beside(self.recording)
        with watch.part("real features"), beside:
            real_features = torch.cat([features(part) for part in parts.split(real.images)])
        with watch.part("regression"), torch.autocast(self.accelerator.device.type, enabled=False):
            distilled_features = torch.cat([part.detach() for part in kept]).requires_grad_()
            fitted = self._fit(distilled_features, targets, ridge)
            beside.join()
            loss = self._loss(fitted, real_features, real.targets)
            gradient, targets_gradient = torch.autograd.grad(loss, [distilled_features, targets])
        with watch.part("backward"):
            # Only the features of all images together give the gradient in each of them: so either their graphs are
            # kept, part by part, or they are made again now that the gradient is known.
            images_gradient = [
                torch.autograd.grad(features(part) if parts.recompute else feature, part, out)[0]
                for part, feature, out in zip(images, kept, parts.split(gradient), strict=True)
            ]
        return loss.detach(), torch.cat(images_gradient), targets_gradient

    def _exact_in(self, features: Tensor) -> torch.dtype | None:
        """Returns the narrow type in which a GPU multiplies these features without rounding, if there is one."""
        exact = features.is_cuda and features.dtype == torch.bfloat16 and self.kernel_dtype == torch.float32
        return torch.bfloat16 if exact else None

    def _fit(self, features: Tensor, targets: Tensor, ridge: float) -> Regression:
        exact_in = self._exact_in(features)
        kernel = linear_kernel if exact_in is None else partial(narrow_kernel, exact_in=exact_in)
        return Regression(features.to(self.kernel_dtype), targets.to(self.kernel_dtype), ridge, solve_ridge, kernel)

    def _loss(self, regression: Regression, real_features: Tensor, real_targets: Tensor) -> Tensor:
        # What the kernel multiplies in a narrower type it takes in that.
        narrow = self._exact_in(real_features) is not None and not regression.in_feature_space
        features = real_features if narrow else real_features.to(self.kernel_dtype)
        return regression.loss(features, real_targets.to(self.kernel_dtype))


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
