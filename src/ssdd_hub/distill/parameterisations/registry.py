"""Every parameterisation by name: ours, and those that other packages offer.

Another package offers one by an entry point of the group `ssdd_hub.parameterisations`, which maps a name to a subclass
of `ssdd_hub.distill.parameterisations.Parameterisation`.
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
    """Returns a parameterisation of first images and targets, ready for `Distiller`.

    Args:
        name: One of `list_parameterisations()`.
        pairs: The first set, on the device and in the type of what is learned; see `Pairs.to`.
        args: Settings of the parameterisation.
        shared: Settings that several have, `lr_images` and `lr_targets`; a parameterisation takes those that it knows.

    Raises:
        InputError: The name or a setting is unknown, or a value is out of range.
    """
    settings = PARAMETERISATIONS.settings(name, args or {}, shared or {})
    return PARAMETERISATIONS.find(name).start(pairs, settings)
