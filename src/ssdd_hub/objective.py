"""The old name of `ssdd_hub.teachers.objectives`, for objectives of other packages; it will be removed."""

import warnings

from ssdd_hub.bounds import Count, Natural, Positive, Rule, Several, Share, Weight
from ssdd_hub.teachers.objectives.base import (
    LARGEST_SMALL,
    Objective,
    Views,
    in_full_precision,
    keep_buffers,
    several_processes,
)

__all__ = ["LARGEST_SMALL", "Objective", "Views", "in_full_precision", "keep_buffers", "several_processes"]
__all__ += ["Count", "Natural", "Positive", "Rule", "Several", "Share", "Weight"]

warnings.warn(
    "ssdd_hub.objective is now ssdd_hub.teachers.objectives: import Objective and its kinds of settings from there",
    DeprecationWarning,
    stacklevel=2,
)
