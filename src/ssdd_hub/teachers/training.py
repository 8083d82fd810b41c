"""Self-supervised training of a teacher, from the first step to its folder."""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from ssdd_hub.arguments import argument_checks
from ssdd_hub.bounds import (
    Count,
    Fraction,
    Positive,
    Settings,
    Several,
    Weight,
    among,
    at_least,
    at_most,
    either,
    one_of,
)
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import Check, InputError
from ssdd_hub.models.features import create_backbone, input_args, measure_width
from ssdd_hub.models.layout import quick_layout
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.checkpoints import Checkpoints
from ssdd_hub.runs.estimate import time_steps
from ssdd_hub.runs.folder import RunFolder, RunLog
from ssdd_hub.runs.inputs import Inputs, deciding_facts, describe_bank
from ssdd_hub.runs.launch import keeping
from ssdd_hub.runs.machine import describe_machine
from ssdd_hub.runs.progress import StepBar
from ssdd_hub.runs.save_points import SavePoints
from ssdd_hub.runs.trackers import start_trackers
from ssdd_hub.seeds import seeded
from ssdd_hub.teachers.monitor import Watch, knn_records
from ssdd_hub.teachers.objectives.registry import OBJECTIVES, build_objective, list_objectives
from ssdd_hub.teachers.optimizers import OPTIMIZERS, build_optimizer
from ssdd_hub.teachers.teacher import Teacher, TeacherSettings, build_teacher
from ssdd_hub.teachers.view_batches import DeviceViewBatches, ViewBatches, leave_cores_to
from ssdd_hub.text import first_line

SCHEMES = ("auto", *OPTIMIZERS)
_TRIED = 16  # images
RESERVED_ARGS = {"name", "backbone", "feature_dim", "in_chans", "image_size"}


@dataclass(frozen=True)
class TeacherTrainingSettings(Settings, section="teacher_training"):
    """How the teacher is trained.

    Attributes:
        objective: A name of `list_objectives()`.
        objective_args: Settings of the objective, such as `output_dim`.
        view_args: Settings of its transform, such as `min_scale` or `hf_prob`.
        views: `workers`: lightly's transforms, in CPU processes. `device`: the same transforms, whose pixels differ
            slightly, on whole batches where the network is (needs kornia), for devices that CPU processes cannot feed.
        epochs: Passes over the source images.
        max_steps: Steps at most, for trials; None for whole epochs.
        batch_size: Images per step, over all processes.
        optimizer: `sgd`, `adamw`, `lars`, or `auto`: what the objective is usually trained with.
        learning_rate: The highest; cosine decay to 0 after a linear warm-up. None scales with the batch: 0.06 per 128
            images for SGD, 5e-4 per 256 for AdamW, 0.2 per 256 for LARS.
        warmup: Share of all steps spent in the warm-up.
        weight_decay: None takes 5e-4 for SGD, 0.05 for AdamW, 1.5e-6 for LARS.
        max_grad_norm: Gradients are scaled down to this norm; None leaves them.
        workers: Processes that make views; the views do not depend on it.
        checkpoint_every: Steps between checkpoints.
    """

    arguments_of: ClassVar[dict[str, str]] = {"objective_args": "objective"}

    objective: str = "barlow_twins"
    objective_args: dict[str, Any] = field(default_factory=dict)
    view_args: dict[str, Any] = field(default_factory=dict)
    views: Annotated[str, either("workers", "device")] = "workers"
    epochs: Count = 200
    max_steps: Count | None = None
    batch_size: Several = 128
    optimizer: Annotated[str, one_of(SCHEMES)] = "auto"
    learning_rate: Positive | None = None
    warmup: Fraction = 0.05
    weight_decay: Weight | None = None
    max_grad_norm: Positive | None = None
    workers: Annotated[int, at_least(0), at_most(4096)] = 2
    checkpoint_every: Count = 2000

    def num_steps(self, size: int) -> int:
        """Returns the steps of a training on `size` images."""
        return min(self.epochs * self.steps_per_epoch(size), self.max_steps or sys.maxsize)

    def steps_per_epoch(self, size: int) -> int:
        """Returns the steps of a pass over `size` images."""
        return math.ceil(size / self.batch_size)

    def conflicts(self) -> Iterator[Check]:
        """Yields what the objective, its arguments and those of its views must be."""
        # Those of other packages are looked for only where they are needed: it takes longer than all other checks.
        known = [*OBJECTIVES]
        yield among(self.option("objective"), self.objective, known if self.objective in known else list_objectives())
        decided = sorted(RESERVED_ARGS)
        yield from argument_checks(
            "teacher_training.objective_args", self.objective_args, decided, "other settings decide"
        )
        yield from argument_checks("teacher_training.view_args", self.view_args, (), "")


class Pretraining:
    """Self-supervised training of a fresh timm backbone, in place, on every process of an accelerator.

    `pixels` are source images, `(N, C, H, W)`, uint8, which the backbone sees in `pixel_space`. The seed decides
    heads, order, views and whatever else the objective draws.

    Raises:
        InputError: The objective or one of its settings is unknown, it cannot train this backbone, or the batch does
            not fit the images or the processes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pixels: Tensor,
        pixel_space: PixelSpace,
        settings: TeacherTrainingSettings,
        *,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.accelerator = accelerator
        channels, size = pixels.shape[1], pixels.shape[-1]
        with seeded(seed, "objective"):
            objective = build_objective(
                settings.objective, backbone, in_chans=channels, image_size=size, **settings.objective_args
            )
        _check_batch(settings, objective.min_batch, len(pixels), accelerator.num_processes)
        # Convolutions, pooling and their gradients are faster in channels last.
        self.layout = quick_layout(objective, accelerator.device)
        self.objective = objective.to(accelerator.device).to(memory_format=self.layout)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            # torch's own conversion would drop the activations that timm keeps in its norms.
            self.objective = convert_sync_batchnorm(self.objective)
        kind = self.objective.optimizer if settings.optimizer == "auto" else settings.optimizer
        self.optimizer = build_optimizer(
            self.objective, kind, settings.batch_size, settings.learning_rate, settings.weight_decay
        )
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        views = self.objective.build_views(size, pixel_space, **settings.view_args)
        share = (settings.batch_size, seed, accelerator.process_index, accelerator.num_processes)
        self.batches = ViewBatches(pixels, views, *share)
        if settings.views == "device":
            self.batches = DeviceViewBatches(pixels, views, *share, device=accelerator.device)
        self._try_views(pixels[:_TRIED], views)
        self.steps_per_epoch = settings.steps_per_epoch(len(pixels))
        self.num_steps = settings.num_steps(len(pixels))
        # Sum and number of the losses since the last record, on the device: reading each would make the host wait.
        self._losses = torch.zeros(2, device=accelerator.device)

    def _try_views(self, pixels: Tensor, views: Any) -> None:
        """Makes views of a few images, since a transform finds a wrong argument when it draws by it."""
        own: Any = {"device": self.accelerator.device} if self.settings.views == "device" else {}
        few = type(self.batches)(pixels, views, len(pixels), self.seed, 0, 1, **own)
        try:
            self.view_shapes = [view.shape[1:] for view in few[0]]
        except InputError:
            raise
        except Exception as error:  # transforms may raise anything
            raise InputError(
                f"teacher_training.view_args {self.settings.view_args} do not fit the views of {self.objective.name}: "
                f"{first_line(error)}"
            ) from error

    def run(
        self,
        checkpoints: Checkpoints | None = None,
        log: RunLog | None = None,
        watch: Watch | None = None,
        progress: bool = True,
    ) -> None:
        """Trains to the end, from the newest checkpoint on; a training that diverges ends in an `InputError`.

        The main process saves checkpoints, has the backbone scored by `watch` before, during and after the training,
        and logs these scores and the mean loss at the end of each epoch.
        """
        first = self._resume(checkpoints)
        # A checkpoint is saved before the record of its step, which may have failed, is made.
        unrecorded = self._losses[1].item() > 0 and self._is_recorded(first)
        if log:
            log.rewind("teacher", first if first and not unrecorded else first - 1)
            if watch and first == 0 and self.accelerator.is_main_process:
                log.write([{"stage": "teacher", "step": 0, **watch(self.objective.backbone)}])
        if unrecorded:
            self._record(first, self._mean_loss(first), log, watch)
        points = SavePoints(self.settings.checkpoint_every, self.accelerator.num_processes == 1)
        # Around the workers too, whom Ctrl-C reaches as well, and which must not end in the middle of a step.
        with points, self._loaded(first) as (model, batches):
            bar = StepBar(batches, "teacher", self.num_steps, initial=first, disable=not progress)
            for step, views in enumerate(bar):
                self._step(model, first + step, views)
                self._after_step(first + step + 1, points, checkpoints, log, watch, bar)
        self.objective.to(memory_format=torch.contiguous_format)

    def time_step(self, steps: int) -> float:
        """Returns the seconds of a step in a loop of so many; the weights are spoiled."""
        with self._loaded(0) as (model, batches):
            rest = enumerate(batches)
            return time_steps(lambda: self._step(model, *next(rest)), min(steps, self.num_steps), self.accelerator)

    @contextmanager
    def _loaded(self, first: int) -> Iterator[tuple[nn.Module, Iterable[list[Tensor]]]]:
        """Gives the network as all processes train it, and its batches from a step on, made beside the training."""
        self.objective.train()
        model = self.accelerator.prepare_model(self.objective)
        on_cpu, workers = self.accelerator.device.type == "cpu", self.settings.workers
        with leave_cores_to(workers) if on_cpu else nullcontext():
            yield model, self.batches.load(range(first, self.num_steps), workers, pin_memory=not on_cpu)
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _step(self, model: nn.Module, step: int, views: list[Tensor]) -> None:
        share = _schedule(step, self.num_steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * share
        self.objective.schedule(step, self.steps_per_epoch, self.num_steps)
        # Masks, shuffles and dropped paths are drawn from global generators.
        with seeded(self.seed, "objective step", step, self.accelerator.process_index):
            device = self.accelerator.device
            loss = model([view.to(device, non_blocking=True, memory_format=self.layout) for view in views])
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
        self.objective.after_backward()
        if self.settings.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self._losses += torch.stack([loss.detach().float(), torch.ones_like(self._losses[0])])

    def _after_step(
        self,
        step: int,
        points: SavePoints,
        checkpoints: Checkpoints | None,
        log: RunLog | None,
        watch: Watch | None,
        bar: Any,
    ) -> None:
        recorded, saved = self._is_recorded(step), points.due(step) or step == self.num_steps
        if not (recorded or saved):
            return
        mean_loss = self._mean_loss(step)
        saved = saved or self._is_scored(step, watch)
        if checkpoints and saved and self.accelerator.is_main_process:
            state = {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict()}
            checkpoints.save(step, {**state, "losses": self._losses, "step": step})
        if recorded:
            bar.set_postfix(loss=f"{mean_loss:.4g}")
            self._record(step, mean_loss, log, watch)
        if saved:
            points.end_if_asked()

    def _is_recorded(self, step: int) -> bool:
        return step == self.num_steps or step % self.steps_per_epoch == 0

    def _is_scored(self, step: int, watch: Watch | None) -> bool:
        epoch, within = divmod(step, self.steps_per_epoch)
        every = watch.settings.every if watch else 0
        return watch is not None and (step == self.num_steps or within == 0 and every > 0 and epoch % every == 0)

    def _record(self, step: int, mean_loss: float, log: RunLog | None, watch: Watch | None) -> None:
        """Logs the mean loss since the last record and, where they are due, the scores of the backbone."""
        self.accelerator.log({"teacher/loss": mean_loss}, step)
        if log and self.accelerator.is_main_process:
            scores = watch(self.objective.backbone) if watch and self._is_scored(step, watch) else {}
            log.write([{"stage": "teacher", "step": step, "loss": mean_loss, **scores}])
        self._losses.zero_()

    def _mean_loss(self, step: int) -> float:
        """Returns the mean over steps and processes, or refuses one that is not finite, before the state is saved."""
        # Reduced on all processes, so that a checkpoint of the main one is right for each.
        self._losses = self.accelerator.reduce(self._losses, "mean")
        total, count = self._losses.tolist()
        if not math.isfinite(total):
            raise InputError(
                f"the teacher's loss is {total} by step {step}: choose a lower --teacher-training.learning-rate or a "
                "longer --teacher-training.warmup, and another --output"
            )
        return float(total / count)

    def _resume(self, checkpoints: Checkpoints | None) -> int:
        saved = checkpoints.load_newest() if checkpoints else None
        if saved is None:
            return 0
        self.objective.load_state_dict(saved["objective"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self._losses.copy_(saved["losses"])
        return int(saved["step"])


def _check_batch(settings: TeacherTrainingSettings, smallest: int, images: int, processes: int) -> None:
    if settings.batch_size > images:
        raise InputError(
            f"a batch holds each image once at most, and there are {images}: lower --teacher-training.batch-size "
            f"{settings.batch_size}, or use more images"
        )
    if settings.batch_size % processes or settings.batch_size // processes < smallest:
        raise InputError(
            f"--teacher-training.batch-size must give each of {processes} process(es) the same number of images, at "
            f"least {smallest} for {settings.objective}; got {settings.batch_size}"
        )


def _schedule(step: int, num_steps: int, warmup: float) -> float:
    """Returns the share of the highest learning rate: linear warm-up, then cosine decay to 0."""
    warmup_steps = int(warmup * num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def new_backbone(name: str, in_chans: int, image_size: int, seed: int, **model_args: Any) -> nn.Module:
    """Returns an untrained timm backbone for images of a size, whose weights are a function of the seed."""
    with seeded(seed, "backbone"):
        return create_backbone(name, pretrained=False, **{**input_args(name, in_chans, image_size), **model_args})


def check_width(width: int, least: int) -> None:
    """Refuses a teacher of fewer features than `--targets.dim` asks for, before it is trained or run."""
    if width < least:
        raise InputError(f"--targets.dim {least} exceeds the {width} features of the teacher: lower it")


def train_teacher(
    settings: TeacherSettings,
    pretrain: TeacherTrainingSettings,
    source: ImageBank,
    pixel_space: PixelSpace,
    run: RunFolder,
    *,
    seed: int,
    accelerator: Accelerator,
    watch: Watch | None = None,
    provenance: Mapping[str, Any],
    inputs: Inputs | None = None,
    least: int = 1,
) -> Teacher:
    """Trains a teacher on all processes, unless the run already has one, and loads it from `teacher/` of the run.

    The run starts once the settings have proved usable; it records `inputs`, by default the source images, and keeps
    checkpoints and log. The teacher inherits the licence of `source`; `provenance` is recorded beside its weights.
    Its features are to be `least` at least.

    Raises:
        InputError: The backbone or the objective cannot be built, the run was begun with other inputs, or the training
            diverges.
    """
    folder = run.path / "teacher"
    backbone = new_backbone(settings.backbone, source.num_channels, source.image_size, seed, **settings.model_args)
    # A backbone without features of this kind is refused before it is trained.
    width = measure_width(backbone, source.num_channels, source.image_size, settings.features)
    check_width(width, least)
    training = Pretraining(backbone, source.pixels, pixel_space, pretrain, seed=seed, accelerator=accelerator)
    inputs = inputs or {"source": describe_bank(source)}
    load = partial(build_teacher, f"local-dir:{folder}", features=settings.features)
    # Every process must decide alike, or some would train alone.
    if broadcast_object_list([folder.exists()])[0]:
        teacher = load()
        run.start({**inputs, "teacher": deciding_facts(teacher.identity())})
        start_trackers(accelerator, run)
        return teacher
    run.start(inputs)
    start_trackers(accelerator, run)
    training.run(run.teacher_checkpoints, run.log, watch, accelerator.is_main_process)
    with keeping("the trained network", run.path / "checkpoints" / "teacher"):
        if accelerator.is_main_process:
            name = str(provenance["source"]["name"])
            facts = {
                **provenance,
                "objective": training.objective.describe(),
                "scores": knn_records(run.log.read(), {"source": name, "target": name, "student": settings.backbone}),
                "hardware": describe_machine(accelerator.device, accelerator.num_processes),
            }
            title = f"{settings.backbone} trained with {pretrain.objective} on {name}"
            licence, kind = source.provenance["license"], settings.features
            trained = Teacher(backbone, pixel_space, source.image_size, title, licence, features=kind)
            trained.save(folder, provenance=facts)
    accelerator.wait_for_everyone()
    teacher = load()
    run.pin({"teacher": deciding_facts(teacher.identity())})
    return teacher
