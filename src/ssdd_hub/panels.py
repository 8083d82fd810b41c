"""Panels with a legend beside them, in which a set looks the same everywhere."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ssdd_hub.report import new_figure, plain
from ssdd_hub.scores import Record, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Style(NamedTuple):
    """How a set is drawn, in every picture."""

    colour: str
    marker: str
    line: Literal["-", "--", ":"] = "-"


# Told apart with any colour vision (after Okabe and Ito, and Tol), and by their markers in black and white.
STYLES = {
    "distilled": Style("#d55e00", "o"),
    "random": Style("#0072b2", "s"),
    "kmeans": Style("#009e73", "^"),
    "kmeans-pixels": Style("#56b4e9", "v"),
    "kcenter": Style("#cc79a7", "D"),
    "herding": Style("#e69f00", "P"),
    "high_loss": Style("#882255", "X"),
    "gaussian": Style("#999933", "<"),
    "none": Style("#a3a3a3", "x", "--"),
    "full": Style("#555555", "d", "--"),
    "teacher": Style("#222222", "*", ":"),
}
_SPARE = [Style("#332288", "p"), Style("#6b4c2a", ">"), Style("#117733", "h"), Style("#aa4499", "H")]


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Returns how sets are drawn: those that everybody has always alike, others with what is left, then again."""
    names = list(dict.fromkeys(names))
    free = [*_SPARE, *(style for name, style in STYLES.items() if name not in names and style.line == "-")]
    unknown = [name for name in names if name not in STYLES]
    found = {name: free[place % len(free)] for place, name in enumerate(unknown)}
    return {name: STYLES.get(name) or found[name] for name in names}


def draw_panels(titles: Sequence[str], styles: Mapping[str, Style], heading: str) -> "tuple[Figure, list[Axes]]":
    """Returns a figure with a panel for each title and a legend beside them."""
    from matplotlib.lines import Line2D

    across = 1 if len(titles) == 1 else 2 if len(titles) <= 4 else 3
    down = math.ceil(len(titles) / across)
    # The legend has about 22 names to a row of panels of this height.
    figure = new_figure(2.2 + {1: 5.6, 2: 7.8, 3: 9.6}[across], max(down * 3.1, 0.21 * len(styles)) + 0.5)
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(plain(title), fontsize=10)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(plain(heading, 100), fontsize=11)
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle=s.line, markersize=6) for s in styles.values()
    ]
    # A leading underscore would hide a name.
    labels = [f" {plain(name)}" for name in styles]
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return figure, axes[: len(titles)]


def set_log_axis(axis: "Axes", label: str, values: Iterable[float]) -> None:
    """Makes x logarithmic, over a factor of ten at least, with plain numbers: values may be nearly the same."""
    from matplotlib.ticker import LogLocator

    logs = [math.log10(value) for value in values]
    middle, half = (max(logs) + min(logs)) / 2, max(0.5, 0.55 * (max(logs) - min(logs)))
    axis.set(xlabel=label, xscale="log", xlim=(10 ** (middle - half), 10 ** (middle + half)))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if half < 1.2 else (1,)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.minorticks_off()


def shown_styles(records: Iterable[Record], styles: Mapping[str, Style]) -> dict[str, Style]:
    """Returns the styles of the sets that are among the records."""
    sets = {record["set"] for record in records}
    return {name: style for name, style in styles.items() if name in sets}


def shown_values(record: Record) -> tuple[float, float]:
    """Returns mean and standard deviation as they are shown."""
    factor = metric_of(record).factor
    return factor * record["mean"], factor * (record["std"] or 0)


def draw_point(axis: "Axes", x: object, y: object, error: object, style: Style, name: str, line: bool = False) -> None:
    """Draws points with whiskers; the distilled set on top of the others."""
    first = name == "distilled"
    axis.errorbar(
        x,  # type: ignore[arg-type]
        y,  # type: ignore[arg-type]
        yerr=error,  # type: ignore[arg-type]
        color=style.colour,
        marker=style.marker,
        linestyle=style.line if line else "none",
        linewidth=2.4 if first else 1.4,
        elinewidth=0.8,
        capsize=2,
        markersize=6.5 if first else 5,
        zorder=3 if first else 2,
    )
