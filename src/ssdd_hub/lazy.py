"""Names of a package that are imported on first use, so that what others need is not loaded."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, *offered: str) -> tuple[Callable[[str], Any], list[str]]:
    """Returns `__getattr__` and `__all__` of a package from modules with their names: `"distilled: DistilledSet"`.

    The names are also what `dir` lists, by which notebooks complete.
    """
    own = vars(sys.modules[package])
    places = {name: module for module, _, names in (each.partition(":") for each in offered) for name in names.split()}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{places[name]}"), name)
        # The next use does not come here.
        own[name] = found
        return found

    own["__dir__"] = lambda: sorted({*own, *places})
    return find, sorted(places)
