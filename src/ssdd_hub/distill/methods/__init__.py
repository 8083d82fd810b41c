"""The methods, one file each, and how they are found by name."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.distill.methods.krr_st import KrrSt as KrrSt, KrrStSettings as KrrStSettings
    from ssdd_hub.distill.methods.registry import (
        METHODS as METHODS,
        build_method as build_method,
        list_methods as list_methods,
    )
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "krr_st: KrrSt KrrStSettings",
        "registry: METHODS build_method list_methods",
    )
