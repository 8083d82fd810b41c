"""The targets of a dataset: features from the cache or the teacher, and the transform that is fitted on them."""

from pathlib import Path

import torch
from accelerate import Accelerator

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets, TargetSettings
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher


def compute_targets(
    teacher: Teacher,
    images: ImageBank,
    settings: TargetSettings,
    folder: Path,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
) -> tuple[FeatureCache, Targets]:
    """Returns the cache of the teacher's features in a folder, and the targets `(N, D')` of all images."""
    cache = FeatureCache(teacher, accelerator, folder, **settings.computing())
    features = cache.features(images)
    transform = TargetTransform.fit(settings.transform, features, settings.dim)
    return cache, Targets(features, transform, dtype)
