"""What measured costs say of their growth: exponents, tables and a picture."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ssdd_hub.files import atomic_path
from ssdd_hub.hub.markdown import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
Exponents = dict[str, float | None]
LABELS = {
    "num_images": "distilled images M",
    "batch_size": "real batch B",
    "widths": "feature width F",
    "image_size": "pixels a side",
    "num_source": "source images N",
}
HEAD = ("varied", "value", "ms a step", "GiB", "GiB above start", "images at a time")
FITS = {"all": "exponent, all points", "upper": "exponent, upper half"}
ROWS = {"seconds": "seconds of a step", "memory": "GiB above start"}
COLOURS = {"seconds": "#1f6f8b", "memory": "#c8553d"}


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Returns the exponent `p` of `cost = c · size^p`: the slope of the logarithms, by least squares.

    Args:
        sizes: Above 0.
        costs: As many; those that are not above 0 are left out.

    Returns:
        The exponent; None with fewer than two sizes.
    """
    pairs = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if cost > 0]
    if len({size for size, _ in pairs}) < 2:
        return None
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope


def fit_curves(records: Sequence[Record]) -> dict[str, dict[str, Exponents]]:
    """Returns the exponents of each size that was varied.

    Args:
        records: Of `measure_curves`.

    Returns:
        By axis, for `seconds` and for `memory` (above that of a process that has only been started): the exponent over
        `all` points that could be measured, and over the `upper` half of them, a middle one included, where constant
        costs have died away.
    """
    fitted: dict[str, dict[str, Exponents]] = {}
    for axis, points in _measured(records).items():
        fitted[axis] = {}
        for name in ROWS:
            sizes, costs = _curve(points, name)
            half = len(sizes) // 2
            fitted[axis][name] = {"all": fit_exponent(sizes, costs), "upper": fit_exponent(sizes[half:], costs[half:])}
    return fitted


def curves_table(records: Sequence[Record]) -> str:
    """Returns all points and exponents as a table of plain text.

    Args:
        records: Of `measure_curves`.
    """
    table = [list(HEAD), *_cells(records)]
    # A reason is the last cell of its row, and as long as it is.
    widths = [max(len(row[column]) for row in table if len(row) == len(HEAD)) for column in range(len(HEAD))]
    table.insert(1, ["-" * width for width in widths])
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def curves_markdown(records: Sequence[Record]) -> str:
    """Returns all points and exponents as a Markdown table.

    Args:
        records: Of `measure_curves`.
    """
    rows = [[escape(cell) for cell in [*row, *[""] * (len(HEAD) - len(row))]] for row in _cells(records)]
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def render_curves(path: Path, records: Sequence[Record]) -> None:
    """Draws seconds and memory over each size, both logarithmic, with their exponents, as a PNG.

    Args:
        path: The picture to write.
        records: Of `measure_curves`, at least one.
    """
    # Not pyplot, which would keep every figure and pick a backend for the caller's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves, fitted = _measured(records), fit_curves(records)
    figure = Figure(figsize=(1 + 2.6 * len(curves), 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(ROWS), len(curves), sharex="col", sharey="row", squeeze=False)
    for row, name in zip(panels, ROWS, strict=True):
        row[0].set_ylabel(ROWS[name])
        for panel, (axis, points) in zip(row, curves.items(), strict=True):
            _draw(panel, points, name, fitted[axis][name])
    for panel, axis in zip(panels[-1], curves, strict=True):
        panel.set_xlabel(LABELS[axis])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw(panel: "Axes", points: Sequence[Record], name: str, exponents: Exponents) -> None:
    sizes, costs = _curve(points, name)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.plot(sizes, costs, "o-", color=COLOURS[name], markersize=4, linewidth=1.6)
    text = f"exponent {_exponent(exponents['all'])}\nupper half {_exponent(exponents['upper'])}"
    panel.text(0.05, 0.95, text, transform=panel.transAxes, va="top", fontsize="small")
    if sizes:
        panel.set_xticks(sizes, [_short(size) for size in sizes])
        panel.set_xticks([], minor=True)
    panel.margins(x=0.12, y=0.25)
    panel.grid(alpha=0.25)


def _measured(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Returns the points that could be measured, by axis, from the smallest size to the largest."""
    curves: dict[str, list[Record]] = {record["stage"]: [] for record in records}
    for record in records:
        if "failed" not in record:
            curves[record["stage"]].append(record)
    return {axis: sorted(points, key=_size) for axis, points in curves.items()}


def _size(record: Record) -> int:
    """Returns what a point is drawn over: its value, or `F` where the widths are varied."""
    return cast(int, record["num_features" if record["stage"] == "widths" else "value"])


def _curve(points: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    """Returns sizes and costs that a logarithmic axis has a place for."""
    costs = [point["seconds"] if name == "seconds" else _memory(point) for point in points]
    shown = [(_size(point), cost) for point, cost in zip(points, costs, strict=True) if cost > 0]
    return [size for size, _ in shown], [cost for _, cost in shown]


def _memory(record: Record) -> float:
    """Returns the GiB above those of a process that has only been started."""
    return float(record["memory_gib"] - record["start_gib"])


def _cells(records: Sequence[Record]) -> list[list[str]]:
    """Returns the rows of a table: all points, in their order, and the exponents after those of each axis."""
    table = []
    for axis, fitted in fit_curves(records).items():
        table += [_point_cells(record) for record in records if record["stage"] == axis]
        table += [
            [LABELS[axis], label, _exponent(fitted["seconds"][fit]), "", _exponent(fitted["memory"][fit]), ""]
            for fit, label in FITS.items()
        ]
    return table


def _point_cells(record: Record) -> list[str]:
    value = record["value"]
    shown = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    if "failed" in record:
        return [LABELS[record["stage"]], shown, f"not measured: {record['failed']}"]
    if isinstance(value, list):
        shown = f"{_size(record)} ({shown})"
    numbers = (f"{1000 * record['seconds']:.1f}", f"{record['memory_gib']:.2f}", f"{_memory(record):.3f}")
    # Activations that are computed again in the backward pass take time instead of memory.
    parts = f"{record['part_size']}{', recomputed' if record['recompute'] else ''}"
    return [LABELS[record["stage"]], shown, *numbers, parts]


def _exponent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _short(size: int) -> str:
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if size >= unit and size % (unit // 100) == 0:
            return f"{size / unit:g}{letter}"
    return str(size)
