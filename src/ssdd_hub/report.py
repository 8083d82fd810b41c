"""What a person looks at after a run: pictures, the table of scores, and one HTML page that holds them all."""

import base64
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssdd_hub.checkpoint import atomic_path
from ssdd_hub.scores import METRICS as METRICS
from ssdd_hub.scores import Record, metric_of, score_cell, score_rows, sort_columns, unit
from ssdd_hub.scores import score_table as score_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "images": "Images of the set before and after distillation, and their difference (red: brighter, blue: darker).",
    "loss": "Training losses: every logged value (faint) and their running median (strong).",
    "scores": "Scores: mean (bar), standard deviation over seeds (whiskers) and every single seed (dots).",
}
MAX_SHOWN, PER_BAND = 24, 8
MAX_BROAD = 5  # bars of a panel, with two lines each
LINE = "#1f6f8b"
COLOURS = {"distilled": "#63abc4", "random": "#aab4bb", "none": "#d9dee1"}


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
    return save_figures(folder, figures)


def save_figures(folder: Path, figures: Mapping[str, "Figure"]) -> dict[str, Path]:
    """Writes figures as PNG, the same bytes for the same figure, into a folder that is made when missing."""
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
    columns = sort_columns(scores)
    return render_page(
        path,
        "report.html",
        [(picture, CAPTIONS.get(name, name)) for name, picture in pictures.items()],
        title=title,
        facts=facts,
        columns=[(heading, unit(next(iter(column.values())))) for heading, column in columns.items()],
        rows=score_rows(columns),
        config=config,
    )


def render_page(path: Path, template: str, pictures: list[tuple[Path, str]], **context: Any) -> Path:
    """Writes one of the HTML templates of this package with pictures inside.

    Args:
        path: The page to write, returned as it came.
        template: File among the templates.
        pictures: PNG files and their captions, `figures` of the template.
        **context: What else the template takes; a name that it lacks is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("ssdd_hub")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    figures = [(base64.b64encode(picture.read_bytes()).decode(), caption) for picture, caption in pictures]
    page = environment.get_template(template).render(figures=figures, **context)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def plain(text: str, longest: int = 40) -> str:
    """Returns a name as matplotlib is to draw it: no formula between dollars, one line, not longer than fits."""
    words = " ".join(str(text).split())
    return (words if len(words) <= longest else f"{words[: longest - 1]}…").replace("$", r"\$")


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure, width and height in inches, that lays itself out."""
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

    figure = new_figure(max(1.1 * places + 1.8, 5.4), 0.7 + len(bands) * (3.4 * height / width + 0.3))
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
    figure = new_figure(8, 3.2 * len(stages))
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
    return draw_bars(records, COLOURS)


def draw_bars(records: list[Record], colours: Mapping[str, Any], across: int = 2) -> "Figure":
    """Draws a panel for each thing measured with a bar for each set.

    Args:
        records: The records of `scores.json`.
        colours: By set; others are drawn in sand.
        across: Panels side by side.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    columns = sort_columns(records)
    down = max(math.ceil(len(columns) / across), 1)
    most = max(map(len, columns.values()), default=1)
    # Many bars have their score beside the name, not below it.
    slim = most > MAX_BROAD
    figure = new_figure(5 * across, down * ((0.32 if slim else 0.6) * most + 1.1))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    if not columns:
        axes[0].text(0, 0.5, "no scores", color="gray")
    for axis, (heading, column) in zip(axes, columns.items(), strict=False):
        axis.set_title(plain(heading, 60), fontsize="medium" if slim else None)
        # A long label would leave a narrow panel on the right.
        axis.set_xlabel(unit(next(iter(column.values()))), loc="right" if slim else None)
        _draw_panel(axis, column, colours, "  " if slim else "\n")
    return figure


def spans_decades(records: Iterable[Record]) -> bool:
    """Whether these are errors of which the largest would hide what the others differ by."""
    means = [record["mean"] for record in records if record["metric"] == "mse"]
    return bool(means) and 0 < 20 * min(means) < max(means)


def _draw_panel(axis: "Axes", column: dict[str, Record], colours: Mapping[str, Any], between: str) -> None:
    scored = {name: record for name, record in column.items() if record["mean"] is not None}
    for place, (name, record) in enumerate(scored.items()):
        scale = metric_of(record).factor
        mean, std = scale * record["mean"], scale * (record["std"] or 0)
        axis.barh(place, mean, height=0.65, color=colours.get(name, "#dcc08e"))
        if record["n"] > 1:
            axis.errorbar(mean, place, xerr=std, color="black", capsize=6 if between == "\n" else 3, linewidth=1.2)
        values = scale * np.asarray(record.get("values", []), dtype=np.float64)
        axis.plot(values, place + np.linspace(-0.2, 0.2, len(values)), "o", color="black", markersize=3, alpha=0.6)
    labels = [f"{plain(name)}{between}{score_cell(record)}" for name, record in scored.items()]
    axis.set_yticks(range(len(labels)), labels)
    if scored and spans_decades(scored.values()):
        least = min(record["mean"] for record in scored.values())
        axis.set(xscale="log", xlim=(least / 2, None))
    axis.invert_yaxis()
    axis.set_axisbelow(True)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
