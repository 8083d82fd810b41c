"""The targets of a dataset: features from the cache or the teacher, or classes, and the transform fitted on them."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.runs.estimate import Stage, time_steps
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.labels import LabelCache
from ssdd_hub.targets.targets import Targets, TargetSettings
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher


def time_features(
    teacher: Teacher, images: ImageBank, heldout: ImageBank, settings: TargetSettings, accelerator: Accelerator
) -> Stage:
    """Times the features of all images and their views; `teacher` is on its device, and may be any of its kind."""
    count = len(images) * (1 + settings.views) + len(heldout)
    batches = -(-count // settings.batch_size // accelerator.num_processes)
    dtype, rows = next(teacher.parameters()).dtype, images.pixels[: settings.batch_size]
    seconds = time_steps(lambda: teacher(rows.to(accelerator.device, dtype) / 255).cpu(), batches, accelerator)
    return Stage("features", batches, batches * seconds)


def compute_targets(
    teacher: Teacher | None,
    images: ImageBank,
    settings: TargetSettings,
    folder: Path,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
) -> tuple[FeatureCache | LabelCache, Targets]:
    """Returns the cache of the teacher's features in a folder, and the targets `(N, D')` of all images.

    Without a teacher, targets are of the images' classes.
    """
    if teacher is None:
        return label_targets(images, settings, accelerator, dtype)
    cache = FeatureCache(teacher, accelerator, folder, **settings.computing())
    features = cache.features(images)
    transform = TargetTransform.fit(settings.transform, features, settings.dim)
    return cache, Targets(features, transform, dtype)


def label_targets(
    images: ImageBank, settings: TargetSettings, accelerator: Accelerator, dtype: torch.dtype = torch.float32
) -> tuple[LabelCache, Targets]:
    """Returns one-hot vectors of the classes, and the targets `(N, C)`: these centred, their largest the class."""
    cache = LabelCache(images, accelerator)
    classes = cache.features(images)
    kind = "centre" if settings.transform == "none" else settings.transform
    return cache, Targets(classes, TargetTransform.fit(kind, classes), dtype)


class StandInCache:
    """A cache of features that are any numbers, of the right width and type, to time what is computed with them."""

    def __init__(self, teacher: Teacher, accelerator: Accelerator) -> None:
        self.teacher, self.accelerator = teacher, accelerator
        self._dtype = next(teacher.parameters()).dtype

    def features(self, images: ImageBank, view: int | None = None, seed: int = 0) -> Tensor:
        """Returns features `(N, D)` that are alike, which take no memory."""
        return torch.randn(1, self.teacher.feature_dim, dtype=self._dtype).expand(len(images), -1)

    def targets(self, images: ImageBank, settings: TargetSettings) -> Targets:
        """Returns targets `(N, D')` with a transform of the right kind."""
        width = self.teacher.feature_dim
        features = torch.randn(2 * width + 2, width, dtype=self._dtype)
        return Targets(
            self.features(images), TargetTransform.fit(settings.transform, features, settings.dim), self._dtype
        )
