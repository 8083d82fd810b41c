"""Names of a package that are imported on first use, so that what others need is not loaded."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_names(package: str, *offered: str) -> tuple[Callable[[str], Any], list[str]]:
    """Returns `__getattr__` and `__all__` of a package from modules with their names: `"distilled: DistilledSet"`.

    Without a module, a name is that of a package: `": distill"`. The names are also what `dir` lists, by which
    notebooks complete.
    """
    own = vars(sys.modules[package])
    places = {name: module for module, _, names in (each.partition(":") for each in offered) for name in names.split()}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place = import_module(f"{package}.{places[name] or name}")
        found = getattr(place, name) if places[name] else place
        # The next use does not come here.
        own[name] = found
        return found

    own["__dir__"] = lambda: sorted({*own, *places})
    return find, sorted(places)


def callable_package(package: str, place: str) -> None:
    """Makes a package do what its name says when it is called: `place` is the function's, `"module:name"`."""
    module, _, name = place.partition(":")

    class _Callable(ModuleType):
        def __call__(self, *args: Any, **settings: Any) -> Any:
            return getattr(import_module(module), name)(*args, **settings)

    sys.modules[package].__class__ = _Callable
