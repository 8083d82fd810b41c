"""Targets: a teacher's features of whole datasets, kept on the disk and transformed."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.targets.bank import FeatureBank as FeatureBank
    from ssdd_hub.targets.cache import FeatureCache as FeatureCache, fixed_views as fixed_views
    from ssdd_hub.targets.targets import Targets as Targets, TargetSettings as TargetSettings
    from ssdd_hub.targets.transform import TargetTransform as TargetTransform
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "bank: FeatureBank",
        "cache: FeatureCache fixed_views",
        "targets: TargetSettings Targets",
        "transform: TargetTransform",
    )
