"""Self-supervised training of a backbone on the source images: how a teacher is made."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ssdd_hub.backbones import input_args
from ssdd_hub.checkpoint import Checkpoints
from ssdd_hub.errors import InputError, require
from ssdd_hub.objectives import Views, build_objective
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.run_folder import RunLog
from ssdd_hub.streams import derive_seed, draw_batch, seeded
from ssdd_hub.teacher import create_backbone


def new_backbone(name: str, in_chans: int, image_size: int, seed: int, **model_args: Any) -> nn.Module:
    """Builds an untrained timm backbone for images of a size; its first weights are a function of the seed.

    Raises:
        InputError: timm does not know the name or an argument.
    """
    with seeded(seed, "backbone"):
        return create_backbone(name, pretrained=False, **{**input_args(name, in_chans, image_size), **model_args})


@dataclass(frozen=True)
class PretrainSettings:
    """How the teacher is trained; the optimiser's defaults are those of lightly's CIFAR-10 benchmark at batch 128.

    Attributes:
        objective: A name of `list_objectives()`.
        objective_args: Settings of the objective, such as `output_dim`.
        view_args: Settings of its transform, such as `min_scale` or `hf_prob`.
        epochs: Passes over the source images.
        max_steps: Steps at most, for trials; None for whole epochs.
        batch_size: Images per step, two views each.
        learning_rate: SGD's highest; cosine decay to 0 after a linear warm-up.
        warmup: Share of all steps spent in the warm-up.
        momentum: SGD's.
        weight_decay: SGD's.
        workers: Processes that make views; the views do not depend on it.
        checkpoint_every: Steps between checkpoints.
    """

    objective: str = "barlow_twins"
    objective_args: dict[str, Any] = field(default_factory=dict)
    view_args: dict[str, Any] = field(default_factory=dict)
    epochs: int = 200
    max_steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 0.06
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    workers: int = 2
    checkpoint_every: int = 2000

    def __post_init__(self) -> None:
        require(
            (self.epochs >= 1, f"pretrain.epochs must be at least 1, got {self.epochs}"),
            (
                self.max_steps is None or self.max_steps >= 1,
                f"pretrain.max_steps must be at least 1, got {self.max_steps}",
            ),
            (self.batch_size >= 2, f"pretrain.batch_size must be at least 2, got {self.batch_size}"),
            (self.learning_rate > 0, f"pretrain.learning_rate must be above 0, got {self.learning_rate}"),
            (0 <= self.warmup < 1, f"pretrain.warmup must be in [0, 1), got {self.warmup}"),
            (0 <= self.momentum < 1, f"pretrain.momentum must be in [0, 1), got {self.momentum}"),
            (self.weight_decay >= 0, f"pretrain.weight_decay must be at least 0, got {self.weight_decay}"),
            (self.workers >= 0, f"pretrain.workers must be at least 0, got {self.workers}"),
            (self.checkpoint_every >= 1, f"pretrain.checkpoint_every must be at least 1, got {self.checkpoint_every}"),
        )


class ViewBatches(Dataset[list[Tensor]]):
    """Batch `step` of views, a pure function of `(seed, step)`, whichever worker makes it.

    Args:
        pixels: `(N, C, H, W)`, uint8, on the CPU.
        views: Maps a PIL image to its views.
        batch_size: Images per batch.
        seed: Seed of the run.
    """

    def __init__(self, pixels: Tensor, views: Views, batch_size: int, seed: int) -> None:
        self.pixels = pixels
        self.views = views
        self.batch_size = batch_size
        self.seed = seed

    def __getitem__(self, step: int) -> list[Tensor]:
        """Returns one tensor `(batch_size, C, H, W)` per view."""
        indices = draw_batch(len(self.pixels), self.batch_size, self.seed, "pretrain batch", step)
        with _everything_seeded(self.seed, step):
            views = [self.views(_as_pil(self.pixels[index])) for index in indices]
        return [torch.stack(list(same)) for same in zip(*views, strict=True)]


@contextmanager
def _everything_seeded(seed: int, step: int) -> Iterator[None]:
    """Seeds each global generator that lightly's transforms draw from, and puts it back."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(derive_seed(seed, "views", step))
    np.random.seed(derive_seed(seed, "views", step) % 2**32)
    try:
        with seeded(seed, "views", step):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _as_pil(pixels: Tensor) -> Image.Image:
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


class Pretraining:
    """The self-supervised training of a backbone, in place.

    Args:
        backbone: A timm model, freshly built.
        pixels: Source images, `(N, C, H, W)`, uint8.
        pixel_space: The space in which the backbone sees them.
        settings: See `PretrainSettings`.
        seed: Seed of heads, order and views.
        device: Where to train.
        autocast: Returns the context of the forward pass, such as `accelerator.autocast`.

    Raises:
        InputError: The objective or one of its settings is unknown.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pixels: Tensor,
        pixel_space: PixelSpace,
        settings: PretrainSettings,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        channels, size = pixels.shape[1], pixels.shape[-1]
        with seeded(seed, "objective"):
            self.objective = build_objective(
                settings.objective, backbone, in_chans=channels, image_size=size, **settings.objective_args
            )
        # Convolutions, pooling and their gradients are quicker on the CPU in this layout.
        self.objective.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.objective.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        views = self.objective.build_views(size, pixel_space, **settings.view_args)
        self.batches = ViewBatches(pixels, views, settings.batch_size, seed)
        self.settings = settings
        self.device = device
        self.autocast = autocast
        self.steps_per_epoch = math.ceil(len(pixels) / settings.batch_size)
        self.num_steps = settings.epochs * self.steps_per_epoch
        if settings.max_steps is not None:
            self.num_steps = min(self.num_steps, settings.max_steps)

    def run(self, checkpoints: Checkpoints | None = None, log: RunLog | None = None, progress: bool = True) -> None:
        """Trains to the end, from the newest checkpoint on.

        Args:
            checkpoints: Where state is kept; None keeps none.
            log: Gets a record at the end of each epoch and of the training.
            progress: Show a progress bar.

        Raises:
            InputError: The training diverges.
        """
        first = self._resume(checkpoints)
        if log:
            log.rewind("teacher", first)
        loader = DataLoader(
            self.batches, batch_size=None, sampler=range(first, self.num_steps), num_workers=self.settings.workers
        )
        self.objective.train()
        with leave_cores_to(self.settings.workers):
            self._loop(loader, first, checkpoints, log, progress)
        self.objective.to(memory_format=torch.contiguous_format)

    def _loop(
        self,
        loader: DataLoader[list[Tensor]],
        first: int,
        checkpoints: Checkpoints | None,
        log: RunLog | None,
        progress: bool,
    ) -> None:
        bar = tqdm(loader, desc="teacher", unit="step", initial=first, total=self.num_steps, disable=not progress)
        for step, views in enumerate(bar, start=first + 1):
            loss = self._step(step - 1, views)
            if step % self.steps_per_epoch == 0 or step == self.num_steps:
                value = loss.item()
                if not math.isfinite(value):
                    raise InputError(f"the teacher's loss is {value} at step {step}: lower --pretrain.learning-rate")
                bar.set_postfix(loss=f"{value:.4g}")
                if log:
                    log.write([{"stage": "teacher", "step": step, "loss": value}])
            if checkpoints and step % self.settings.checkpoint_every == 0:
                checkpoints.save(step, self._state(step))

    def _step(self, step: int, views: list[Tensor]) -> Tensor:
        share = _schedule(step, self.num_steps, self.settings.warmup)
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * share
        with self.autocast():
            loss: Tensor = self.objective([view.to(self.device, non_blocking=True) for view in views])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def _state(self, step: int) -> dict[str, Any]:
        return {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}

    def _resume(self, checkpoints: Checkpoints | None) -> int:
        saved = checkpoints.load_newest() if checkpoints else None
        if saved is None:
            return 0
        self.objective.load_state_dict(saved["objective"])
        self.optimizer.load_state_dict(saved["optimizer"])
        return int(saved["step"])


@contextmanager
def leave_cores_to(workers: int) -> Iterator[None]:
    """Runs torch on the cores that loader workers leave free; threads that must share a core wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _schedule(step: int, num_steps: int, warmup: float) -> float:
    """Returns the share of the highest learning rate: linear warm-up, then cosine decay to 0."""
    warmup_steps = int(warmup * num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))
