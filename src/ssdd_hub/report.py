"""What a person looks at after a run: pictures, the table of scores, and one HTML page that holds them all."""

import base64
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssdd_hub.checkpoint import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]

# metric -> (what the number is, which direction is good, factor from the stored to the shown number)
METRICS = {
    "mse": ("mean squared error", "lower is better", 1),
    "accuracy": ("accuracy in %", "higher is better", 100),
}
CAPTIONS = {
    "images": "Images of the set before and after distillation, and their difference (red: brighter, blue: darker).",
    "loss": "Training losses: every logged value (faint) and their running median (strong).",
    "scores": "Scores: mean (bar), standard deviation over seeds (whiskers) and every single seed (dots).",
}
# What tells two columns of the same protocol and labels apart.
DETAILS = ("metric", "student", "target")
MAX_SHOWN, PER_BAND = 24, 8
LINE = "#1f6f8b"
COLOURS = {"distilled": "#63abc4", "random": "#aab4bb", "none": "#d9dee1"}


def score_table(records: list[Record]) -> str:
    """Returns the scores as a small table of plain text, one row for each set and one column for each protocol.

    Args:
        records: The records of `scores.json`; an accuracy is a fraction in `[0, 1]` there and a percentage here.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    columns = _columns(records)
    if not columns:
        return "no scores"
    table = [["set", *columns], *_rows(columns)]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    aligned = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in table)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def render_pictures(
    folder: Path, *, before: Tensor, after: Tensor, log: list[Record], scores: list[Record]
) -> dict[str, Path]:
    """Writes `images.png`, `loss.png` and `scores.png`.

    Args:
        folder: Where the pictures go; made when missing.
        before: `(M, C, H, W)`, pixels in `[0, 1]`, the set that distillation started from.
        after: `(M, C, H, W)`, pixels of the distilled set, which may lie outside `[0, 1]`.
        log: Records of `log.jsonl` with `stage`, `step` and `loss`.
        scores: Records of `scores.json`.

    Returns:
        The files by name: `images`, `loss`, `scores`.

    Raises:
        ValueError: `before` and `after` differ in shape or hold no image, or two records score the same thing.
    """
    if before.shape != after.shape or before.ndim != 4 or len(before) == 0:
        raise ValueError(
            "the pictures need the same images (M, C, H, W), M > 0, before and after; "
            f"got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    figures = {"images": _draw_images(before, after), "loss": _draw_losses(log), "scores": _draw_scores(scores)}
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        with atomic_path(paths[name]) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
    return paths


def render_report(
    path: Path, *, title: str, pictures: dict[str, Path], scores: list[Record], config: str, facts: dict[str, str]
) -> Path:
    """Writes one HTML page that needs no other file: no script, no link, pictures inside.

    Args:
        path: The page to write, returned as it came.
        title: Heading of the page.
        pictures: PNG files by name, as `render_pictures` returns them; their names choose the captions.
        scores: Records of `scores.json`.
        config: The resolved configuration, YAML text.
        facts: What was run, on what, for how long; shown in this order.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("ssdd_hub")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    columns = _columns(scores)
    encoded = {name: base64.b64encode(picture.read_bytes()).decode() for name, picture in pictures.items()}
    page = environment.get_template("report.html").render(
        title=title,
        facts=facts,
        columns={heading: _unit(column) for heading, column in columns.items()},
        rows=_rows(columns),
        figures=[(picture, CAPTIONS.get(name, name)) for name, picture in encoded.items()],
        config=config,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _heading(record: Record) -> str:
    labels = record.get("labels")
    if labels is None:
        return str(record["protocol"])
    amount = f"{100 * labels:g} %" if isinstance(labels, float) else str(labels)
    return f"{record['protocol']} {amount} labels"


def _columns(records: list[Record]) -> dict[str, dict[str, Record]]:
    """Sorts records by what was measured (the heading of a column), then by set."""
    columns: dict[str, dict[str, Record]] = {}
    for record in records:
        rivals = [other for other in records if _heading(other) == _heading(record)]
        differing = [key for key in DETAILS if len({str(rival.get(key)) for rival in rivals}) > 1]
        heading = ", ".join([_heading(record), *(str(record.get(key)) for key in differing)])
        column = columns.setdefault(heading, {})
        if record["set"] in column:
            raise ValueError(f"two scores of the set '{record['set']}' for '{heading}'; one was expected")
        column[record["set"]] = record
    return columns


def _rows(columns: dict[str, dict[str, Record]]) -> list[list[str]]:
    """Returns a row of cells for each set, and a last one that compares distilled with random where both are there."""
    sets = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(_cell(column.get(name)) for column in columns.values())] for name in sets]
    changes = [_change(column) for column in columns.values()]
    if any(changes):
        rows.append(["distilled against random", *changes])
    return rows


def _unit(column: dict[str, Record]) -> str:
    metric = next(iter(column.values()))["metric"]
    unit, direction, _ = METRICS.get(metric, (metric, "", 1))
    return f"{unit} ({direction})" if direction else unit


def _number(value: float, scale: float, metric: str) -> str:
    if metric == "accuracy":
        return f"{100 * value:.1f}"
    # Errors far below 1 would be printed as zero with four decimals.
    return f"{value:.4f}" if abs(scale) >= 1e-3 or scale == 0 else f"{value:.2e}"


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    mean, std, metric = record["mean"], record["std"], record["metric"]
    text = _number(mean, mean, metric)
    if record["n"] > 1:
        text += f" ± {_number(std, mean, metric)}"
    return f"{text}{' %' if metric == 'accuracy' else ''} (n={record['n']})"


def _change(column: dict[str, Record]) -> str:
    if not {"distilled", "random"} <= column.keys():
        return ""
    distilled, random = column["distilled"]["mean"], column["random"]["mean"]
    if column["random"]["metric"] == "accuracy":
        return f"{100 * (distilled - random):+.1f} points"
    return f"{100 * (distilled / random - 1):+.1f} %" if random else ""


def _figure(width: float, height: float) -> "Figure":
    # Not pyplot, which would keep every figure and pick a backend for the caller's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _strip(images: Tensor, places: int, fill: float) -> np.ndarray[Any, Any]:
    """Lays `(n, C, H, W)`, `n <= places`, side by side; returns `(H, width)` or `(H, width, 3)`."""
    _, channels, height, width = images.shape
    pitch = width + max(1, width // 12)
    canvas = torch.full((channels, height, places * pitch), fill)
    for place, image in enumerate(images):
        canvas[:, :, place * pitch : place * pitch + width] = image
    return canvas.permute(1, 2, 0).squeeze(-1).numpy()


def _draw_images(before: Tensor, after: Tensor) -> "Figure":
    # Rounding in normalise and denormalise leaves exact black and white a hair outside [0, 1].
    outside = ((after < -1e-4) | (after > 1 + 1e-4)).float().mean().item()
    total, _, height, width = before.shape
    chosen = torch.linspace(0, total - 1, min(total, MAX_SHOWN)).round().long()
    before, after = (images.detach().cpu()[chosen].float() for images in (before, after))
    difference = (after - before).mean(1, keepdim=True)
    # A few extreme pixels must not bleach all others.
    limit = float(np.quantile(difference.abs().numpy(), 0.995)) or 1.0
    if before.shape[1] != 3:
        before, after = before.mean(1, keepdim=True), after.mean(1, keepdim=True)
    places = min(len(chosen), PER_BAND)
    bands = list(zip(*(torch.split(images, places) for images in (before, after, difference)), strict=True))

    figure = _figure(max(1.1 * places + 1.8, 5.4), 0.7 + len(bands) * (3.4 * height / width + 0.3))
    clipped = f"{100 * outside:.1f} % of the distilled values lie outside [0, 1], shown clipped"
    figure.suptitle(f"{len(chosen)} of {total} images\n{clipped}", fontsize="medium")
    # Every fourth row stays empty, to part the bands.
    grid = figure.add_gridspec(4 * len(bands), 1, height_ratios=[1, 1, 1, 0.12] * len(bands))
    for number, band in enumerate(bands):
        for row, (images, name) in enumerate(zip(band, ("before", "after", "difference"), strict=True)):
            axis = figure.add_subplot(grid[4 * number + row])
            if name == "difference":
                shown = axis.imshow(_strip(images, places, math.nan), cmap="RdBu_r", vmin=-limit, vmax=limit)
            else:
                axis.imshow(_strip(images.clamp(0, 1), places, 1.0), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
            axis.spines[:].set_visible(False)
    figure.colorbar(shown, ax=figure.axes, extend="both", extendfrac=0.02, aspect=40, label="after - before")
    return figure


def _draw_losses(log: list[Record]) -> "Figure":
    stages = [("distill", "Distillation", "outer loss", "outer step")]
    if any(record.get("stage") == "teacher" for record in log):
        stages.append(("teacher", "Teacher", "loss of the objective", "step"))
    figure = _figure(8, 3.2 * len(stages))
    axes = figure.subplots(len(stages), 1, squeeze=False).ravel()
    for axis, (stage, title, quantity, step) in zip(axes, stages, strict=True):
        axis.set(title=title, xlabel=step, ylabel=f"{quantity} (lower is better)")
        _draw_curve(axis, [record for record in log if record.get("stage") == stage])
    return figure


def _draw_curve(axis: "Axes", records: list[Record]) -> None:
    points = [(r["step"], r["loss"]) for r in records if math.isfinite(r.get("loss", math.nan))]
    if not points:
        axis.text(0.5, 0.5, "no loss was logged", transform=axis.transAxes, ha="center", color="gray")
        return
    steps, losses = np.array(points, dtype=np.float64).T
    axis.plot(steps, losses, color=LINE, alpha=0.4, linewidth=0.8)
    half = len(steps) // 25
    centres = np.unique(np.linspace(0, len(steps) - 1, 400).round().astype(int))
    medians = [np.median(losses[max(0, centre - half) : centre + half + 1]) for centre in centres]
    axis.plot(steps[centres], medians, "o" if len(steps) == 1 else "-", color=LINE, linewidth=2)
    axis.grid(alpha=0.25)
    if 0 < 10 * losses.min() < losses.max():
        axis.set_yscale("log")


def _draw_scores(records: list[Record]) -> "Figure":
    columns = _columns(records)
    down = max(math.ceil(len(columns) / 2), 1)
    most = max(map(len, columns.values()), default=1)
    figure = _figure(10, down * (0.6 * most + 1.1))
    axes = figure.subplots(down, 2, squeeze=False).ravel()
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    if not columns:
        axes[0].text(0, 0.5, "no scores", color="gray")
    for axis, (heading, column) in zip(axes, columns.items(), strict=False):
        axis.set(title=heading, xlabel=_unit(column))
        _draw_bars(axis, column)
    return figure


def _draw_bars(axis: "Axes", column: dict[str, Record]) -> None:
    for place, (name, record) in enumerate(column.items()):
        scale = METRICS.get(record["metric"], ("", "", 1))[2]
        mean, std = scale * record["mean"], scale * (record["std"] or 0)
        axis.barh(place, mean, height=0.65, color=COLOURS.get(name, "#dcc08e"))
        axis.errorbar(mean, place, xerr=std, color="black", capsize=6, linewidth=1.2)
        values = scale * np.asarray(record.get("values", []), dtype=np.float64)
        axis.plot(values, place + np.linspace(-0.2, 0.2, len(values)), "o", color="black", markersize=3, alpha=0.6)
    axis.set_yticks(range(len(column)), [f"{name}\n{_cell(record)}" for name, record in column.items()])
    axis.invert_yaxis()
    axis.set_axisbelow(True)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
