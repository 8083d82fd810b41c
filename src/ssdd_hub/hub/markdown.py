"""Markdown of cards, in which untrusted text is escaped."""

import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import CardData, RepoCard

from ssdd_hub.errors import InputError
from ssdd_hub.plain_yaml import load_plain_yaml
from ssdd_hub.text import printable

if TYPE_CHECKING:
    from jinja2 import Template

_LONGEST_LIST = 8  # of a longer one a cell has the length
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?(?:\n|\Z)", re.DOTALL)
_LONGEST_FRONT = 2**16  # characters, which take seconds


def render_card(kind: type[RepoCard], data: CardData, package: str, file: str, /, **values: Any) -> str:
    """Returns a card by a template of a package, as `kind.from_template` makes it, which compiles it each time."""
    stated = data.to_dict()  # type: ignore[no-untyped-call]
    content = _template(package, file).render(card_data=data.to_yaml(), **{**stated, **values})
    return printable(f"{str(kind(content)).rstrip()}\n")


@cache
def _template(package: str, file: str) -> "Template":
    from jinja2 import Template

    compiled: Template = Template((files(package) / "templates" / file).read_text(encoding="utf-8"))
    return compiled


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns escaped names and values of the facts that are known."""
    known = {name: value for name, value in facts.items() if value is not None}
    return [(escape(name.replace("_", " ").capitalize()), describe(value)) for name, value in known.items()]


def describe(facts: Any) -> str:
    """Returns the known facts in one escaped line."""
    return escape(_text(facts))


def plain(facts: Any) -> str:
    """Returns the known facts in one line, as they are."""
    return one_line(_text(facts))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        known = {name: part for name, part in value.items() if part is not None and part != []}
        return "; ".join(f"{str(name).replace('_', ' ')}: {_text(part)}" for name, part in known.items())
    if isinstance(value, list | tuple):
        return f"{len(value)} values" if len(value) > _LONGEST_LIST else ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def to_yaml(settings: Any) -> str:
    """Returns settings as YAML, in their order."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()


def read_header(card: str) -> dict[str, Any]:
    """Reads the YAML block of a card; refuses all but a mapping of plain values."""
    block = _FRONT.match(card)
    if block and len(block[1]) > _LONGEST_FRONT:
        raise InputError(f"its YAML must be of at most {_LONGEST_FRONT} characters, got {len(block[1])}")
    header = load_plain_yaml(block[1]) if block else None
    if not isinstance(header, dict):
        raise InputError("does not open with a block of YAML, a mapping, between two lines of ---")
    return header


def paths_of_config(config: Any) -> list[Any]:
    """Returns the patterns of data files that an entry of `configs` names, of any type; None where it names none."""
    files = config.get("data_files") if isinstance(config, dict) else None
    parts = files if isinstance(files, list) and files else [files]
    return [part.get("path") if isinstance(part, dict) else part for part in parts]


def one_line(text: str) -> str:
    """Returns the words with single spaces between them."""
    return " ".join(text.split())


def escape(text: str) -> str:
    """Returns untrusted text as one line, in which Markdown and HTML see nothing but characters."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(one_line(str(text)), quote=False))


def fence(code: str, language: str) -> str:
    """Returns code in a fence longer than any run of backticks in it."""
    marks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{marks}{language}\n{code}\n{marks}"


def list_scores(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns records of `scores.json` as a table with one row each, mean ± std; empty where there are none."""
    if not records:
        return ""
    names = ["set", "protocol", "source", "target", "student", "labels", "metric"]
    head = [*map(str.capitalize, names), "Score", "n"]
    lines = [head, ["---"] * len(head)]
    for record in records:
        known = [value for value in (record.get("mean"), record.get("std")) if isinstance(value, int | float)]
        score = " ± ".join(f"{number:.{digits}g}" for number, digits in zip(known, (4, 2), strict=False))
        lines.append([*(describe(record.get(name)) for name in names), score, describe(record.get("n"))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
