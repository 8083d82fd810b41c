"""What a benchmark found, as text and as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdd_hub.distill.engine.timing import PARTS
from ssdd_hub.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
NAMES = {"fast": "ssdd_hub", "plain": "plain"}
COLOURS = ("#9aa5b1", "#c8553d", "#1f6f8b", "#5aa9c4", "#588b3a", "#8d5a97", "#444444", "#b8860b")


def benchmark_table(record: Record, steps: int) -> str:
    """Returns the seconds of each part and what follows from them, as plain text.

    Args:
        record: Of `Benchmark.run`.
        steps: Outer steps of the whole run that is projected.
    """
    shown = [name for name in NAMES if name in record]
    lines = ["".join(["seconds of an outer step".ljust(26), *(NAMES[name].rjust(10) for name in shown)])]
    for part in PARTS:
        lines.append("".join([f"  {part}".ljust(26), *(f"{record[name]['parts'][part]:10.4f}" for name in shown)]))
    lines.append("".join(["  whole, median".ljust(26), *(f"{record[name]['median']:10.4f}" for name in shown)]))
    if "ratios" in record:
        ratios = record["ratios"]
        lines.append(
            f"{ratios['whole']:.2f} times as fast as plain; {ratios['without_teacher']:.2f} times with the teacher's "
            "time left out of both"
        )
    lines.append(
        f"{sum(record['flops'].values()) / 1e9:.1f} GFLOP a step, {record['achieved'] / 1e9:.1f} GFLOP/s: "
        f"{record['share']:.1%} of the {record['peak'] / 1e9:.1f} GFLOP/s of matrix products"
    )
    lines.append(f"at most {record['memory_gib']:.2f} GiB of memory")
    lines += [f"{steps} steps: {duration(record[name]['median'] * steps)} ({NAMES[name]})" for name in shown]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Returns a time as people read it, such as `2 d 3 h`, `4 h 5 min` or `12 s`."""
    whole = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    for (large, size), (small, part) in zip(units, units[1:], strict=False):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def render_benchmark(path: Path, record: Record) -> None:
    """Draws the seconds of each part, stacked, and the rate beside that of matrix products, as a PNG.

    Args:
        path: The picture to write.
        record: Of `Benchmark.run`.
    """
    # Not pyplot, which would keep every figure and pick a backend for the caller's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    _draw_parts(left, record)
    bars = right.bar(
        ["matrix\nproducts", "ssdd_hub"], [record["peak"] / 1e9, record["achieved"] / 1e9], color="#1f6f8b"
    )
    bars[0].set_color("#9aa5b1")
    right.bar_label(bars, fmt="%.0f")
    right.set_ylabel("GFLOP/s")
    right.margins(y=0.15)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_parts(axes: "Axes", record: Record) -> None:
    shown = [name for name in ("plain", "fast") if name in record]
    starts = [0.0] * len(shown)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        seconds = [record[name]["parts"][part] for name in shown]
        axes.barh([NAMES[name] for name in shown], seconds, left=starts, color=colour, label=part)
        starts = [start + value for start, value in zip(starts, seconds, strict=True)]
    axes.set_xlabel("seconds of an outer step")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.25), frameon=False)
