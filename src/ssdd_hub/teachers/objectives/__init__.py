"""Self-supervised objectives, one a file: lightly's losses with their heads, views and state."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.teachers.objectives.base import (
        Count as Count,
        Natural as Natural,
        Objective as Objective,
        Positive as Positive,
        Several as Several,
        Share as Share,
        Views as Views,
        Weight as Weight,
    )
    from ssdd_hub.teachers.objectives.registry import (
        OBJECTIVES as OBJECTIVES,
        build_objective as build_objective,
        find_objective as find_objective,
        list_objectives as list_objectives,
    )
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "base: Count Natural Objective Positive Several Share Views Weight",
        "registry: OBJECTIVES build_objective find_objective list_objectives",
    )
