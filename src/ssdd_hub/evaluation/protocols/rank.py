"""Ranking of architectures by a small set, compared with their ranking by the whole source."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from scipy.stats import kendalltau

from ssdd_hub.bounds import Settings, one_of
from ssdd_hub.errors import Check
from ssdd_hub.evaluation.evaluation import COST, Record, describe_values

RANK = "rank"
BY = ("probe", "teacher_error", "finetune", "knn")


def _variants() -> list[dict[str, Any]]:
    widths = ([8, 16, 32], [16, 32, 64], [32, 64, 128], [16, 32])
    return [{"name": "ssdd_convnet3", "widths": list(w), "norm": norm} for w in widths for norm in ("batch", "none")]


@dataclass(frozen=True)
class RankSettings(Settings, section="rank"):
    """A search for the best of several architectures, done on a set and on the whole source.

    Attributes:
        variants: The architectures: for each, the `name` of a timm model and its arguments.
        by: The protocol whose score they are ordered by, on the first dataset that has one, with the first of its
            numbers of labels: one of `probe`, `teacher_error`, `finetune`, `knn`.
    """

    variants: list[dict[str, Any]] = field(default_factory=_variants)
    by: Annotated[str, one_of(BY)] = "probe"

    def conflicts(self) -> Iterator[Check]:
        """Yields what the list of architectures must be."""
        yield len(self.variants) >= 3, f"rank.variants must be at least 3 to be ordered, got {len(self.variants)}"
        yield (
            all(isinstance(variant.get("name"), str) for variant in self.variants),
            "rank.variants must each have the name of a timm model, as in {name: ssdd_convnet3, widths: [16, 32]}",
        )


def rank_records(records: Sequence[Record], students: Sequence[str], by: str, reference: str) -> list[Record]:
    """Compares the order of architectures on each set with that on a reference, such as `full`.

    Returns:
        For each other set two records of protocol `rank`: `tau`, Kendall's tau-b (Kendall, Biometrika 1945) of the two
        orders by the scores of protocol `by`, in `[-1, 1]`, 1 for the same order and None where all scores are equal,
        one for each seed; and `speedup`, the seconds of pre-training all architectures on the reference over those on
        the set.
    """
    scored = [record for record in records if record["protocol"] == by and record["student"] in students]
    if not scored:
        return []
    first = {key: scored[0][key] for key in ("target", "labels", "metric")}
    scores = {(r["set"], r["student"]): r["values"] for r in scored if all(r[key] == first[key] for key in first)}
    seconds = {
        (r["set"], r["student"]): r["values"] for r in records if r["protocol"] == COST and r["metric"] == "seconds"
    }
    about = {key: scored[0].get(key) for key in ("source", "target", "use", "labels")}
    found: list[Record] = []
    for name in dict.fromkeys(record["set"] for record in scored):
        facts = {**about, "set": name, "protocol": RANK, "student": f"{len(students)} architectures", "by": by}
        # A set that nothing is pre-trained on costs nothing, and has no speedup.
        for metric, table, compare in (("tau", scores, _tau), ("speedup", seconds, _ratio)):
            ours, theirs = (_columns(table, place, students) for place in (name, reference))
            if name == reference or not (ours and theirs):
                break
            pairs = zip(ours, theirs, strict=True)
            values = [None if None in (*pair[0], *pair[1]) else compare(*pair) for pair in pairs]
            found.append({**facts, "metric": metric, **describe_values(values)})
    return found


def _columns(table: Mapping[tuple[str, str], Sequence[Any]], name: str, students: Sequence[str]) -> list[list[Any]]:
    """Returns for each seed the values of all students; nothing where a student has none."""
    rows = [table.get((name, student)) for student in students]
    return [list(column) for column in zip(*rows, strict=True)] if all(rows) else []


def _tau(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    tau = float(kendalltau(ours, theirs).statistic)
    return None if math.isnan(tau) else tau


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return sum(theirs) / max(sum(ours), 1e-9)
