"""Pictures of accuracies class by class: a set beside random images and no pre-training."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssdd_hub.results.charts import HEADLINES, Picture, Style, draw_panels, own_sets, plain, styles_of
from ssdd_hub.results.tables import Record, amount, group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 20  # in one picture; of more, those that gain and that lose most
_BESIDE = re.compile("(random|none)(-[0-9]+)?")


def draw_classes(by_class: Mapping[str, Any]) -> list[Picture]:
    """Draws the accuracy of each class, a picture for each dataset, at the middle amount of labels.

    Of more than `MOST_CLASSES` classes those that differ most from random images are shown, where there are any, else
    from no pre-training. The sets are those that are no references, `random` and `none`.

    Args:
        by_class: What `scores.json` holds under this name: `classes` and `records`.
    """
    records = list(by_class.get("records", []))
    headline = next((name for name in HEADLINES if any(record["protocol"] == name for record in records)), None)
    names = list(dict.fromkeys(str(record["set"]) for record in records))
    shown = [*own_sets(records), *sorted(filter(_BESIDE.fullmatch, names), key=lambda name: name == "none")]
    pictures = []
    for (target,), part in group([record for record in records if record["protocol"] == headline], "target").items():
        first = part[0]
        labels = sorted({record["labels"] for record in part} - {None})
        chosen = {"student": first["student"], "use": first["use"]}
        chosen["labels"] = labels[len(labels) // 2] if labels else None
        sets = {r["set"]: r for r in part if all(r[key] == value for key, value in chosen.items())}
        sets = {name: sets[name] for name in shown if name in sets}
        if sets:
            heading = f"{headline} {amount(chosen['labels'])}".rstrip() + f" by class, {target}"
            pictures.append(_draw(heading, sets, by_class["classes"][target]))
    return pictures


def _draw(heading: str, sets: Mapping[str, Record], about: Mapping[str, Any]) -> Picture:
    first, *others = sets
    baseline = next(filter(_BESIDE.fullmatch, others), None)
    gains = _gains(sets[first]["mean"], sets[baseline]["mean"] if baseline else None)
    known = [label for label, mean in enumerate(sets[first]["mean"]) if mean is not None]
    order, some = known, ""
    if len(known) > MOST_CLASSES:
        ranked = sorted(known, key=lambda label: gains[label], reverse=True)
        order = [*ranked[: MOST_CLASSES // 2], *ranked[-(MOST_CLASSES // 2) :]]
        what = f"gain most against {baseline}, and that lose most" if baseline else "have most, and least"
        ends = f"Of {len(known)} classes those {MOST_CLASSES // 2} that {what}"
        some = f" {ends}: among so many, the ends are largely chance."
    styles = styles_of(sets)
    figure, (axis,) = draw_panels([("", list(sets.values()))], styles, heading)
    figure.set_size_inches(8.4, 1.2 + 0.34 * len(order))
    axis.set(ylabel="", xlabel="accuracy in % (higher is better)")
    _fill(axis, sets, styles, order)
    names = about.get("names")
    labels = []
    for label in order:
        gain = f", {100 * gains[label]:+.1f}" if baseline else ""
        labels.append(f"{plain(names[label] if names else str(label), 24)} ({about['images'][label]} images{gain})")
    axis.set_yticks(range(len(order)), labels, fontsize=9)
    if some:
        axis.axhline(MOST_CLASSES // 2 - 0.5, color="black", linewidth=0.8, linestyle=":")
    axis.set_ylim(len(order) - 0.5, -0.5)
    seeds = ", ".join(map(str, sorted({record["n"] for record in sets.values()})))
    points = f", and the difference of {first} to {baseline} in points" if baseline else ""
    caption = (
        f"{heading}: mean and standard deviation over the seeds (n = {seeds}); in brackets the held-out images of the "
        f"class{points}.{some}"
    )
    return Picture(heading, caption, figure)


def _gains(means: Sequence[float | None], beside: Sequence[float | None] | None) -> list[float]:
    """Returns by how much each class is better than beside; its accuracy where there is nothing beside."""
    base = beside or [0.0] * len(means)
    return [(mean or 0.0) - (other or 0.0) for mean, other in zip(means, base, strict=True)]


def _fill(axis: "Axes", sets: Mapping[str, Record], styles: Mapping[str, Style], order: Iterable[int]) -> None:
    for place, label in enumerate(order):
        if place % 2:
            axis.axhspan(place - 0.5, place + 0.5, color="#f1f3f4", zorder=0)
        for number, (name, record) in enumerate(sets.items()):
            if record["mean"][label] is None:
                continue
            style, shift = styles[name], 0.6 * ((number + 0.5) / len(sets) - 0.5)
            axis.errorbar(
                100 * record["mean"][label],
                place + shift,
                xerr=100 * record["std"][label] if record["n"] > 1 else None,
                color=style.colour,
                marker=style.marker,
                markersize=6,
                elinewidth=0.9,
                capsize=2,
                zorder=3 if number == 0 else 2,
            )
    axis.grid(visible=False, axis="y")
    # Whiskers may leave what an accuracy can be.
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -1), min(high, 101))
