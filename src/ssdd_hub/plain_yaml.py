"""YAML readers: plain values within limits for untrusted text, and YAML 1.2 scalars for files of settings."""

import re
from collections import Counter
from typing import Any

import yaml

from ssdd_hub.errors import InputError

_MOST_LEVELS = 30
LARGEST_SETTINGS = 2**17
"""Characters of a file of settings at most: what takes PyYAML seconds is no file of settings."""
_LONGEST_NUMBER = 100  # characters, since the time grows with their square
# What the readers of tagged numbers and dates raise.
MISTAKES = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class _PlainLoader(yaml.SafeLoader):
    """YAML as the Hub and `datasets` take it: plain values, no key twice. No aliases, which make bytes gigabytes."""

    aliases = False
    tags = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")}
    most_nodes = 200_000  # the card of a dataset names tens of thousands of classes
    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias, before = self.check_event(yaml.events.AliasEvent), self.nodes
        if is_alias and not self.aliases:
            raise yaml.composer.ComposerError("aliases are not taken")
        if self.depth == _MOST_LEVELS:
            raise yaml.composer.ComposerError(f"it is nested more than {_MOST_LEVELS} deep")
        if not before:
            self.sizes = dict[str, int]()
        if is_alias and event.anchor in self.anchors:
            if event.anchor not in self.sizes:
                raise yaml.composer.ComposerError(f"the alias {event.anchor!r} stands inside what it names")
            self.nodes += self.sizes[event.anchor]
        self.nodes += 1
        if self.nodes > self.most_nodes:
            raise yaml.composer.ComposerError(f"it has more than {self.most_nodes} values, with aliases written out")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if event.anchor and not is_alias:
            self.sizes[event.anchor] = self.nodes - before
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag not in self.tags:
            raise yaml.constructor.ConstructorError(f"values of the kind {node.tag[:80]!r} are not taken")
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(f"a number has more than {_LONGEST_NUMBER} characters")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        counts = Counter(key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode))
        for key, count in counts.items():
            if count > 1:
                problem = f"the key {key[:80]!r} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


class SettingsLoader(_PlainLoader):
    """Reads scalars as YAML 1.2 does, unlike PyYAML: 1e-4 is a number, `no`, 010, 1:30 and a date are words.

    An alias counts as all that it stands for, since settings are written out again.
    """

    aliases = True  # these files are the user's own
    most_nodes = 10_000
    tags = _PlainLoader.tags - {"tag:yaml.org,2002:timestamp"}
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class SettingsDumper(yaml.SafeDumper):
    """Puts strings that `SettingsLoader` would read as numbers in quotes."""


_BOOL = re.compile("(true|True|TRUE|false|False|FALSE)$")
# Not 010, which is 8 to some and 10 to others.
_INT = re.compile(r"[-+]?(0|[1-9]\d*|0x[0-9a-fA-F]+)$", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$", re.ASCII
)
SettingsLoader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
SettingsLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
for _class in (SettingsLoader, SettingsDumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_plain_yaml(text: str) -> Any:
    """Reads untrusted YAML as plain values: no tags, no aliases, no key twice.

    Raises:
        InputError: It is no such YAML.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except MISTAKES as error:
        raise InputError(f"its YAML cannot be read ({' '.join(str(error).split())[:200]})") from error
