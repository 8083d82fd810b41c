"""What sampled meta-gradients say about their bias: numbers, a table and a picture."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssdd_hub.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
# Draws that differ by less than this part of the gradient differ by rounding in float64.
ROUNDING = 1e-12
SMALLEST = 1e-18
COLOURS = ("#1f6f8b", "#c8553d", "#588b3a", "#8d5a97", "#b8860b", "#444444")


def measure_bias(exact: Tensor, sampled: Tensor) -> Record:
    """Compares the mean of sampled gradients with the exact one. All lengths are parts of that of the exact gradient.

    The length of the measured bias is always above zero, since noise has a length too, so it proves nothing. The test
    is split: the first half of the draws says in which direction the bias points, and the second half is projected on
    that direction. The halves are independent, so without a bias the projections have mean zero whatever the direction
    is, and their mean over its standard error, `z`, is distributed like a standard normal number. With a bias, the
    projection is at most as long as the bias.

    Args:
        exact: The gradient of the expected loss, any shape.
        sampled: `(n, *shape)`, independent gradients, at least 4.

    Returns:
        `draws`; `exact_norm`, the length of the exact gradient; `error`, the length of mean minus exact; `bias`, the
        same without the part that noise has in its square, and 0 where nothing is left; `std`, the root of the summed
        variances of one draw; `cosine` of the mean and the exact gradient; `projection`, its `standard_error` and its
        95 % `interval`; `z`, None where all draws are the same; `curve`, see `error_curve`.
    """
    flat, differences = exact.flatten(), (sampled - exact).flatten(1)  # (d,), (n, d)
    scale, count = flat.norm().item(), len(sampled)
    mean = differences.mean(0)
    variance = differences.var(0).sum().item()
    pilot, tested = differences[: count // 2].mean(0), differences[count // 2 :]
    projections = tested @ pilot / pilot.norm().clamp_min(1e-300) / scale
    projection, error = projections.mean().item(), (projections.std() / math.sqrt(len(tested))).item()
    return {
        "draws": count,
        "exact_norm": scale,
        "error": mean.norm().item() / scale,
        "bias": math.sqrt(max(0.0, mean.square().sum().item() - variance / count)) / scale,
        "std": math.sqrt(variance) / scale,
        "cosine": torch.cosine_similarity(mean + flat, flat, dim=0).item(),
        "projection": projection,
        "standard_error": error,
        "interval": [projection - 1.96 * error, projection + 1.96 * error],
        "z": projection / error if math.sqrt(variance) > ROUNDING * scale else None,
        "curve": error_curve(exact, sampled),
    }


def error_curve(exact: Tensor, sampled: Tensor) -> list[tuple[int, float]]:
    """Returns how far the mean of `n` draws is from the exact gradient, for `n` = 1, 2, 4 and so on.

    Without a bias it falls as `1 / sqrt(n)`; with one it levels off at the length of the bias.

    Args:
        exact: The gradient of the expected loss, any shape.
        sampled: `(draws, *shape)`.

    Returns:
        Pairs of `n` and the root mean square, over all disjoint blocks of `n` draws, of the length of their mean minus
        the exact gradient, as a part of the length of the exact gradient.
    """
    differences, curve = (sampled - exact).flatten(1), []
    for power in range(len(sampled).bit_length()):
        number = 2**power
        blocks = differences[: len(sampled) // number * number].view(-1, number, differences.shape[1]).mean(1)
        error = blocks.square().sum(1).mean().sqrt() / exact.norm()
        curve.append((number, error.item()))
    return curve


def bias_table(records: list[Record]) -> str:
    """Returns the measured biases as a small table of plain text, one row for each inner loss.

    Args:
        records: As `measure_bias` returns them, each with the name of its `loss`.
    """
    table = [["inner loss", "draws", "bias", "projected, 95 % interval", "z", "std of a draw", "cosine"]]
    for record in records:
        low, high = record["interval"]
        spread = "" if record["z"] is None else f" [{low:.3f}, {high:.3f}]"
        table.append(
            [
                record["loss"],
                str(record["draws"]),
                _short(record["bias"]),
                _short(record["projection"]) + spread,
                "none" if record["z"] is None else f"{record['z']:.1f}",
                _short(record["std"]),
                f"{record['cosine']:.3f}",
            ]
        )
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(row.rstrip() for row in rows)


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"


def render_bias(path: Path, records: list[Record]) -> None:
    """Draws the error of the mean over the number of draws, and the projected bias of each loss, as a PNG.

    Args:
        path: The picture to write.
        records: As `measure_bias` returns them, each with the name of its `loss`; at least one of them random.
    """
    # Not pyplot, which would keep every figure and pick a backend for the caller's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Meta-gradient with a sampled inner loss, against that of the expected inner loss")
    grid = figure.add_gridspec(2, 2, height_ratios=[5, 1], width_ratios=[1.25, 1])
    upper, lower = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    _draw_curves(upper, lower, records)
    _draw_projections(figure.add_subplot(grid[:, 1]), records)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_curves(upper: "Axes", lower: "Axes", records: list[Record]) -> None:
    """Draws what is random above, and below, at the scale of rounding, what is not."""
    for number, record in enumerate(records):
        axis = lower if record["z"] is None else upper
        counts, errors = zip(*record["curve"], strict=True)
        colour = COLOURS[number % len(COLOURS)]
        # An error of zero has no place on a logarithmic axis.
        shown = [max(error, SMALLEST) for error in errors]
        axis.plot(counts, shown, "o-", color=colour, markersize=4, linewidth=1.6, label=record["loss"])
        if record["z"] is not None:
            unbiased = [record["std"] / math.sqrt(count) for count in counts]
            axis.plot(counts, unbiased, ":", color=colour, linewidth=1.1)
    upper.plot([], [], ":", color="black", linewidth=1.1, label="with no bias: std / √n")
    for axis in (upper, lower):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlim(0.8, 1.25 * records[0]["curve"][-1][0])
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_formatter("{x:.0f}")
    lower.set_ylim(SMALLEST / 10, 1e-6)
    lower.set_yticks([SMALLEST, 1e-12, 1e-6])
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("error of the mean of n draws\n(parts of the exact gradient)")
    upper.legend(fontsize="small", ncols=2, loc="lower left")
    if lower.lines:
        lower.legend(fontsize="small", loc="upper right")
    lower.set_xlabel("draws n")


def _draw_projections(axis: "Axes", records: list[Record]) -> None:
    for place, record in enumerate(records):
        low, high = record["interval"]
        middle, colour = record["projection"], COLOURS[place % len(COLOURS)]
        axis.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, capsize=5)
        note = f"z = {record['z']:.1f}" if record["z"] is not None else f"{middle:.0e}, nothing is drawn"
        axis.annotate(note, (middle, place), (0, 9), textcoords="offset points", ha="center", fontsize="small")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(records)), [record["loss"] for record in records])
    axis.set_ylim(len(records) - 0.5, -0.7)
    axis.margins(x=0.15)
    axis.grid(axis="x", alpha=0.25)
    axis.set_xlabel("bias projected on a direction of other draws, 95 % interval\n(parts of the exact gradient)")
