"""HTML pages of a distillation and of an evaluation, with tables and pictures in one file."""

import base64
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssdd_hub.files import atomic_path
from ssdd_hub.results.charts import draw_bars, new_figure, save_figures, styles_of
from ssdd_hub.results.compare import (
    DIFFERENCE_NOTE,
    NOT_RANKED,
    UPPER_BOUNDS,
    difference_tables,
    score_note,
    score_tables,
    share_of_way,
)
from ssdd_hub.results.evaluation_charts import draw_evaluation
from ssdd_hub.results.tables import Record, Table, build_tables, group, score_rows, sort_columns, unit
from ssdd_hub.results.verdict import own_sets, verdicts
from ssdd_hub.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "images": "Images of the set before and after distillation, and their difference (red: brighter, blue: darker).",
    "loss": (
        "Training losses: every logged value (faint) and their running median (strong). The outer loss jumps up where "
        "a student of the pool reached its age and was renewed: a new network fits the targets less well."
    ),
    "scores": "Scores: mean (bar or marker), standard deviation over seeds (whiskers) and every single seed (dots).",
}
MAX_SHOWN, PER_BAND = 24, 8
LINE = "#1f6f8b"


def render_pictures(
    folder: Path, *, before: Tensor, after: Tensor, log: list[Record], scores: list[Record]
) -> dict[str, Path]:
    """Writes `images.png`, `loss.png` and `scores.png` into a folder; returns the files by name without suffix.

    `before` and `after` are pixels `(M, C, H, W)` of the set, the latter perhaps outside `[0, 1]`; `log` holds records
    of `log.jsonl` with `stage`, `step` and `loss`, `scores` those of `scores.json`.
    """
    if before.shape != after.shape or before.ndim != 4 or len(before) == 0:
        raise ValueError(
            "the pictures need the same images (M, C, H, W), M > 0, before and after; "
            f"got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    scores = [record for record in scores if record["protocol"] not in NOT_RANKED]
    bars = draw_bars(scores, styles_of(record["set"] for record in scores))
    return save_figures(folder, {"images": _draw_images(before, after), "loss": _draw_losses(log), "scores": bars})


def render_report(
    path: Path, *, title: str, pictures: dict[str, Path], scores: list[Record], config: str, facts: dict[str, str]
) -> Path:
    """Writes one HTML page that needs no other file: no script, no link, pictures inside; returns its path.

    `pictures` are PNG files by name, as `render_pictures` returns them, `scores` the records of `scores.json`,
    `config` the resolved configuration as YAML, and `facts` what was run, on what, for how long.
    """
    # Of the costs the seconds alone, as the last column.
    shown = sorted(scores, key=lambda record: record["protocol"] in NOT_RANKED)
    columns = sort_columns(
        [each for each in shown if each["protocol"] not in NOT_RANKED or each["metric"] == "seconds"]
    )
    return render_page(
        path,
        "report.html",
        [(picture, CAPTIONS.get(name, name)) for name, picture in pictures.items()],
        title=title,
        facts=facts,
        verdicts=verdicts(scores),
        columns=[(heading, next(iter(column.values()))) for heading, column in columns.items()],
        rows=score_rows(columns),
        config=config,
    )


def render_page(path: Path, template: str, pictures: list[tuple[Path, str]], **context: Any) -> Path:
    """Writes one of the HTML templates of this package with pictures and their captions inside; returns its path.

    The context is what the template takes besides `figures`; a name that it lacks is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("ssdd_hub.results")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["unit"] = unit
    figures = [(base64.b64encode(picture.read_bytes()).decode(), caption) for picture, caption in pictures]
    page = environment.get_template(template).render(figures=figures, **context)
    with atomic_path(path) as temporary:
        temporary.write_text(printable(page), encoding="utf-8")
    return path


def _strip(images: Tensor, places: int, fill: float) -> np.ndarray[Any, Any]:
    """Lays `(n, C, H, W)`, `n <= places`, side by side; returns `(H, width)` or `(H, width, 3)`."""
    gap = max(1, images.shape[-1] // 12)
    canvas = functional.pad(images, (0, gap, 0, 0, 0, 0, 0, places - len(images)), value=fill)
    return canvas.permute(2, 0, 3, 1).flatten(1, 2).squeeze(-1).numpy()


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


def render_evaluation(
    folder: Path,
    records: list[Record],
    comparisons: list[Record],
    facts: Mapping[str, Any],
    config_text: str,
    previews: Mapping[str, Path] | None = None,
) -> Path:
    """Writes `report.html`, a page that needs no other file, and its pictures in `pictures/`; returns the page.

    Args:
        folder: Where to.
        records: The records of `scores.json`.
        comparisons: Of `compare`, with any baselines.
        facts: Machine, versions and the like, in this order: text, a mapping, or a list of commands.
        config_text: The resolved configuration, YAML text.
        previews: PNG files that show some images of a set, by its name.
    """
    drawn = {
        f"{number:02}-{re.sub(r'[^a-z0-9]+', '-', picture.name.lower()).strip('-')[:60]}": picture
        for number, picture in enumerate(draw_evaluation(records), 1)
    }
    paths = save_figures(folder / "pictures", {name: picture.figure for name, picture in drawn.items()})
    shown = [(path, f"Images of the set {name}") for name, path in (previews or {}).items()]
    return render_page(
        folder / "report.html",
        "evaluation.html",
        shown + [(path, drawn[name].caption) for name, path in paths.items()],
        title=f"Evaluation of {', '.join(own_sets(records) or _sets(records)) or 'nothing'}",
        previews=len(shown),
        facts=facts,
        verdicts=verdicts(records),
        parts=_parts(records, comparisons),
        config=config_text,
    )


def _sets(records: Iterable[Record]) -> list[str]:
    """Returns the sets that are neither upper bounds nor no pre-training."""
    return list(dict.fromkeys(record["set"] for record in records if record["set"] not in (*UPPER_BOUNDS, "none")))


def _parts(records: list[Record], comparisons: list[Record]) -> list[tuple[str, list[Table], str]]:
    """Returns headings, tables and notes of the page."""
    parts = [("Scores", score_tables(records, comparisons), score_note(records, comparisons))]
    for (baseline,), results in group(comparisons, "baseline").items():
        note = f"{DIFFERENCE_NOTE} In brackets the 95 % interval."
        parts.append((f"Differences to {baseline}", difference_tables(results, intervals=True), note))
    for high in (name for name in UPPER_BOUNDS if any(record["set"] == name for record in records)):
        sets = [name for name in _sets(records) if name != "random"]
        shares = [share for name in sets for share in share_of_way(records, name, high=high)]
        notes = " ".join(dict.fromkeys(f"* {share['note']}." for share in shares if share["note"]))
        note = f"0 % is random, 100 % is {high}, of the means. {notes}"
        if shares:
            parts.append((f"Share of the way from random to {high}", build_tables(shares, _share), note))
    return parts


def _share(share: Record) -> str:
    # A way that may not be there has no share.
    return "– *" if share["note"] or share["share"] is None else f"{100 * share['share']:.0f} %"
