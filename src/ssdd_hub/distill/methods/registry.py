"""Every method by name: ours, and subclasses of `Method` that packages offer as entry points of `ssdd_hub.methods`."""

from collections.abc import Mapping
from typing import Any

from ssdd_hub.distill.method import Method, Problem
from ssdd_hub.distill.methods.clp_dd import ClpDd
from ssdd_hub.distill.methods.dc import Dc
from ssdd_hub.distill.methods.dm import Dm
from ssdd_hub.distill.methods.frepo import Frepo
from ssdd_hub.distill.methods.idc import Idc
from ssdd_hub.distill.methods.idm import Idm
from ssdd_hub.distill.methods.krr_st import KrrSt
from ssdd_hub.distill.methods.lgm import Lgm
from ssdd_hub.distill.methods.mkdt import Mkdt
from ssdd_hub.distill.methods.mtt import Datm, Mtt, Tesla
from ssdd_hub.distill.methods.rfad import Rfad
from ssdd_hub.distill.registry import Registry
from ssdd_hub.errors import Check, InputError
from ssdd_hub.targets.labels import check_classes

_OURS = (KrrSt, Mkdt, Frepo, Rfad, ClpDd, Lgm, Dm, Idm, Dc, Idc, Mtt, Tesla, Datm)
METHODS: Registry[Method] = Registry("method", Method, "ssdd_hub.methods", *_OURS)
METHODS.elsewhere |= {
    "dsa": "dc with --method.args '{augment: dsa, training_augment: dsa}'",
    "kip": "rfad with --method.args '{penalty: 1e-6}'",
}


def list_methods() -> list[str]:
    """Returns the names that `build_method` knows; no other package is imported for it."""
    return METHODS.names()


def own_networks_check(name: str, wanted: bool) -> Check:
    """Returns whether a method can have other networks on each process, where that is wanted, and is known."""
    try:
        return METHODS.find(name).own_networks_check(wanted)
    except InputError:
        # The check of the name says so.
        return True, ""


def build_method(
    name: str, problem: Problem, args: Mapping[str, Any] | None = None, shared: Mapping[str, Any] | None = None
) -> Method:
    """Returns a method with settings `args`, and those of `shared`, such as `ridge`, that it knows.

    Raises:
        InputError: The name or a setting is unknown, or a value is out of range; or targets are labels of one class.
    """
    if problem.source is not None and problem.source.classes is not None:
        check_classes(problem.source.classes)
    return METHODS.find(name)(METHODS.settings(name, args or {}, shared or {}), problem)
