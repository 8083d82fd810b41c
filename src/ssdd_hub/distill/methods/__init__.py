"""The methods, one file each, and how they are found by name."""

from ssdd_hub.distill.methods.krr_st import KrrSt, KrrStSettings
from ssdd_hub.distill.methods.registry import METHODS, build_method, list_methods, own_networks_check

__all__ = ["METHODS", "KrrSt", "KrrStSettings", "build_method", "list_methods", "own_networks_check"]
