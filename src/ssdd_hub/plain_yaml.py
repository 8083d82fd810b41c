"""A YAML reader for untrusted text: plain values, no tags, no aliases, no duplicate names, within limits."""

from collections import Counter
from typing import Any

import yaml

from ssdd_hub.errors import InputError

_MOST_LEVELS = 30
_LONGEST_NUMBER = 100  # characters, since the time grows with their square
# What the readers of numbers and dates raise, which believe what is tagged as one.
_MISTAKES = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
        InputError: It is no such YAML.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except _MISTAKES as error:
        raise InputError(f"its YAML cannot be read ({' '.join(str(error).split())[:200]})") from error
