"""The teacher of a run: ready made and loaded, or trained on the source images."""

from typing import Any

import torch
from accelerate import Accelerator

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.data.stream import ImageStream
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.inputs import Inputs, deciding_facts
from ssdd_hub.runs.trackers import start_trackers
from ssdd_hub.teachers.teacher import Teacher, TeacherSettings, build_teacher
from ssdd_hub.teachers.training import TeacherTrainingSettings, check_width, train_teacher


def load_teacher(settings: TeacherSettings, images: ImageBank | ImageStream) -> Teacher:
    """Loads a ready-made teacher; refuses images that it does not take."""
    teacher = build_teacher(settings.backbone, **settings.building())
    teacher(torch.zeros(1, images.num_channels, images.image_size, images.image_size))
    return teacher


def load_or_train_teacher(
    settings: TeacherSettings,
    pretrain: TeacherTrainingSettings,
    images: ImageBank,
    run: RunFolder,
    accelerator: Accelerator,
    inputs: Inputs,
    least: int = 1,
    **training: Any,
) -> Teacher:
    """Loads a ready-made teacher, or trains one on the source images with what else `train_teacher` takes.

    Either begins the run. The teacher's features are to be `least` at least.
    """
    if not settings.ready:
        own = {"accelerator": accelerator, "inputs": inputs, "least": least, **training}
        return train_teacher(settings, pretrain, images, PixelSpace.of(images.pixels), run, **own)
    teacher = load_teacher(settings, images)
    check_width(teacher.feature_dim, least)
    run.start({**inputs, "teacher": deciding_facts(teacher.identity())})
    start_trackers(accelerator, run)
    return teacher
