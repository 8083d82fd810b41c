"""What is learned of a set and how it becomes images and targets, one file each, and how they are found by name."""

from ssdd_hub.distill.parameterisations.base import LearningRates, Parameterisation
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.distill.parameterisations.registry import (
    PARAMETERISATIONS,
    build_parameterisation,
    list_parameterisations,
)

__all__ = ["PARAMETERISATIONS", "LearningRates", "Parameterisation", "Pixels", "build_parameterisation"]
__all__ += ["list_parameterisations"]
