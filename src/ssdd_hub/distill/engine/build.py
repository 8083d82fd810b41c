"""Builds the engine that settings name."""

from accelerate import Accelerator

from ssdd_hub.distill.engine.base import Engine, EngineSettings
from ssdd_hub.distill.engine.eager import EagerEngine
from ssdd_hub.distill.engine.fast import FastEngine


def build_engine(settings: EngineSettings, accelerator: Accelerator) -> Engine:
    """Returns an engine on the accelerator's device, with its mixed precision for networks but not for kernels."""
    return FastEngine(settings, accelerator) if settings.kind == "fast" else EagerEngine(settings, accelerator)
