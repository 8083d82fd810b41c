"""The recipes, found as they are installed or in the clone around this package, and run in this process."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

_PACKAGE = "ssdd_hub.recipes"


class Recipe(NamedTuple):
    """A recipe as a command: what it does, the options that its first words stand for, and settings for photographs.

    Its own default settings are for the digits.
    """

    text: str
    places: tuple[str, ...]
    photos: str | None = None


RECIPES = {
    "distill": Recipe(
        "distil images into a set: teacher, targets, set, first scores, report", ("data.name",), "photos"
    ),
    "evaluate": Recipe("score sets beside references by several protocols and datasets", ("set",)),
    "train-teacher": Recipe("train a teacher without labels", ("data.name",), "photos_teacher"),
    "compute-targets": Recipe("compute a teacher's features of a whole dataset", ("data.name",)),
    "audit": Recipe("measure how much a set tells of the images that it was made from", ("set",)),
    "publish": Recipe("publish a set with its teacher, students and a collection", ("set", "repo")),
}
"""The recipes that are commands of `ssdd-hub`, with a dash in the name where the file has an underscore."""


def load_recipe(name: str) -> Any:
    """Returns the module of a recipe; that of the clone where this package is imported from one."""
    root = Path(__file__).parent
    clone = root.parents[1] / "recipes"
    # An installed package is another one than the clone's, which is imported here.
    if _PACKAGE not in sys.modules and not (root / "recipes").is_dir() and clone.is_dir():
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(clone)]
        sys.modules[_PACKAGE] = package
    return import_module(f"{_PACKAGE}.{name.replace('-', '_')}")


def recipe_options(name: str) -> list[str]:
    """Returns the options of a recipe."""
    # Commands that run no recipe answer without it.
    from ssdd_hub.settings import list_options

    words = "".join(word.capitalize() for word in name.split("-"))
    return list_options(getattr(load_recipe(name), f"{words}Config"))


def run_recipe(name: str, words: Sequence[str]) -> int:
    """Runs a recipe with its command line, which may begin with values of its `places`; returns the exit status."""
    recipe, options = load_recipe(name), spell_out(name, words)
    try:
        with command_line(name, options):
            recipe.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def spell_out(name: str, words: Sequence[str]) -> list[str]:
    """Returns a command line with the option written before each leading value, and the settings for such images."""
    recipe, options, rest = RECIPES[name], list[str](), list(words)
    for place in recipe.places:
        if rest and not rest[0].startswith("-"):
            options += [f"--{place}", rest.pop(0)]
    chosen = any(word.partition("=")[0] == "--config" for word in rest)
    if recipe.photos and options and options[1] != "digits" and not chosen:
        options = ["--config", recipe.photos, *options]
    return [*options, *rest]


@contextmanager
def command_line(name: str, options: Sequence[str]) -> Iterator[None]:
    """Makes a command line that of this process, which recipes read, and record as how a set was made."""
    before = sys.argv
    sys.argv = [f"{name.replace('-', '_')}.py", *options]
    try:
        yield
    finally:
        sys.argv = before
