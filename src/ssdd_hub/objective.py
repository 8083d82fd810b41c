"""The old name of `ssdd_hub.teachers.objectives`, for objectives of other packages; it will be removed."""

import warnings

from ssdd_hub.teachers.objectives.base import (
    LARGEST_SMALL,
    Count,
    Natural,
    Objective,
    Positive,
    Rule,
    Several,
    Share,
    Views,
    Weight,
    in_full_precision,
    keep_buffers,
    several_processes,
)

__all__ = [
    "LARGEST_SMALL",
    "Count",
    "Natural",
    "Objective",
    "Positive",
    "Rule",
    "Several",
    "Share",
    "Views",
    "Weight",
    "in_full_precision",
    "keep_buffers",
    "several_processes",
]

warnings.warn(
    "ssdd_hub.objective is now ssdd_hub.teachers.objectives: import Objective and its kinds of settings from there",
    DeprecationWarning,
    stacklevel=2,
)
