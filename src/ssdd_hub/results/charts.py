"""Figures of scores: bars, and panels with a legend in which a set looks the same everywhere."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ssdd_hub.files import atomic_path
from ssdd_hub.results.tables import Record, group, metric_of, score_cell, sort_columns, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADLINES = ("accuracy", "probe", "finetune", "probe_mkdt", "knn")
"""Protocols that a set is first judged by; the first of them that was measured is drawn."""
MAX_BROAD = 5  # bars of a panel, with two lines each


class Style(NamedTuple):
    """How a set is drawn, in every picture."""

    colour: str
    marker: str
    line: Literal["-", "--", ":"] = "-"


class Picture(NamedTuple):
    """A figure with its description in words."""

    name: str
    caption: str
    figure: "Figure"


# Told apart with any colour vision (after Okabe and Ito, and Tol), and by their markers in black and white.
STYLES = {
    "distilled": Style("#d55e00", "o"),
    "random": Style("#0072b2", "s"),
    "kmeans": Style("#009e73", "^"),
    "kmeans-pixels": Style("#56b4e9", "v"),
    "kcenter": Style("#cc79a7", "D"),
    "herding": Style("#e69f00", "P"),
    "high_loss": Style("#882255", "X"),
    "rded": Style("#aa4499", "H"),
    "gaussian": Style("#999933", "<"),
    "none": Style("#a3a3a3", "x", "--"),
    "full": Style("#555555", "d", "--"),
    "teacher": Style("#222222", "*", ":"),
}
DPI = 110
_SPARE = [Style("#332288", "p"), Style("#6b4c2a", ">"), Style("#117733", "h")]
_MARKERS = "s^DvPX<>phd*"  # of the forms in which real images are stored


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Returns how sets are drawn: common ones always alike, others with what is left, then again.

    Of references in a form, such as `random jpeg-50`, the colour tells the method, and the marker the form.
    """
    names = list(dict.fromkeys(names))
    parts = {name: name.partition(" ") for name in names if name not in STYLES}
    stored = {name: (method, form) for name, (method, _, form) in parts.items() if form and method in STYLES}
    forms = list(dict.fromkeys(form for _, form in stored.values()))
    used = {*names, *(method for method, _ in stored.values())}
    free = [*_SPARE, *(style for name, style in STYLES.items() if name not in used and style.line == "-")]
    found = {name: free[place % len(free)] for place, name in enumerate(name for name in parts if name not in stored)}
    for name, (method, form) in stored.items():
        found[name] = Style(STYLES[method].colour, _MARKERS[forms.index(form) % len(_MARKERS)], ":")
    return {name: STYLES.get(name) or found[name] for name in names}


def own_sets(records: Sequence[Record]) -> list[str]:
    """Returns the names of the sets that are no references."""
    # Those that fill the bytes of a set say so. All others have a style of their own; beside sets of several sizes
    # they are called `random-50` and the like.
    filling = {record["set"] for record in records if record.get("budget") is not None}
    names = [str(name) for (name,) in group(records, "set") if name not in filling]
    return [name for name in names if name == "distilled" or re.sub(r"-[0-9]+$", "", name) not in STYLES]


def save_figures(folder: Path, figures: Mapping[str, "Figure"]) -> dict[str, Path]:
    """Writes figures as PNG, the same bytes for the same figure, into a folder that is made when missing."""
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        with atomic_path(paths[name]) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
    return paths


def plain(text: str, longest: int = 40) -> str:
    """Returns a name as matplotlib is to draw it: no formula between dollars, one line, not longer than fits."""
    words = " ".join(str(text).split())
    return (words if len(words) <= longest else f"{words[: longest - 1]}…").replace("$", r"\$")


def new_figure(width: float, height: float, dpi: int = DPI) -> "Figure":
    """Returns an empty figure, width and height in inches, that lays itself out."""
    # Not pyplot, which would keep every figure and pick a backend for the caller's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _new_panels(
    width: float, height: float, down: int, across: int, count: int, dpi: int = DPI
) -> "tuple[Figure, list[Axes]]":
    """Returns a figure with a grid of panels, of which those after `count` stay empty."""
    figure = new_figure(width, height, dpi)
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes[:count]:
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_bars(records: list[Record], styles: Mapping[str, Style], across: int = 2) -> "Figure":
    """Draws a panel for each thing measured, `across` of them side by side, with a bar for each set.

    Accuracies whose differences an axis from zero would hide are points on a shorter axis.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    columns = sort_columns(records)
    down = max(math.ceil(len(columns) / across), 1)
    most = max(map(len, columns.values()), default=1)
    # Many bars have their score beside the name, not below it.
    slim = most > MAX_BROAD
    height = down * ((0.32 if slim else 0.6) * most + 1.1)
    figure, axes = _new_panels(5 * across, height, down, across, len(columns))
    if not columns:
        axes[0].text(0, 0.5, "no scores", color="gray")
    for axis, (heading, column) in zip(axes, columns.items(), strict=False):
        axis.set_title(plain(heading, 60), fontsize="medium" if slim else None)
        # A long label would leave a narrow panel on the right.
        axis.set_xlabel(unit(next(iter(column.values()))), loc="right" if slim else None)
        _fill_bars(axis, column, styles, slim)
    return figure


def _fill_bars(axis: "Axes", column: dict[str, Record], styles: Mapping[str, Style], slim: bool) -> None:
    scored = {name: record for name, record in column.items() if record["mean"] is not None}
    span = _short_axis(scored.values())
    for place, (name, record) in enumerate(scored.items()):
        mean, std = shown_values(record)
        if span is None:
            axis.barh(place, mean, height=0.65, color=(styles[name].colour, 0.55))
        else:
            # The length of a bar would mean nothing where the axis does not start at zero.
            axis.plot(mean, place, styles[name].marker, color=styles[name].colour, markersize=9, zorder=3)
        if record["n"] > 1:
            axis.errorbar(mean, place, xerr=std, color="black", capsize=3 if slim else 6, linewidth=1.2)
        values = metric_of(record).factor * np.asarray(record.get("values", []), dtype=np.float64)
        axis.plot(values, place + np.linspace(-0.2, 0.2, len(values)), "o", color="black", markersize=3, alpha=0.6)
    between = "  " if slim else "\n"
    labels = [f"{plain(name)}{between}{score_cell(record)}" for name, record in scored.items()]
    axis.set_yticks(range(len(labels)), labels)
    if scored and spans_decades(scored.values()):
        least = min(record["mean"] for record in scored.values())
        axis.set(xscale="log", xlim=(least / 2, None))
    if span is not None:
        axis.set(xlim=span, ylim=(-0.5, len(labels) - 0.5))
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25)


def _short_axis(records: Iterable[Record]) -> tuple[float, float] | None:
    """Returns the ends of an axis for accuracies that lie close together; None where the axis is to start at zero."""
    ends = [
        metric_of(record).factor * value
        for record in records
        if record["metric"] == "accuracy"
        for spread in (-(record["std"] or 0), record["std"] or 0)
        for value in (record["mean"] + spread, *record.get("values", []))
        if value is not None
    ]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    margin = max(0.15 * (high - low), 0.5)
    return (low - margin, high + margin) if high - low < high / 2 else None


def spans_decades(records: Iterable[Record]) -> bool:
    """Whether these are errors of which the largest would hide the differences between the others."""
    means = [record["mean"] for record in records if record["metric"] == "mse"]
    return bool(means) and 0 < 20 * min(means) < max(means)


def shown_values(record: Record) -> tuple[float, float]:
    """Returns mean and standard deviation as they are shown."""
    factor = metric_of(record).factor
    return factor * record["mean"], factor * (record["std"] or 0)


def draw_panels(
    panels: Sequence[tuple[str, Sequence[Record]]], styles: Mapping[str, Style], heading: str, narrow: bool = False
) -> "tuple[Figure, list[Axes]]":
    """Returns a figure with an empty panel for each title and its records, and a legend of their sets beside them.

    A narrow one, for pages of text, is 1,600 pixels wide to be shown at 800, and has the legend below.
    """
    from matplotlib.lines import Line2D

    sets = {record["set"] for _, records in panels for record in records}
    styles = {name: style for name, style in styles.items() if name in sets}
    across = 1 if len(panels) == 1 else 2 if len(panels) <= 4 else 3
    down = math.ceil(len(panels) / across)
    # The legend has about 22 names to a row of panels of this height.
    width, height = 2.2 + {1: 5.6, 2: 7.8, 3: 9.6}[across], max(down * 3.1, 0.21 * len(styles)) + 0.5
    if narrow:
        width, height = 1600 / 220, down * 3.4 + 0.21 * math.ceil(len(styles) / 3)
    figure, axes = _new_panels(width, height, down, across, len(panels), 220 if narrow else DPI)
    for axis, (title, records) in zip(axes, panels, strict=False):
        axis.set_title(plain(title), fontsize=10)
        axis.set_ylabel(unit(records[0]), fontsize=9)
        axis.grid(alpha=0.25)
    if heading:
        figure.suptitle(plain(heading, 100), fontsize=11)
    # A leading underscore would hide a name.
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle=s.line, markersize=6, label=f" {plain(name)}")
        for name, s in styles.items()
    ]
    if narrow:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    else:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure, axes[: len(panels)]


def set_log_axis(
    axis: "Axes", label: str, values: Iterable[float], words: Callable[[float], str] = "{:g}".format
) -> None:
    """Makes x logarithmic, over a factor of ten at least, with numbers in words: values may be nearly the same."""
    from matplotlib.ticker import LogLocator

    logs = [math.log10(value) for value in values]
    middle, half = (max(logs) + min(logs)) / 2, max(0.5, 0.55 * (max(logs) - min(logs)))
    axis.set(xlabel=label, xscale="log", xlim=(10 ** (middle - half), 10 ** (middle + half)))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if half < 1.2 else (1,)))
    axis.xaxis.set_major_formatter(lambda value, _: words(value))
    axis.minorticks_off()


def draw_points(
    axis: "Axes",
    x: Sequence[float],
    records: Sequence[Record],
    style: Style,
    line: bool = False,
    bars: bool = True,
    first: bool | None = None,
) -> None:
    """Draws the scores of one set, with whiskers; the first, by default `distilled`, on top of the others."""
    means, deviations = np.array([shown_values(record) for record in records]).T
    first = records[0]["set"] == "distilled" if first is None else first
    axis.errorbar(
        x,
        means,
        yerr=deviations if bars else None,
        color=style.colour,
        marker=style.marker,
        linestyle=style.line if line else "none",
        linewidth=2.4 if first else 1.4,
        elinewidth=0.8,
        capsize=2,
        markersize=6.5 if first else 5,
        zorder=3 if first else 2,
    )
