"""The parameterisations that wrap no other, by name: ours, and those that packages offer as entry points."""

from ssdd_hub.distill.parameterisations.base import Parameterisation
from ssdd_hub.distill.parameterisations.bases import Bases
from ssdd_hub.distill.parameterisations.dct import Dct
from ssdd_hub.distill.parameterisations.factor import Factor
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.distill.registry import Registry

GROUP = "ssdd_hub.parameterisations"
PLAIN: Registry[Parameterisation] = Registry(
    "parameterisation", Parameterisation, GROUP, Pixels, Factor, Dct, Bases, missing="is unknown or cannot be wrapped"
)
