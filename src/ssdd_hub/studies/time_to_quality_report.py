"""In what time contenders reached a quality, as text and as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdd_hub.files import atomic_path
from ssdd_hub.studies.benchmark_report import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
COLOURS = ("#1f6f8b", "#c8553d", "#588b3a", "#8d5a97", "#b8860b", "#444444")


def quality_table(record: Record) -> str:
    """Returns the seconds to the goal of each contender as a small table of plain text, with what they depend on.

    Args:
        record: Of `quality_curve.compare_curves`.
    """
    random, goal = record["random"], record["goal"]
    table = [["contender", "seconds to the goal", "ratio", "warm-up, s", "ms a step", "steps done"]]
    for contender in record["contenders"]:
        each, ratio = contender["seconds_per_step"], contender["ratio"]
        table.append(
            [
                contender["contender"],
                _to_goal(contender),
                "-" if ratio is None else f"{ratio:.2f}" if contender["arrived"] is not None else f"about {ratio:.2g}",
                f"{contender['warm_up']:.1f}",
                "-" if each is None else f"{each * 1000:.1f}",
                f"{contender['done']} of {contender['steps']}",
            ]
        )
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.append(
        f"goal: an error of {record['goal_error']:.4f}, {goal:.0%} below the {random['mean']:.4f} ± "
        f"{random['std']:.4f} (n = {random['n']}) of random images"
    )
    return "\n".join([*lines, *filter(None, map(_note, record["contenders"]))])


def _to_goal(contender: Record) -> str:
    if contender["arrived"] is not None:
        each = contender["arrived_by_student"]
        spread = f" ({min(each):.1f} to {max(each):.1f})" if len(each) > 1 and None not in each else ""
        return f"{contender['arrived']:.1f}{spread}"
    seconds = contender["extrapolated"]["seconds"]
    return "not reached" if seconds is None else f"about {seconds:.3g}, extrapolated ({duration(seconds)})"


def _note(contender: Record) -> str | None:
    """Returns what an extrapolation rests on, or why there is none."""
    found, name = contender["extrapolated"], contender["contender"]
    if found is None:
        return None
    if found["seconds"] is None:
        line = f"{name}: nothing is extrapolated, since {found['reason']}"
    else:
        line = f"{name}: a line through its last {found['points']} points, over the logarithm of the step, is at the "
        line += f"goal after {found['step']:.3g} steps"
        line += ", more than its schedule has" if found["step"] > contender["steps"] else ""
    if found["linear"] is None:
        return line
    return (
        f"{line}; a line over the step, which is too good, after {found['linear']:.3g} s ({duration(found['linear'])})"
    )


def render_quality(path: Path, record: Record) -> None:
    """Draws the error over the seconds, one line for each contender, as a PNG; dotted where it is extrapolated.

    Args:
        path: The picture to write.
        record: Of `quality_curve.compare_curves`.
    """
    # Not pyplot, which would keep every figure and pick a backend for the caller's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    random, goal = record["random"]["mean"], record["goal_error"]
    axes.axhline(random, color="#9aa5b1", linewidth=1.2, label="random images")
    axes.axhline(goal, color="black", linewidth=1.0, linestyle="--", label=f"goal: {record['goal']:.0%} below")
    for number, contender in enumerate(record["contenders"]):
        _draw_contender(axes, contender, goal, COLOURS[number % len(COLOURS)])
    axes.set_xscale("log")
    axes.set_xlabel("seconds since the start, warm-up and compilation included")
    axes.set_ylabel("held-out error to the teacher of students\npre-trained on the set (mean ± std)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_contender(axes: "Axes", contender: Record, goal: float, colour: str) -> None:
    # The point of step 0 is the line of random images; without a warm-up its time has no place on this axis.
    points = [point for point in contender["points"] if point["step"] > 0]
    seconds, means = ([point[name] for point in points] for name in ("seconds", "mean"))
    axes.plot(seconds, means, "o-", color=colour, markersize=4, linewidth=1.6, label=contender["contender"])
    low, high = ([point["mean"] + sign * point["std"] for point in points] for sign in (-1, 1))
    axes.fill_between(seconds, low, high, color=colour, alpha=0.18, linewidth=0)
    if contender["arrived"] is not None:
        axes.plot(contender["arrived"], goal, "*", color=colour, markersize=14, markeredgecolor="black")
    elif contender["extrapolated"]["seconds"] is not None:
        end = contender["extrapolated"]["seconds"]
        axes.plot([seconds[-1], end], [means[-1], goal], ":", color=colour, linewidth=1.6)
        axes.plot(end, goal, "*", markerfacecolor="white", markeredgecolor=colour, markersize=14)
