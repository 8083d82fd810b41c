"""Registration of the package's networks with timm, which need not be imported for it."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

NETWORKS = "ssdd_hub.models"  # importing it registers them


class _AfterTimm(MetaPathFinder):
    """Import hook that imports the networks right after timm.

    timm has no entry points for models, and importing it here would double the wait of those who only read a set.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(self)  # so that the next line asks the other finders only
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return None
        loader: Any = spec.loader
        load = loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            import_module(NETWORKS)

        loader.exec_module = load_and_register
        return spec


def register_with_timm() -> None:
    """Registers the networks with timm: at once where timm is imported, otherwise as soon as it is."""
    if sys.modules.get("timm") is not None:
        import_module(NETWORKS)
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())
