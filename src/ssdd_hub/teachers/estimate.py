"""Time estimate of the training of a teacher, from some steps of a copy that is thrown away."""

import logging
import time
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.estimate import Stage
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.machine import free_memory, kept_bytes
from ssdd_hub.teachers.loading import load_teacher
from ssdd_hub.teachers.monitor import Watch
from ssdd_hub.teachers.teacher import Teacher, TeacherSettings
from ssdd_hub.teachers.training import Pretraining, TeacherTrainingSettings, new_backbone

_LOG = logging.getLogger(__name__)
_WATCHED = 512  # images of each part, by which the scores of all are timed


def stand_in(settings: TeacherSettings, images: ImageBank) -> Teacher:
    """Returns a ready teacher, or one as it will be trained, with other weights."""
    if settings.ready:
        return load_teacher(settings, images)
    backbone = new_backbone(settings.backbone, images.num_channels, images.image_size, 0, **settings.model_args)
    return Teacher(backbone, PixelSpace.of(images.pixels), images.image_size, "stand-in", features=settings.features)


def time_training(
    settings: TeacherSettings,
    training: TeacherTrainingSettings,
    images: ImageBank,
    run: RunFolder,
    accelerator: Accelerator,
) -> Stage:
    """Times the steps that a teacher still has to be trained, none of a ready one; all processes call it.

    Where a batch may be too large for the memory that is free, a warning says so before it is tried.
    """
    name = "teacher"
    if settings.ready or (run.path / "teacher").exists():
        return Stage(name, 0, 0.0)
    backbone = new_backbone(settings.backbone, images.num_channels, images.image_size, 0, **settings.model_args)
    space = PixelSpace.of(images.pixels)
    copy = Pretraining(backbone, images.pixels, space, training, seed=0, accelerator=accelerator)
    left = max(0, copy.num_steps - (run.teacher_checkpoints.newest_step() or 0))
    _warn_of_memory(copy)
    size = len(images)

    def chosen(steps: int) -> dict[str, int]:
        epochs = -(-steps // training.steps_per_epoch(size))
        return {"teacher_training.epochs": epochs, "teacher_training.max_steps": steps}

    return Stage(name, left, left * copy.time_step(left), chosen)


def time_watch(watch: Watch, settings: TeacherSettings, training: TeacherTrainingSettings, trained: Stage) -> Stage:
    """Times the scores of a backbone before, during and after its training, by those on a few images."""
    name, (images, wanted), (heldout, tested) = "its scores", *watch.watched
    if not trained.steps:
        return Stage(name, 0, 0.0)
    few = replace(watch.settings, max_images=min(watch.settings.max_images, _WATCHED))
    part = Watch(images, heldout, watch.pixel_space, few, 0, watch.batch_size)
    backbone = new_backbone(settings.backbone, images.num_channels, images.image_size, 0, **settings.model_args)
    part(backbone)
    started = time.perf_counter()
    part(backbone)
    share = sum(len(rows) for _, rows in part.watched) / (len(wanted) + len(tested))
    epochs = trained.steps // training.steps_per_epoch(len(images))
    count = 2 + (epochs // few.every if few.every else 0)
    return Stage(name, count, count * (time.perf_counter() - started) / share)


def _warn_of_memory(copy: Pretraining) -> None:
    """Warns where the activations of a batch may not fit, before a step shows it."""
    forward: Any = copy.objective.backbone.forward_features
    device = copy.accelerator.device
    pixels = [shape.numel() for shape in copy.view_shapes]
    images = torch.zeros(4, *copy.view_shapes[pixels.index(max(pixels))], device=device)
    # Weights, which count once, cancel.
    two = kept_bytes(forward, images) - kept_bytes(forward, images[:2])
    batch = copy.settings.batch_size / copy.accelerator.num_processes
    needed, free = two / 2 * batch * sum(pixels) / max(pixels), free_memory(device)
    if needed > free:
        _LOG.warning(
            "a batch of the teacher needs about %.3g GiB, and %.3g are free: lower --teacher-training.batch-size %d",
            needed / 2**30,
            free / 2**30,
            copy.settings.batch_size,
        )
