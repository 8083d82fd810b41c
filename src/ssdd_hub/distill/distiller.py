"""The outer loop of KRR-ST: images and targets learn to explain a teacher through students of many ages."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssdd_hub.distill.batches import Batches
from ssdd_hub.distill.engine.memory import Parts
from ssdd_hub.distill.engine.outer import OuterGradient
from ssdd_hub.distill.engine.prefetch import Ahead
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.pool import StudentPool
from ssdd_hub.errors import InputError, require

PIXEL_SPACES = ("normalised", "raw")
PRECISIONS = ("float32", "float64")


@dataclass(frozen=True)
class DistillerSettings:
    """The outer problem; the defaults are those of Lee et al. (ICLR 2024) on CIFAR-100.

    Attributes:
        num_images: Distilled images `M`.
        steps: Outer steps.
        batch_size: Real images `B` per outer step, over all processes.
        lr_images: AdamW's first learning rate of the images.
        lr_targets: AdamW's first learning rate of the targets.
        final_lr: The share of the first learning rates that the linear decay ends at.
        ridge: Regularisation of the regression relative to the trace of its kernel. Much less than the default may
            leave a float32 kernel that cannot be factorised on a GPU.
        inner_steps: Inner steps of the drawn student after each outer step.
        augment: Crop and flip the real images; see `targets.views` for where their targets come from.
        pixel_space: `normalised`: the images start as normalised real images. `raw`: as in the authors' released code,
            they start as pixels in `[0, 1]` although real images are normalised.
        kernel_precision: Type in which the kernel is built and solved.
        precision: Type of images, targets and students. `float64` is for comparisons, not for speed.
        micro_batch: Images per forward pass of the outer step; None for what is quick on the device. The result is the
            same but for rounding.
        memory_budget: GiB for the activations of distilled images, of which more are computed again in the backward
            pass rather than kept; None for half of the memory that is free at the start.
        compile: Compile the networks with torch.compile: quicker from some hundred steps on, after a minute or so. The
            launches of a step on a GPU are also recorded, and launched again as one.
        winograd: On the CPU in full precision, compute the 3x3 convolutions of students by Winograd's algorithm where
            they have 128 channels or more: quicker, and in float32 rounded by a few millionths.
    """

    num_images: int = 1000
    steps: int = 160_000
    batch_size: int = 1024
    lr_images: float = 1e-4
    lr_targets: float = 1e-4
    final_lr: float = 1e-3
    ridge: float = 1e-6
    inner_steps: int = 1
    augment: bool = True
    pixel_space: str = "normalised"
    kernel_precision: str = "float32"
    precision: str = "float32"
    micro_batch: int | None = None
    memory_budget: float | None = None
    compile: bool = False
    winograd: bool = True

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("num_images", "batch_size", "inner_steps")}
        if self.micro_batch is not None:
            counts["micro_batch"] = self.micro_batch
        rates = {name: getattr(self, name) for name in ("lr_images", "lr_targets")}
        require(
            *((value >= 1, f"distiller.{name} must be at least 1, got {value}") for name, value in counts.items()),
            (self.steps >= 0, f"distiller.steps must be at least 0, got {self.steps}"),
            *((value >= 0, f"distiller.{name} must be at least 0, got {value}") for name, value in rates.items()),
            # Without it the system is singular when two images are alike, or when M is above F + 1.
            (self.ridge > 0, f"distiller.ridge must be above 0, got {self.ridge}"),
            (
                self.memory_budget is None or self.memory_budget > 0,
                f"distiller.memory_budget must be above 0, got {self.memory_budget}",
            ),
            (0 <= self.final_lr <= 1, f"distiller.final_lr must be in [0, 1], got {self.final_lr}"),
            (
                self.pixel_space in PIXEL_SPACES,
                f"distiller.pixel_space must be one of {', '.join(PIXEL_SPACES)}, got {self.pixel_space!r}",
            ),
            *(
                (
                    getattr(self, name) in PRECISIONS,
                    f"distiller.{name} must be one of {', '.join(PRECISIONS)}, got {getattr(self, name)!r}",
                )
                for name in ("kernel_precision", "precision")
            ),
        )


class Distiller:
    """The state of a distillation and its outer step.

    Every process holds the same images, targets and pool; the real batch is split, and the gradients of the two
    tensors are averaged, which is the mathematics of one process.

    Args:
        images: First images, `(M, C, H, W)`, in the space that students are fed with.
        targets: First targets, `(M, D)`.
        pool: The online students, on `accelerator.device`.
        batches: The real data.
        settings: See `DistillerSettings`.
        accelerator: Device, processes and mixed precision. The kernel is never built in reduced precision.

    Attributes:
        images: The parameter `X_s`.
        targets: The parameter `Y_s`.
        outer_step: Outer steps done.
        outer: Gives the outer loss and its gradients.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        pool: StudentPool,
        batches: Batches,
        settings: DistillerSettings,
        accelerator: Accelerator,
    ) -> None:
        require(
            (
                settings.batch_size >= accelerator.num_processes,
                f"distiller.batch_size must be at least the number of processes ({accelerator.num_processes}), got "
                f"{settings.batch_size}",
            ),
        )
        dtype = getattr(torch, settings.precision)
        self.images = nn.Parameter(images.to(accelerator.device, dtype, copy=True))
        self.targets = nn.Parameter(targets.to(accelerator.device, dtype, copy=True))
        self.pool = pool
        recorded = settings.compile and accelerator.device.type == "cuda"
        self.batches = Ahead(batches, settings.steps) if recorded else batches
        self.settings = settings
        self.accelerator = accelerator
        self.outer_step = 0
        self.outer = OuterGradient(
            pool.students[0].module,
            self.images,
            self.targets,
            batch_size=settings.batch_size,
            ridge=settings.ridge,
            kernel_dtype=torch.promote_types(getattr(torch, settings.kernel_precision), dtype),
            accelerator=accelerator,
            compiled=settings.compile,
            winograd=settings.winograd,
            micro_batch=settings.micro_batch,
            budget=None if settings.memory_budget is None else int(settings.memory_budget * 2**30),
        )
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [self.images], "lr": settings.lr_images},
                {"params": [self.targets], "lr": settings.lr_targets},
            ],
            weight_decay=0.0,
            # On the CPU the fused one is wrong where a gradient's layout is not its parameter's.
            fused=accelerator.device.type == "cuda",
        )

    @property
    def watch(self) -> Stopwatch:
        """Counts the seconds of each part of the steps."""
        return self.outer.watch

    @property
    def parts(self) -> Parts | None:
        """How images pass the students, once the first outer step has planned it."""
        return self.outer.parts

    def record_nothing(self) -> None:
        """Launches everything one by one from now on, so that its parts can be timed on a GPU."""
        self.outer.recording = False
        self.pool.record_nothing()

    def warm_up(self) -> Iterator[Tensor]:
        """Trains the first students to their first ages; yields each inner loss. Once, before the first outer step."""
        return self.pool.warm_up(self.images.detach(), self.targets.detach())

    def step(self) -> dict[str, Any]:
        """Does one outer step: update the set through a drawn student, then age the student on the new set.

        Returns:
            `loss` and `inner_loss` as scalar tensors (the latter None where no inner step was taken), `student` and
            its `age` at the draw, and the learning rate `lr` of the images.
        """
        step, settings = self.outer_step, self.settings
        slot = self.pool.draw(step)
        student, age = self.pool.student(slot), self.pool.ages[slot]
        loss, *gradients = self._loss_and_gradients(student, step)
        decay = self._set_learning_rates(step)
        with self.watch.part("update"):
            self.images.grad, self.targets.grad = (gradient.contiguous() for gradient in gradients)
            self.optimizer.step()
            self.optimizer.zero_grad()
        with self.watch.part("inner step"):
            for _ in range(settings.inner_steps):
                inner_loss = self.pool.advance(slot, self.images.detach(), self.targets.detach())
        self.outer_step += 1
        return {
            "loss": loss,
            "inner_loss": inner_loss,
            "student": slot,
            "age": age,
            "lr": settings.lr_images * decay,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns all state, for `checkpoints.save_tree`."""
        return {
            "outer_step": self.outer_step,
            "images": self.images.detach(),
            "targets": self.targets.detach(),
            "optimizer": self.optimizer.state_dict(),
            "pool": self.pool.state_dict(),
            # Another size would round otherwise, and what memory is free differs from start to start.
            "parts": None if self.outer.parts is None else asdict(self.outer.parts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned; the run goes on exactly as the unbroken one would.

        Raises:
            InputError: The state belongs to a set of another size.
        """
        if state["images"].shape != self.images.shape or state["targets"].shape != self.targets.shape:
            raise InputError(
                f"the checkpoint holds images {tuple(state['images'].shape)} and targets "
                f"{tuple(state['targets'].shape)}, this run {tuple(self.images.shape)} and "
                f"{tuple(self.targets.shape)}: choose another --output or restore the settings"
            )
        with torch.no_grad():
            self.images.copy_(state["images"])
            self.targets.copy_(state["targets"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pool.load_state_dict(state["pool"])
        self.outer.parts = Parts(**state["parts"]) if state.get("parts") else None
        self.outer_step = state["outer_step"]

    def _loss_and_gradients(self, student: nn.Module, step: int) -> list[Tensor]:
        """Returns the outer loss over all processes and its gradients in images and targets."""
        accelerator = self.accelerator
        with self.watch.part("data"):
            batch = self.batches(step, accelerator.process_index, accelerator.num_processes)
        results = self.outer(student, *batch)
        if accelerator.num_processes > 1:
            results = [accelerator.reduce(tensor, "mean") for tensor in results]
        return results

    def _set_learning_rates(self, step: int) -> float:
        """Sets the rates of a linear decay from 1 to `final_lr` over all steps; returns the present share."""
        settings = self.settings
        decay = 1 + (settings.final_lr - 1) * step / settings.steps
        for group, rate in zip(self.optimizer.param_groups, (settings.lr_images, settings.lr_targets), strict=True):
            group["lr"] = rate * decay
        return decay
