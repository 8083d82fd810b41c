"""Records of `scores.json` as numbers and columns that a person can read."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ssdd_hub.text import is_size, show_bytes

Record = dict[str, Any]
# What was measured (the heading) -> set -> its record.
Columns = dict[str, dict[str, Record]]


class Metric(NamedTuple):
    """How a metric is shown."""

    unit: str
    direction: str = ""  # `lower` or `higher` is better; empty where it is not known
    factor: float = 1  # from the stored to the shown number
    digits: str = ".4f"


class Cell(NamedTuple):
    """A cell of a table, and whether it is the best of its column."""

    text: str
    best: bool = False


class Table(NamedTuple):
    """A table of scores or differences."""

    title: str  # empty where there is but one table
    columns: list[tuple[str, Record]]  # headings, with a record that tells the metric below each
    rows: list[tuple[str, list[Cell]]]  # the name of a set and its cells


METRICS = {
    "mse": Metric("mean squared error", "lower"),
    "accuracy": Metric("accuracy in %", "higher", 100, ".1f"),
    "lrs": Metric("label-robust score in %", "higher", 100, ".1f"),
    "ars": Metric("augmentation-robust score in %", "higher", 100, ".1f"),
    "seconds": Metric("seconds", "lower", 1, ".1f"),
    "steps": Metric("steps", "lower", 1, ".0f"),
    "epochs": Metric("passes over the set", "lower", 1, ".1f"),
    "tau": Metric("Kendall's tau", "higher", 1, ".3f"),
    "speedup": Metric("times as fast", "higher", 1, ".1f"),
    "images": Metric("number"),
    "bytes": Metric("as stored"),
}
SIZES: dict[str, Callable[[int], str]] = {"images": "{:,}".format, "bytes": show_bytes}
"""What tells how large a set is, and how it is shown."""
DETAILS = ("metric", "student", "target", "use")  # what tells two columns of the same protocol and labels apart
MOST_COLUMNS = 7  # wider tables are split
CONSOLE = 100  # characters of a line


def metric_of(record: Record) -> Metric:
    """Returns how the number of a record is shown; an unknown metric is shown as it is."""
    return METRICS.get(record["metric"], Metric(record["metric"]))


def score_table(records: list[Record]) -> str:
    """Returns the records of `scores.json` as plain text, one row for each set and one column for each protocol."""
    columns = sort_columns(records)
    if not columns:
        return "no scores"
    head = ["set", *(heading for heading, _ in headings(columns))]
    return align([head, *([name, *cells] for name, cells in score_rows(columns))])


def align(rows: Sequence[Sequence[str]], width: int = CONSOLE) -> str:
    """Returns rows, the first of them headings, as text with aligned columns.

    Columns that would make lines longer than `width` characters follow below, beside the first column again.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        taken = sum(widths[place] + 2 for place in blocks[-1])
        if len(blocks[-1]) > 1 and taken + widths[column] > width:
            blocks.append([0])
        blocks[-1].append(column)
    ruled = [rows[0], ["-" * size for size in widths], *rows[1:]]
    texts = [
        "\n".join("  ".join(row[place].ljust(widths[place]) for place in block).rstrip() for row in ruled)
        for block in blocks
    ]
    return "\n\n".join(texts)


def amount(labels: float | int | None) -> str:
    """Returns an amount of labels in words: a float is a share of all, an int a count."""
    if labels is None:
        return ""
    return f"{100 * labels:g} % labels" if isinstance(labels, float) else f"{labels} labels"


def training_note(records: Sequence[Record]) -> str:
    """Returns which pre-training other sets than the first have had, as a sentence; empty where all had the same."""
    told = dict.fromkeys(str(record["training"]) for record in records if record.get("training"))
    # Names of settings and numbers, whatever a record from elsewhere says.
    known = [re.sub(r"[^\w .,-]", "", text)[:200] for text in told]
    return f"Real images were pre-trained otherwise than the sets: {'; '.join(known)}." if known else ""


def family(record: Record) -> str:
    """Returns the name of a set or reference without its size: those that differ by it alone are of one kind."""
    size = "[0-9.]+ ?[kMGT]?B"
    # The number in the name of a form, such as `random jpeg-50`, is none of images.
    size = size if "budget" in record else f"{size}|{record.get('images')}"
    return re.sub(f"[-_ ]({size})$", "", str(record["set"]))


def group(records: Sequence[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Sorts records by the values of some of their entries, in order of appearance; a missing one counts as None."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(key) for key in keys), []).append(record)
    return groups


def sort_columns(records: list[Record]) -> Columns:
    """Sorts records by what was measured, then by set; a heading says no more than tells it from the others.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(_heading(record), []).append(record)
    details = {
        heading: [key for key in DETAILS if len({record.get(key) for record in part} - {None}) > 1]
        for heading, part in parts.items()
    }
    columns: Columns = {}
    for record in records:
        heading = _heading(record)
        heading = ", ".join([heading, *(str(record.get(key)) for key in details[heading])])
        column = columns.setdefault(heading, {})
        if record["set"] in column:
            raise ValueError(f"two scores of the set '{record['set']}' for '{heading}'; one was expected")
        column[record["set"]] = record
    return columns


def _heading(record: Record) -> str:
    return f"{record['protocol']} {amount(record.get('labels'))}".rstrip()


def split_tables(records: list[Record]) -> list[tuple[str, Columns]]:
    """Sorts records into tables with titles: one per student, and per target and protocols where that is too wide."""
    students = {str(student or "any student"): part for (student,), part in group(records, "student").items()}
    # Architectures with one score only would have a table of one column each.
    brief = [name for name, part in students.items() if len(sort_columns(part)) == 1]
    if len(brief) > 1:
        together = [record for name in brief for record in students.pop(name)]
        students[f"{len(brief)} students"] = together
    tables = [
        (", ".join([*([student] if len(students) > 1 else []), *title]), columns)
        for student, part in students.items()
        for title, columns in _split(part)
    ]
    return [(title if len(tables) > 1 else "", columns) for title, columns in tables]


def _split(records: list[Record]) -> list[tuple[list[str], Columns]]:
    columns = sort_columns(records)
    if len(columns) <= MOST_COLUMNS:
        return [([], columns)]
    return [
        ([str(target or "any target")], columns)
        for (target,), part in group(records, "target").items()
        for columns in _pack(part)
    ]


def _pack(records: list[Record]) -> list[Columns]:
    """Puts as many whole protocols into a table as fit, and cuts those that are too wide into equal parts."""
    parts: list[list[Record]] = [[]]
    for same in group(records, "protocol").values():
        if parts[-1] and len(sort_columns(parts[-1] + same)) > MOST_COLUMNS:
            parts.append([])
        parts[-1] += same
    tables = []
    for part in parts:
        items = list(sort_columns(part).items())
        width = math.ceil(len(items) / math.ceil(len(items) / MOST_COLUMNS))
        tables += [dict(items[start : start + width]) for start in range(0, len(items), width)]
    return tables


def build_tables(
    records: list[Record],
    text: Callable[[Record], str],
    best: Callable[[dict[str, Record]], set[str]] = lambda column: set(),
) -> list[Table]:
    """Builds the tables of `split_tables`, a row for each set: its cells, and the sets that are best in a column.

    Where sizes are known, images and bytes of each set stand first.
    """
    tables = []
    for title, columns in split_tables(records):
        sets = _sets(columns)
        cells = [[Cell(sizes.get(name, "")) for name in sets] for sizes in _sizes(columns).values()]
        for column in columns.values():
            winners = best(column)
            cells.append([Cell(text(column[name]), name in winners) if name in column else Cell("") for name in sets])
        rows = [(name, list(row)) for name, row in zip(sets, zip(*cells, strict=True), strict=True)]
        tables.append(Table(title, headings(columns), rows))
    return tables


def headings(columns: Columns) -> list[tuple[str, Record]]:
    """Returns the headings of a table, those of known sizes first, each with a record that tells the metric."""
    scores = [(heading, next(iter(column.values()))) for heading, column in columns.items()]
    return [*((name, {"metric": name}) for name in _sizes(columns)), *scores]


def _sizes(columns: Columns) -> dict[str, dict[str, str]]:
    """Returns in words how many images and bytes each set has, without what no record tells."""
    records = [record for column in columns.values() for record in column.values()]
    found = {
        size: {record["set"]: words(record[size]) for record in records if is_size(record.get(size))}
        for size, words in SIZES.items()
    }
    return {size: sets for size, sets in found.items() if sets}


def _sets(columns: Columns) -> list[str]:
    return list(dict.fromkeys(name for column in columns.values() for name in column))


def usual_n(records: list[Record]) -> int:
    """Returns the number of seeds that most records have; 0 for no records."""
    return max(Counter(record["n"] for record in records).items(), key=lambda item: item[1], default=(0, 0))[0]


def score_rows(columns: Columns) -> list[tuple[str, list[str]]]:
    """Returns the cells below `headings` of each set, at last changes from random to distilled if both are there."""
    sizes = _sizes(columns).values()
    rows = [
        (name, [each.get(name, "") for each in sizes] + [score_cell(column.get(name)) for column in columns.values()])
        for name in _sets(columns)
    ]
    changes = [_change(column) for column in columns.values()]
    return [*rows, *([("distilled against random", [""] * len(sizes) + changes)] if any(changes) else [])]


def _change(column: dict[str, Record]) -> str:
    distilled, random = (column.get(name, {}).get("mean") for name in ("distilled", "random"))
    if distilled is None or random is None or column["random"]["protocol"] == "cost":
        return ""
    if column["random"]["metric"] == "accuracy":
        return f"{100 * (distilled - random):+.1f} points"
    return f"{100 * (distilled / random - 1):+.1f} %" if random else ""


def unit(record: Record) -> str:
    """Returns the unit of a record's number and which direction is good."""
    metric = metric_of(record)
    return f"{metric.unit} ({metric.direction} is better)" if metric.direction else metric.unit


def number(value: float, record: Record, scale: float | None = None, sign: str = "") -> str:
    """Returns a stored number as it is shown, with the digits that another one (`scale`) needs, if that is given."""
    metric, scale = metric_of(record), value if scale is None else scale
    # Errors far below 1 would be printed as zero with four decimals.
    digits = ".2e" if 0 < abs(scale) < 1e-3 and metric.factor == 1 else metric.digits
    return f"{metric.factor * value:{sign}{digits}}"


def spread(record: Record) -> str:
    """Returns mean ± standard deviation; a single value has none, and a record without a mean is empty.

    Where values are means of students, the deviation `within` them follows in brackets.
    """
    mean = record["mean"]
    if mean is None:
        return ""
    deviation = f" ± {number(record['std'], record, mean)}" if record["n"] > 1 and record["std"] is not None else ""
    within = f" ({number(record['within'], record, mean)})" if record.get("within") is not None else ""
    return number(mean, record) + deviation + within


def score_cell(record: Record | None) -> str:
    """Returns mean ± standard deviation with unit and n; empty where there is no score."""
    if record is None or record["mean"] is None:
        return ""
    return f"{spread(record)}{' %' if record['metric'] == 'accuracy' else ''} (n={record['n']})"
