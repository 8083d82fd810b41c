"""Text of cards: facts from outside become Markdown in which nothing but the text is seen."""

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ssdd_hub.errors import InputError

_LONGEST_LIST = 8  # a longer one has no place in a cell; `ssdd_hub.json` has it
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?(?:\n|\Z)", re.DOTALL)
_LONGEST_FRONT = 2**16  # characters, which take seconds
_MOST_LEVELS = 30
# What `load_plain_yaml` raises: the readers of numbers and dates believe what is tagged as one.
YAML_MISTAKES = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_LONGEST_NUMBER = 100  # characters, since the time grows with their square


def section(provenance: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns one part of the provenance; a bare value counts as its name."""
    value = provenance.get(name) or {}
    return value if isinstance(value, Mapping) else {"name": value}


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns escaped names and values of the facts that are known."""
    return [
        (escape(name.replace("_", " ").capitalize()), describe(value))
        for name, value in facts.items()
        if value is not None
    ]


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


class _PlainLoader(yaml.SafeLoader):
    """YAML as the Hub and `datasets` take it: plain values, no key twice. No aliases, which make bytes gigabytes."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError("aliases are not taken")
        if self.depth == _MOST_LEVELS:
            raise yaml.composer.ComposerError(f"it is nested more than {_MOST_LEVELS} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(f"a number has more than {_LONGEST_NUMBER} characters")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        counts = Counter(key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode))
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            raise yaml.constructor.ConstructorError(f"the key {twice[0][:80]!r} stands there twice")
        return super().construct_mapping(node, deep)


def load_plain_yaml(text: str) -> Any:
    """Reads YAML as plain values, without tags and aliases; each name stands there once.

    Raises:
        yaml.YAMLError: It is no such YAML. Values that are tagged as what they are not raise their readers' errors.
    """
    return yaml.load(text, _PlainLoader)


def read_header(card: str) -> dict[str, Any]:
    """Reads the YAML block of a card, as plain values and nothing else.

    Raises:
        InputError: The card has no such block, or one that is not a mapping of plain values.
    """
    block = _FRONT.match(card)
    if block and len(block[1]) > _LONGEST_FRONT:
        raise InputError(f"its YAML must be of at most {_LONGEST_FRONT} characters, got {len(block[1])}")
    try:
        header = load_plain_yaml(block[1]) if block else None
    except YAML_MISTAKES as error:
        raise InputError(f"its YAML cannot be read ({one_line(str(error))[:200]})") from error
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
    """Makes text from outside plain: one line in which Markdown and HTML see nothing but characters."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(one_line(str(text)), quote=False))


def fence(code: str, language: str) -> str:
    """Wraps code in a fence longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def list_scores(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns records of `scores.json` as a table of one row each; empty where there are none."""
    if not records:
        return ""
    head = ["Set", "Protocol", "Source", "Target", "Student", "Labels", "Metric", "Score", "n"]
    lines = [head, ["---"] * len(head), *map(_score_cells, records)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _score_cells(score: Mapping[str, Any]) -> list[str]:
    """Returns the escaped cells of one record: what was measured, mean ± std, and n."""
    names = ("set", "protocol", "source", "target", "student", "labels", "metric")
    mean, std = score.get("mean"), score.get("std")
    known = [value for value in (mean, std) if isinstance(value, int | float)]
    value = " ± ".join(f"{number:.{digits}g}" for number, digits in zip(known, (4, 2), strict=False))
    return [*(describe(score.get(name)) for name in names), value, describe(score.get("n"))]
