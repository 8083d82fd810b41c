"""Engines by their settings."""

from accelerate import Accelerator

from ssdd_hub.distill.engine.base import Engine, EngineSettings
from ssdd_hub.distill.engine.eager import EagerEngine
from ssdd_hub.distill.engine.fast import FastEngine


def build_engine(settings: EngineSettings, accelerator: Accelerator) -> Engine:
    """Returns an engine.

    Args:
        settings: See `EngineSettings`.
        accelerator: Device and mixed precision. Kernels are never built in reduced precision.
    """
    return FastEngine(settings, accelerator) if settings.kind == "fast" else EagerEngine(settings, accelerator)
