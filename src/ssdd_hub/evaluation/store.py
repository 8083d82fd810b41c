"""The store of scores on the disk: what was measured once is not measured again."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssdd_hub.evaluation.protocols.base import Measure
from ssdd_hub.files import atomic_path
from ssdd_hub.record import hash_json

Key = dict[str, Any]


class ScoreStore:
    """One small JSON file for each cell, named by a hash of all that its numbers depend on.

    A cell appears whole or not at all: an evaluation can be stopped at any moment and goes on where it was.

    Args:
        folder: Where the files are; made when the first cell is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: Key) -> list[Measure] | None:
        """Returns what was measured, or None; a file that is not what was written counts as none."""
        try:
            stored = json.loads(self._path(key).read_text(encoding="utf-8"))
            # As it is read back: with lists for tuples.
            if stored["key"] != json.loads(json.dumps(key)):
                return None
            # Earlier versions wrote no hash.
            if stored.get("sha256") not in (None, hash_json(stored["measures"])):
                return None
            return [Measure(**measure) for measure in stored["measures"]]
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, key: Key, measures: Sequence[Measure]) -> None:
        """Stores what was measured."""
        plain = [asdict(measure) for measure in measures]
        # A digit that the disk has changed would be a score that nobody measured.
        content = {"key": key, "measures": plain, "sha256": hash_json(plain)}
        with atomic_path(self._path(key)) as temporary:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _path(self, key: Key) -> Path:
        return self.folder / f"{hash_json(key)[:32]}.json"
