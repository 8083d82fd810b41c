"""What is learned of a set and how it becomes images and targets, one file each, and how they are found by name."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.distill.parameterisations.base import (
        LearningRates as LearningRates,
        Parameterisation as Parameterisation,
    )
    from ssdd_hub.distill.parameterisations.pixels import Pixels as Pixels
    from ssdd_hub.distill.parameterisations.registry import (
        PARAMETERISATIONS as PARAMETERISATIONS,
        build_parameterisation as build_parameterisation,
        list_parameterisations as list_parameterisations,
    )
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "base: LearningRates Parameterisation",
        "pixels: Pixels",
        "registry: PARAMETERISATIONS build_parameterisation list_parameterisations",
    )
