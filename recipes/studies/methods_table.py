"""The table of a comparison of methods: scores of several sets of each method as one, and its place in a page."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssdd_hub import InputError
from ssdd_hub.evaluation.entries import REFERENCES
from ssdd_hub.evaluation.evaluation import describe_values
from ssdd_hub.files import atomic_path
from ssdd_hub.hub.markdown import escape
from ssdd_hub.results.compare import NOT_RANKED, by_measurement, markdown_in_one
from ssdd_hub.results.tables import Record


def is_name(name: Any) -> bool:
    """Whether a name is fit for folders and tables, and not that of a reference."""
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w .-]{0,59}", name)
    return bool(plain) and re.split("[- ]", str(name))[0] not in REFERENCES


def join_scores(scored: Mapping[int, Sequence[Record]]) -> list[Record]:
    """Puts the records of sets that were made and scored with several seeds together, by names that they share.

    Of several seeds, `values` of the result has for each its mean over the students, None where it has no score:
    `mean`, `std` and `n` are over sets, `students` are those of each, and `within` is the mean of their std in a set.
    Of a single one, the records stay as they are, over students.
    """
    if len(scored) < 2:
        return [dict(record) for records in scored.values() for record in records]
    found: dict[tuple[Any, ...], dict[int, Record]] = {}
    for seed, records in scored.items():
        for key, sets in by_measurement(list(records)).items():
            for name, record in sets.items():
                found.setdefault((name, *key), {})[seed] = record
    joined = []
    for mine in found.values():
        first, known = next(iter(mine.values())), [record for record in mine.values() if record["n"]]
        values = [mine[seed]["mean"] if seed in mine else None for seed in scored]
        within = [record["std"] for record in known if record["n"] > 1]
        sizes: Record = {
            size: round(np.mean([record[size] for record in mine.values()]))
            for size in ("images", "bytes")
            if size in first
        }
        more: Record = {"students": max((record["n"] for record in known), default=0)}
        more |= {"within": float(np.mean(within))} if within else {}
        joined.append({**first, **sizes, **describe_values(values), **more})
    return joined


def render(tables: Mapping[str, list[Record]], failures: Sequence[Mapping[str, str]]) -> str:
    """Returns tables with what they were measured on, paired tests, and what failed, as Markdown."""
    parts = []
    for title, records in tables.items():
        shown = [record for record in records if record["protocol"] not in NOT_RANKED]
        parts += [f"**{escape(title)}**"] if len(tables) > 1 else []
        parts.append(markdown_in_one(shown))
        students = max((record.get("students", 0) for record in shown), default=0)
        if students > 1:
            more = f"n counts sets: each value is the mean of {students} students of a set, whose std is in brackets."
        else:
            more = (
                "n counts sets, with one student each." if students else "n counts students of one set of each method."
            )
        parts.append(f"{more} References are drawn anew for each.")
    parts += [f"**Failed:** {escape(each['name'])}: {escape(each['reason'])}" for each in failures]
    return "\n\n".join(parts) + "\n"


class Page(NamedTuple):
    """A page with a block that is written by this recipe alone."""

    path: Path | None
    name: str

    @classmethod
    def find(cls, path: str | None, name: str) -> "Page":
        """Returns the page; raises an `InputError` where it lacks the block."""
        page = cls(Path(path) if path else None, name)
        page._parts()
        return page

    @property
    def _marks(self) -> tuple[str, str]:
        return f"<!-- methods: {self.name} -->", f"<!-- end of methods: {self.name} -->"

    def _parts(self) -> tuple[str, str]:
        """Returns what stands before and after the block, with its marks."""
        if self.path is None:
            return "", ""
        try:
            text = self.path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--page {self.path} cannot be read ({error}): give a page, or leave it out") from error
        first, last = self._marks
        before, _, rest = text.partition(first)
        _, _, after = rest.partition(last)
        if text.count(first) != 1 or text.count(last) != 1 or last not in rest:
            raise InputError(
                f"--page {self.path} must hold once each, in lines of their own, {first} and {last}: add them"
            )
        return before + first, last + after

    def write(self, block: str) -> None:
        """Puts a text between the marks; all else stays as it is by then."""
        if self.path is not None:
            before, after = self._parts()
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(f"{before}\n{block.strip()}\n{after}".encode())
