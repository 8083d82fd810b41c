"""Distillation: methods, parameterisations, the outer step that joins them, and the engine that computes it.

Called, as `ssdd_hub.distill(images, num_images=100)`, it makes a set: see `ssdd_hub.calls.distill`.
"""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import callable_package, lazy_names

if TYPE_CHECKING:
    from ssdd_hub.distill.batches import build_batches as build_batches
    from ssdd_hub.distill.distiller import Distiller as Distiller, DistillerSettings as DistillerSettings
    from ssdd_hub.distill.engine.base import Engine as Engine, EngineSettings as EngineSettings
    from ssdd_hub.distill.engine.build import build_engine as build_engine
    from ssdd_hub.distill.krr import Regression as Regression, outer_loss as outer_loss
    from ssdd_hub.distill.loop import distil as distil
    from ssdd_hub.distill.method import Method as Method, Problem as Problem
    from ssdd_hub.distill.methods.registry import build_method as build_method, list_methods as list_methods
    from ssdd_hub.distill.pairs import Pairs as Pairs
    from ssdd_hub.distill.parameterisations.base import Parameterisation as Parameterisation
    from ssdd_hub.distill.parameterisations.registry import (
        build_parameterisation as build_parameterisation,
        list_parameterisations as list_parameterisations,
    )
    from ssdd_hub.distill.pool import PoolSettings as PoolSettings, StudentPool as StudentPool
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "batches: build_batches",
        "distiller: Distiller DistillerSettings",
        "engine.base: Engine EngineSettings",
        "engine.build: build_engine",
        "krr: Regression outer_loss",
        "loop: distil",
        "method: Method Problem",
        "methods.registry: build_method list_methods",
        "pairs: Pairs",
        "parameterisations.base: Parameterisation",
        "parameterisations.registry: build_parameterisation list_parameterisations",
        "pool: PoolSettings StudentPool",
    )
    callable_package(__name__, "ssdd_hub.calls:distill")
