"""How a step is computed, never what: the eager reference, and the fast engine of ordinary runs."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.distill.engine.base import Engine as Engine, EngineSettings as EngineSettings
    from ssdd_hub.distill.engine.build import build_engine as build_engine
    from ssdd_hub.distill.engine.eager import EagerEngine as EagerEngine
    from ssdd_hub.distill.engine.fast import FastEngine as FastEngine
    from ssdd_hub.distill.engine.memory import MicroBatches as MicroBatches
    from ssdd_hub.distill.engine.timing import Stopwatch as Stopwatch
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "base: Engine EngineSettings",
        "build: build_engine",
        "eager: EagerEngine",
        "fast: FastEngine",
        "memory: MicroBatches",
        "timing: Stopwatch",
    )
