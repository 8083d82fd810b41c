"""Every parameterisation by name: ours, and those that packages offer as entry points.

They offer subclasses of `Parameterisation` in the group `ssdd_hub.parameterisations`.
"""

from collections.abc import Mapping
from typing import Any

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import Parameterisation
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.distill.registry import Registry

PARAMETERISATIONS: Registry[Parameterisation] = Registry(
    "parameterisation", Parameterisation, "ssdd_hub.parameterisations", Pixels
)


def list_parameterisations() -> list[str]:
    """Returns the names that `build_parameterisation` knows; no other package is imported for it."""
    return PARAMETERISATIONS.names()


def build_parameterisation(
    name: str, pairs: Pairs, args: Mapping[str, Any] | None = None, shared: Mapping[str, Any] | None = None
) -> Parameterisation:
    """Returns a parameterisation that starts from some pairs, on the device and in the type of what is learned.

    `args` are settings of the parameterisation; of `shared`, which has `lr_images` and `lr_targets`, it takes those
    that it knows. Errors are those of `build_method`.
    """
    return PARAMETERISATIONS.find(name).start(pairs, PARAMETERISATIONS.settings(name, args or {}, shared or {}))
