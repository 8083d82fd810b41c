"""Comparison of sets, paired by student: every set was scored with the same seeds."""

import textwrap
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ssdd_hub.hub.markdown import escape, one_line
from ssdd_hub.results.charts import own_sets
from ssdd_hub.results.tables import (
    CONSOLE,
    SIZES,
    Cell,
    Record,
    Table,
    align,
    build_tables,
    metric_of,
    number,
    spread,
    training_note,
    usual_n,
)
from ssdd_hub.text import is_size, show_bytes

KEY = ("protocol", "target", "student", "use", "labels", "metric")
UPPER_BOUNDS = ("full", "teacher")  # upper bounds, which no distilled set is expected to beat
NOT_RANKED = ("cost",)  # protocols without a ranking: no pre-training always costs least
LEVEL = 0.05
BETTER, WORSE = "▲", "▼"
BOLD = "Bold: the best set of a column."
SIZE_NOTE = "Bytes: pixels, targets and decoder as stored."
_TEST = "two-sided paired t-test over the seeds; raw p, not corrected for the number of comparisons"
DIFFERENCE_NOTE = (
    "Set minus baseline, mean over the seeds that both have: accuracies in points, errors in % of the baseline's, "
    f"others as they are; p of a {_TEST}."
)
EQUAL_BYTES_NOTE = (
    "The baseline, which each cell names, is the best by its mean of the references that fill as many bytes as the "
    "set. It was chosen by the scores that it is tested with, which flatters it and makes the comparison harder for "
    "the set: what is better is so by more than it seems, what is worse by less. Where real images take well below as "
    "many bytes, as where the source has no more of them, the cell says how many."
)
_ROUNDING = 1e-12
_FILLED = 0.95  # of the bytes of a set: real images that take less do not fill them


def compare(records: list[Record], baseline: str) -> list[Record]:
    """Compares each set with a baseline by a two-sided paired t-test over the seeds, not corrected for their number.

    `values` of the records are in the same order of seeds for every set, None where a student has no value.

    Returns:
        A record for each set and measurement (see `KEY`) that shares a seed with the baseline. `difference`: of the
        means over the `n` shared seeds, set minus baseline. `relative`: the same as a share of the baseline's mean,
        for `mse`. `better`: `lower`, `higher`, or None where it is not known. `improves`: whether the set lies in that
        direction; None for no difference. `t`, `p`, and the 95 % `interval` of the difference: None with one seed.
        Differences that are the same for all seeds have no finite `t`: it is None, and `p` is 0, or 1 where they are
        zero.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    results = [
        difference(record, sets[baseline])
        for sets in by_measurement(records).values()
        if baseline in sets
        for name, record in sets.items()
        if name != baseline
    ]
    return [result for result in results if result is not None]


def compare_at_bytes(records: list[Record]) -> list[Record]:
    """Compares each set with the best of the references that fill as many bytes, for each measurement.

    Where none fills exactly as many, these are the ones that fill the fewest above. The best is that of the best mean.
    It is chosen by the scores of the same students, which flatters it.

    Returns:
        Records as those of `compare`, with the `bytes` of the set, and `among`: the names of the references of which
        the best, the `baseline`, was chosen. Where this takes well below as many bytes, these are `filled`. None for
        costs, and where it is not known what is better.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    budgets = {record["set"]: record["budget"] for record in records if is_size(record.get("budget"))}
    sizes = {record["set"]: record["bytes"] for record in records if is_size(record.get("bytes"))}
    own, results = {name: sizes[name] for name in own_sets(records) if name in sizes}, []
    for sets in by_measurement(records).values():
        for name, first in ((name, sets[name]) for name in own if name in sets):
            direction = metric_of(first).direction
            budget = min((size for size in budgets.values() if size >= own[name]), default=None)
            beside = [r for r in sets.values() if r["mean"] is not None and budgets.get(r["set"], -1) == budget]
            if beside and direction and first["protocol"] not in NOT_RANKED:
                best = (max if direction == "higher" else min)(beside, key=lambda record: record["mean"])
                result = difference(first, best)
                among = {"bytes": own[name], "among": [record["set"] for record in beside]}
                filled = sizes.get(best["set"], own[name])
                short = {"filled": filled} if filled < _FILLED * own[name] else {}
                results += [{**result, **among, **short}] if result else []
    return results


def by_measurement(records: list[Record]) -> dict[tuple[Any, ...], dict[str, Record]]:
    """Sorts records by what was measured, the values of `KEY`, then by set.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    groups: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in records:
        key = tuple(record.get(part) for part in KEY)
        if record["set"] in groups.setdefault(key, {}):
            about = dict(zip(KEY, key, strict=True))
            raise ValueError(f"two scores of the set '{record['set']}' for {about}; one was expected")
        groups[key][record["set"]] = record
    return groups


def difference(record: Record, reference: Record) -> Record | None:
    """Compares two scores of one measurement, as `compare` describes it; None where no seed has both."""
    # A set with fewer students has the first seeds of the others.
    pairs = zip(record.get("values") or [], reference.get("values") or [], strict=False)
    known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
    known = known[np.isfinite(known).all(axis=1)]
    if not len(known):
        return None
    base = float(known[:, 1].mean())
    change = float((known[:, 0] - known[:, 1]).mean())
    better = metric_of(record).direction or None
    return {
        "set": record["set"],
        "baseline": reference["set"],
        **{key: record.get(key) for key in ("source", *KEY)},
        "difference": change,
        "relative": change / base if record["metric"] == "mse" and base else None,
        "better": better,
        "improves": (change > 0) == (better == "higher") if better and change else None,
        **_paired_test(*map(tuple, known.T.tolist())),
        "n": len(known),
    }


# Cached, since a page compares the same scores in tables, charts and words, and scipy takes a millisecond for each.
@lru_cache(maxsize=2**14)
def _paired_test(first: tuple[float, ...], second: tuple[float, ...]) -> Record:
    differences = np.subtract(first, second)
    # Imported here: a set is read and its card written without waiting for scipy.
    from scipy import stats

    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return {"t": None, "p": None, "interval": None}
    # scipy divides by the spread of the differences, which may be nothing but rounding.
    rounding = _ROUNDING * np.abs([first, second]).max()
    if np.ptp(differences) <= rounding:
        return {"t": None, "p": float(abs(mean) <= rounding), "interval": [mean, mean]}
    result = stats.ttest_rel(first, second)
    half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return {"t": float(result.statistic), "p": float(result.pvalue), "interval": [mean - half, mean + half]}


def share_of_way(records: list[Record], name: str, low: str = "random", high: str = "full") -> list[Record]:
    """Returns how much of the way from one reference to another a set goes, for each measurement of all three.

    Returns:
        Records with `share`, `(set - low) / (high - low)` of the means, None where the references are equal; and
        `note`, not empty where the references, or the set and the first of them, do not differ significantly.
    """
    shares = []
    for key, sets in by_measurement(records).items():
        means = [sets[part]["mean"] for part in (name, low, high) if part in sets]
        if key[0] in NOT_RANKED or len(means) < 3 or None in means:
            continue
        score, start, end = means
        share = (score - start) / (end - start) if end != start else None
        about = {"set": name, "low": low, "high": high, **dict(zip(KEY, key, strict=True))}
        note = _doubt(difference(sets[high], sets[low]), low, high)
        note = note or _doubt(difference(sets[name], sets[low]), low, name)
        shares.append({**about, "share": share, "note": note})
    return shares


def _doubt(span: Record | None, low: str, high: str) -> str:
    if span is None or span["p"] is None:
        return f"too few seeds to tell {high} from {low}"
    return "" if span["p"] < LEVEL else f"{high} and {low} do not differ significantly ({_chance(span['p'])})"


def _chance(p: float) -> str:
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def score_tables(records: list[Record], comparisons: list[Record]) -> list[Table]:
    """Returns tables of mean ± standard deviation, the best of each column marked, upper bounds aside.

    Sets that differ from `random` by `comparisons` (p < 0.05) are marked, and cells with another n than the usual one.
    """
    marks = {_place(result): _mark(result) for result in comparisons if result["baseline"] == "random"}
    usual = usual_n(records)

    def _text(record: Record) -> str:
        seeds = f" (n={record['n']})" if record["n"] != usual else ""
        return f"{spread(record)}{seeds}{marks.get(_place(record), '')}" if record["mean"] is not None else ""

    return build_tables(records, _text, _best)


def difference_tables(
    comparisons: list[Record], intervals: bool = False, name: Callable[[str], str] = str
) -> list[Table]:
    """Returns tables of differences, with p, and if wanted the 95 % interval and unusual n.

    They are differences to one baseline or, where results are those of `compare_at_bytes`, to one named in each cell.
    """
    usual = usual_n(comparisons)

    def _text(result: Record) -> str:
        p = "" if result["p"] is None else f" ({_chance(result['p'])})"
        if result["relative"] is None:
            change = number(result["difference"], result, sign="+")
        else:
            change = f"{100 * result['relative']:+.1f} %"
        best = f" against {name(result['baseline'])}" if "among" in result else ""
        best += f", of {show_bytes(result['filled'])}" if "filled" in result else ""
        lines = [f"{change}{p}{_mark(result)}{best}"]
        if intervals and result["interval"]:
            ends = (number(end, result, result["difference"], "+") for end in result["interval"])
            lines.append(f"[{', '.join(ends)}]")
        if intervals and result["n"] != usual:
            lines[-1] += f" n={result['n']}"
        return "\n".join(lines)

    return build_tables(comparisons, _text)


def _place(record: Record) -> tuple[Any, ...]:
    return (record["set"], *(record.get(key) for key in KEY))


def _mark(result: Record) -> str:
    if result["protocol"] in NOT_RANKED or result["p"] is None or result["p"] >= LEVEL or result["improves"] is None:
        return ""
    return f" {BETTER if result['improves'] else WORSE}"


def _best(column: dict[str, Record]) -> set[str]:
    means = {name: r["mean"] for name, r in column.items() if name not in UPPER_BOUNDS and r["mean"] is not None}
    first = next(iter(column.values()))
    direction = metric_of(first).direction
    if len(means) < 2 or not direction or first["protocol"] in NOT_RANKED:
        return set()
    best = (max if direction == "higher" else min)(means.values())
    return {name for name, mean in means.items() if mean == best}


def score_note(records: list[Record], comparisons: list[Record]) -> str:
    """Returns in words what a reader of `score_tables` of the same arguments has to know."""
    usual = usual_n(records)
    others = any(record["n"] != usual for record in records)
    seeds = f"n = {usual} seed{'s' if usual != 1 else ''}{', unless a cell says otherwise' if others else ''}"
    tested = any(result["baseline"] == "random" and result["p"] is not None for result in comparisons)
    sentences = [
        f"Mean ± standard deviation over {seeds}." if usual > 1 or others else f"Values of {seeds}.",
        "Accuracies are in %." if "accuracy" in {record["metric"] for record in records} else "",
        BOLD,
        training_note(records),
        SIZE_NOTE if any(record.get("bytes") is not None for record in records) else "",
        "full and teacher are upper bounds." if any(record["set"] in UPPER_BOUNDS for record in records) else "",
        f"{BETTER} better, {WORSE} worse than random with p < {LEVEL} ({_TEST})." if tested else "",
    ]
    return " ".join(filter(None, sentences))


def console_table(records: list[Record]) -> str:
    """Returns the tables of `score_tables` without costs as aligned text, and below them what the marks mean."""
    records = [record for record in records if record["protocol"] not in NOT_RANKED]
    if not records:
        return "No scores were measured."
    against_random, parts = compare(records, "random"), []
    for title, columns, rows in score_tables(records, against_random):
        head = ["set", *(heading for heading, _ in columns)]
        body = [[name, *(cell.text for cell in cells)] for name, cells in rows]
        lines = [[one_line(cell) for cell in row] for row in (head, *body)]
        parts.append("\n".join([*([one_line(title)] if title else []), align(lines)]))
    note = one_line(score_note(records, against_random).replace(BOLD, ""))
    return "\n\n".join([*parts, textwrap.fill(note, CONSOLE)])


def markdown_table(records: list[Record], baselines: Sequence[str] = ("random",)) -> str:
    """Returns the records of `scores.json`, and the differences to scored baselines, as Markdown for a card.

    There is a row for each set, a table for each student and, where it would be too wide, for each target; below them
    what the marks mean, and a table of differences for each baseline and at equal bytes. Names are escaped.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    if not records:
        return "No scores were measured."
    against_random = compare(records, "random")
    note = f"{score_note(records, against_random)} ↑ higher is better, ↓ lower is better."
    parts = [*map(_markdown, score_tables(records, against_random)), note]
    for baseline in baselines:
        results = compare(records, baseline)
        results = [r for r in results if {r["set"], r["protocol"]}.isdisjoint(UPPER_BOUNDS + NOT_RANKED)]
        if results:
            parts.append(f"**Difference to {escape(baseline)}.** {DIFFERENCE_NOTE}")
            parts += map(_markdown, difference_tables(results))
    if at_bytes := compare_at_bytes(records):
        parts.append(f"**Difference at equal bytes.** {DIFFERENCE_NOTE} {EQUAL_BYTES_NOTE}")
        parts += map(_markdown, difference_tables(at_bytes, name=escape))
    return "\n\n".join(parts)


def markdown_in_one(records: list[Record]) -> str:
    """Returns scores, differences to random and differences at equal bytes as columns of the same tables, in Markdown.

    Names are escaped. Below stands what the marks and the differences mean.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    against_random, at_bytes = compare(records, "random"), compare_at_bytes(records)
    shown = [result for result in against_random if result["set"] not in UPPER_BOUNDS]
    sides = {"against random": difference_tables(shown), "at equal bytes": difference_tables(at_bytes, name=escape)}
    parts = []
    for table in score_tables(records, against_random):
        columns, rows = list(table.columns), {name: list(cells) for name, cells in table.rows}
        for title, side in ((title, side) for title, sides_of in sides.items() for side in sides_of):
            places = [place for place, (heading, _) in enumerate(side.columns) if heading not in SIZES]
            cells = dict(side.rows)
            if side.title == table.title:
                columns += [(f"{side.columns[place][0]}, {title}", side.columns[place][1]) for place in places]
                for name, row in rows.items():
                    row += [cells[name][place] if name in cells else Cell("") for place in places]
        parts.append(_markdown(Table(table.title, columns, list(rows.items()))))
    notes = [f"{score_note(records, against_random)} ↑ higher is better, ↓ lower is better."]
    notes += [DIFFERENCE_NOTE] if shown or at_bytes else []
    return "\n\n".join([*parts, " ".join([*notes, *([EQUAL_BYTES_NOTE] if at_bytes else [])])])


def _markdown(table: Table) -> str:
    header = ["set", *(f"{escape(heading)}{_arrow(heading, record)}" for heading, record in table.columns)]
    body = [
        [escape(name), *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)]
        for name, cells in table.rows
    ]
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body)]
    return "\n".join([*([f"**{escape(table.title)}**", ""] if table.title else []), *lines])


def _arrow(heading: str, record: Record) -> str:
    metric = metric_of(record)
    known = record["metric"] in ("mse", "accuracy") or heading.endswith(record["metric"])
    unit = "" if known else f", {escape(metric.unit)}"
    return unit + {"higher": " ↑", "lower": " ↓"}.get(metric.direction, "")
