"""Distillation: the outer loop, its real batches, the pool of students and the kernel regression."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.distill.batches import build_batches as build_batches
    from ssdd_hub.distill.distiller import Distiller as Distiller, DistillerSettings as DistillerSettings
    from ssdd_hub.distill.krr import Regression as Regression, outer_loss as outer_loss
    from ssdd_hub.distill.loop import distil as distil
    from ssdd_hub.distill.pool import PoolSettings as PoolSettings, StudentPool as StudentPool
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "batches: build_batches",
        "distiller: Distiller DistillerSettings",
        "krr: Regression outer_loss",
        "loop: distil",
        "pool: PoolSettings StudentPool",
    )
