"""Bytes at equal score: how many real images, or another set, need for the score of a set."""

import math
from collections.abc import Sequence

from ssdd_hub.results.charts import own_sets
from ssdd_hub.results.compare import KEY, NOT_RANKED, by_measurement, difference
from ssdd_hub.results.tables import Record, family, group, metric_of
from ssdd_hub.text import is_size

EXACTLY, AT_MOST, MORE_THAN = "", "at most", "more than"


def bytes_for_worth(records: list[Record]) -> list[Record]:
    """Tells how many bytes real images need for the worth of each set, for each measurement.

    They are the references that fill bytes, of several sizes. Of each selection and form a line is drawn through the
    means, over the logarithm of the bytes; what is needed are the fewest bytes at which a line is as good as the mean
    of the set. Nothing is tested.

    Returns:
        A record for each set and measurement (see `compare.KEY`) of them: `bytes` of the set; `needed`, the bytes of
        real images, and `times` these are as many; `bound`: empty, `at most` where the smallest that were measured
        are as good, `more than` where the largest are not; `reference`, the selection and form, then the best.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    own, results = own_sets(records), []
    for key, sets in by_measurement(_ranked(records)).items():
        beside = [r for name, r in sets.items() if name not in own and is_size(r.get("budget"))]
        if len({record["budget"] for record in beside}) < 2:
            continue
        lines = group([{**record, "family": family(record)} for record in beside], "family")
        for name in (name for name in own if name in sets):
            found = [(*_needed(line, sets[name]), str(reference)) for (reference,), line in lines.items()]
            reached = [each for each in found if each[1] != MORE_THAN]
            if reached:
                needed, bound, reference = min(reached)
            else:
                most = max(record["budget"] for record in beside)
                sign = _sign(sets[name])
                best = max((r for r in beside if r["budget"] == most), key=lambda record: sign * record["mean"])
                needed, bound, reference = best["bytes"], MORE_THAN, family(best)
            size = sets[name]["bytes"]
            about = {"set": name, **dict(zip(KEY, key, strict=True)), "bytes": size, "needed": round(needed)}
            results.append({**about, "times": needed / size, "bound": bound, "reference": reference})
    return results


def fewer_bytes(records: list[Record]) -> list[Record]:
    """Compares each set with those of more bytes by whose measure it is as good or better, by its mean.

    Returns:
        Records as those of `compare`, with `times`: the bytes of the other by those of the set.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    own, results = own_sets(records), []
    for sets in by_measurement(_ranked(records)).values():
        scores = [sets[name] for name in own if name in sets]
        for first in scores:
            for other in (other for other in scores if other["bytes"] > first["bytes"]):
                result = difference(first, other)
                if result and result["improves"] is not False:
                    results.append({**result, "times": other["bytes"] / first["bytes"]})
    return results


def _ranked(records: list[Record]) -> list[Record]:
    """Returns the scores of what has bytes that are better higher, or lower."""
    return [
        record
        for record in records
        if record["mean"] is not None
        and is_size(record.get("bytes"))
        and record["bytes"] > 0
        and metric_of(record).direction
        and record["protocol"] not in NOT_RANKED
    ]


def _sign(record: Record) -> int:
    return 1 if metric_of(record).direction == "higher" else -1


def _needed(line: Sequence[Record], score: Record) -> tuple[float, str]:
    """Returns the bytes at which a line of references is first as good as a score, and what they are."""
    line, sign = sorted(line, key=lambda record: record["bytes"]), _sign(score)
    before: Record | None = None
    for record in line:
        if sign * record["mean"] >= sign * score["mean"]:
            if before is None:
                return record["bytes"], AT_MOST
            share = (score["mean"] - before["mean"]) / (record["mean"] - before["mean"])
            return before["bytes"] * (record["bytes"] / before["bytes"]) ** share, EXACTLY
        before = record
    return math.inf, MORE_THAN
