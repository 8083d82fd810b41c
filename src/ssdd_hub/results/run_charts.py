"""Pictures of a distillation: its images before and after, and its losses."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssdd_hub.results.charts import new_figure
from ssdd_hub.results.tables import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SHOWN, PER_BAND = 24, 8
LINE, MARK = "#1f6f8b", "#b5523b"


def _strip(images: Tensor, places: int, fill: float) -> np.ndarray[Any, Any]:
    """Lays `(n, C, H, W)`, `n <= places`, side by side; returns `(H, width)` or `(H, width, 3)`."""
    gap = max(1, images.shape[-1] // 12)
    canvas = functional.pad(images, (0, gap, 0, 0, 0, 0, 0, places - len(images)), value=fill)
    return canvas.permute(2, 0, 3, 1).flatten(1, 2).squeeze(-1).numpy()


def draw_images(before: Tensor, after: Tensor, random: Tensor | None = None) -> "Figure":
    """Draws images `(M, C, H, W)` before and after, their difference, and random real ones where given."""
    # Rounding in normalise and denormalise leaves exact black and white a hair outside [0, 1].
    outside = ((after < -1e-4) | (after > 1 + 1e-4)).float().mean().item()
    total, _, height, width = before.shape
    chosen = torch.linspace(0, total - 1, min(total, MAX_SHOWN)).round().long()
    rows = {"before": before, "after": after, **({} if random is None else {"random": random})}
    rows = {name: images.detach().cpu()[chosen % len(images)].float() for name, images in rows.items()}
    difference = (rows["after"] - rows["before"]).mean(1, keepdim=True)
    # A few extreme pixels must not bleach all others.
    limit = float(np.quantile(difference.abs().numpy(), 0.995)) or 1.0
    if before.shape[1] != 3:
        rows = {name: images.mean(1, keepdim=True) for name, images in rows.items()}
    rows = {"before": rows.pop("before"), "after": rows.pop("after"), "difference": difference, **rows}
    places = min(len(chosen), PER_BAND)
    bands = list(zip(*(torch.split(images, places) for images in rows.values()), strict=True))

    high = len(bands) * (1.13 * len(rows) * height / width + 0.3)
    figure = new_figure(max(1.1 * places + 1.8, 5.4), 0.7 + high)
    clipped = f"{100 * outside:.1f} % of the distilled values lie outside [0, 1], shown clipped"
    figure.suptitle(f"{len(chosen)} of {total} images\n{clipped}", fontsize="medium")
    # The last row of each band stays empty, to part them.
    ratios = [*[1.0] * len(rows), 0.12] * len(bands)
    grid = figure.add_gridspec(len(ratios), 1, height_ratios=ratios)
    for number, band in enumerate(bands):
        for row, (images, name) in enumerate(zip(band, rows, strict=True)):
            axis = figure.add_subplot(grid[(len(rows) + 1) * number + row])
            if name == "difference":
                shown = axis.imshow(_strip(images, places, math.nan), cmap="RdBu_r", vmin=-limit, vmax=limit)
            else:
                axis.imshow(_strip(images.clamp(0, 1), places, 1.0), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
            axis.spines[:].set_visible(False)
    shrink = min(1.0, 5 / high)
    label = "after - before"
    figure.colorbar(shown, ax=figure.axes, extend="both", extendfrac=0.02, aspect=40, shrink=shrink, label=label)
    return figure


def draw_losses(log: list[Record]) -> "Figure":
    """Draws the records of `log.jsonl`: outer loss and, where known, held-out error and the teacher's loss."""
    errors = [record for record in log if record.get("stage") == "heldout" and _finite(record.get("error"))]
    teacher = any(record.get("stage") == "teacher" for record in log)
    figure = new_figure(8, 3.2 * (1 + bool(errors) + teacher))
    axes = iter(figure.subplots(1 + bool(errors) + teacher, 1, squeeze=False).ravel())
    distilled = [record for record in log if record.get("stage") == "distill"]
    axis = next(axes)
    axis.set(title="Distillation", xlabel="outer step", ylabel="outer loss (lower is better)")
    _draw_curve(axis, distilled)
    _mark_renewals(axis, distilled)
    if errors:
        _draw_heldout(next(axes), errors)
    if teacher:
        axis = next(axes)
        axis.set(title="Teacher", xlabel="step", ylabel="loss of the objective (lower is better)")
        _draw_curve(axis, [record for record in log if record.get("stage") == "teacher"])
    return figure


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


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


def renewals(records: list[Record]) -> list[int]:
    """Returns the outer steps that first met a renewed student: the age of its slot is less than at the last visit."""
    ages: dict[Any, int] = {}
    found = []
    for record in records:
        slot, age = record.get("student"), record.get("age")
        if slot is not None and age is not None:
            if age < ages.get(slot, age):
                found.append(record["step"])
            ages[slot] = age
    return found


def _mark_renewals(axis: "Axes", records: list[Record]) -> None:
    steps = renewals(records)
    if steps:
        # At the lower edge, whatever the losses are.
        label = f"{len(steps)} renewed students, at their first step"
        edge = axis.get_xaxis_transform()
        axis.plot(steps, [0.0] * len(steps), "^", transform=edge, clip_on=False, color=MARK, markersize=5, label=label)
        axis.legend(loc="upper right", fontsize=8)


def _draw_heldout(axis: "Axes", records: list[Record]) -> None:
    steps, errors = [record["step"] for record in records], [record["error"] for record in records]
    axis.set(title=f"Error on {records[0].get('images', 'some')} held-out images", xlabel="outer step")
    axis.set_ylabel("mean squared error\n(lower is better)")
    axis.plot(steps, errors, "o-", color=LINE, linewidth=2)
    if steps[0] == 0 and len(steps) > 1:
        axis.axhline(errors[0], color="gray", linestyle="--", linewidth=1, label="at the start")
        axis.legend(loc="upper right", fontsize=8)
    axis.grid(alpha=0.25)
