"""Every parameterisation by name: ours, and subclasses of `Parameterisation` that packages offer as entry points."""

from collections.abc import Mapping
from typing import Any

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import Parameterisation
from ssdd_hub.distill.parameterisations.plain import GROUP, PLAIN
from ssdd_hub.distill.parameterisations.pyramid import Pyramid
from ssdd_hub.distill.parameterisations.quantised import Quantised
from ssdd_hub.distill.parameterisations.views import Views
from ssdd_hub.distill.registry import Registry

PARAMETERISATIONS: Registry[Parameterisation] = Registry(
    "parameterisation", Parameterisation, GROUP, *PLAIN.known.values(), Pyramid, Quantised, Views
)


def list_parameterisations() -> list[str]:
    """Returns the names that `build_parameterisation` knows; no other package is imported for it."""
    return PARAMETERISATIONS.names()


def build_parameterisation(
    name: str, pairs: Pairs, args: Mapping[str, Any] | None = None, shared: Mapping[str, Any] | None = None
) -> Parameterisation:
    """Returns a parameterisation that starts from pairs on its device and in its type; see `build_method`."""
    return PARAMETERISATIONS.find(name).start(pairs, PARAMETERISATIONS.settings(name, args or {}, shared or {}))
