"""Pictures of an evaluation: scores against labels, by student and against cost; the order of architectures."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssdd_hub.results.charts import (
    Style,
    draw_bars,
    draw_panels,
    draw_point,
    plain,
    set_log_axis,
    shown_styles,
    shown_values,
    spans_decades,
    styles_of,
)
from ssdd_hub.results.compare import NO_CONTEST
from ssdd_hub.results.tables import Record, amount, group, sort_columns, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """A figure with what it shows in words."""

    name: str
    caption: str
    figure: "Figure"


_HEADLINES = ("probe", "finetune", "probe_mkdt", "knn")  # drawn against cost: the first that was measured
_MOST_BARS = 6  # panels of bars in one picture
_MOST_STUDENTS = 3  # with pictures of their own; all are in the picture by student
_RANK, _TRUTH = "rank", "full"


def draw_evaluation(records: Sequence[Record]) -> list[Picture]:
    """Draws what was measured, each thing in the picture that suits it.

    Args:
        records: The records of `scores.json`; those without a mean are left out.

    Returns:
        The pictures, in the order to look at them.
    """
    known = [record for record in records if record["mean"] is not None]
    styles = styles_of(record["set"] for record in known)
    contest = [record for record in known if record["protocol"] not in (*NO_CONTEST, _RANK)]
    pictures: list[Picture] = []
    for (protocol,), scores in sorted(group(contest, "protocol").items(), key=lambda item: item[0] != ("probe",)):
        pictures += _draw_protocol(str(protocol), scores, styles)
    pictures += _draw_alone(contest, styles)
    return [*pictures, *_draw_costs(known, contest, styles), *_draw_ranks(known, contest, styles)]


def _draw_protocol(protocol: str, scores: list[Record], styles: Mapping[str, Style]) -> list[Picture]:
    pictures, students = [], list(group(scores, "student", "use", "metric"))
    for key in students[:_MOST_STUDENTS]:
        part = group(scores, "student", "use", "metric")[key]
        about = ", ".join(filter(None, [protocol, key[0], _use(scores, key[1])]))
        if len(group(part, "labels")) > 1:
            caption = f"{about}: mean over the seeds against the labelled images used, ± standard deviation."
            pictures.append(Picture(about, caption, _draw_curves(part, about, styles)))
    if len(group(scores, "student")) > 1:
        pictures += _draw_students(protocol, scores, styles)
    return pictures


def _draw_alone(contest: list[Record], styles: Mapping[str, Style]) -> list[Picture]:
    """Draws bars of errors, and of what has neither several amounts of labels nor several students."""
    alone = []
    for same in group(contest, "protocol").values():
        several = len(group(same, "student", "use", "metric")) > 1
        chosen = [record for record in same if record["metric"] == "mse" or not several]
        alone += chosen if len(group(chosen, "labels")) == 1 else []
    parts = group(alone, "protocol")
    parts = {("scores",): alone} if alone and len(sort_columns(alone)) <= _MOST_BARS else parts
    caption = "mean (bar), standard deviation over seeds (whiskers), every seed (dots)."
    return [
        Picture(
            f"{name} bars",
            f"{', '.join(p for (p,) in group(part, 'protocol'))}: {caption}",
            _draw_all_bars(part, styles),
        )
        for (name,), part in parts.items()
    ]


def _draw_all_bars(records: list[Record], styles: Mapping[str, Style]) -> "Figure":
    colours = {name: (style.colour, 0.55) for name, style in styles.items()}
    return draw_bars(records, colours, across=min(2, len(sort_columns(records))))


def _use(records: Sequence[Record], use: str | None) -> str:
    return f"use {use}" if len(group(records, "use")) > 1 else ""


def _draw_curves(records: list[Record], heading: str, styles: Mapping[str, Style]) -> "Figure":
    """Draws a panel for each target, a line for each set, over the labels, shares and counts apart."""
    labelled = [{**r, "kind": type(r["labels"])} for r in records if r["labels"] is not None]
    panels = group(labelled, "target", "kind")
    styles = shown_styles(labelled, styles)
    figure, axes = draw_panels([str(target) for target, _ in panels], styles, heading)
    for axis, ((_, kind), part) in zip(axes, panels.items(), strict=True):
        labels = sorted({record["labels"] for record in part})
        # Whiskers of different sets stand beside each other.
        width = 0.02 * math.log(labels[-1] / labels[0])
        for place, name in enumerate(styles):
            curve = sorted((r for r in part if r["set"] == name), key=lambda record: record["labels"])
            if curve:
                dodge = math.exp(width * (2 * place / max(len(styles) - 1, 1) - 1))
                means, deviations = np.array([shown_values(record) for record in curve]).T
                x = [record["labels"] * dodge for record in curve]
                draw_point(axis, x, means, deviations, styles[name], name, line=True)
        axis.set_xscale("log")
        axis.set_xticks(labels, [f"{100 * label:g} %" if kind is float else str(label) for label in labels])
        axis.minorticks_off()
        axis.set_xlabel("labelled images" if kind is int else "share of the labels")
        axis.set_ylabel(unit(part[0]), fontsize=9)
    return figure


def _draw_students(protocol: str, scores: list[Record], styles: Mapping[str, Style]) -> list[Picture]:
    pictures = []
    for (use, _), part in group(scores, "use", "metric").items():
        part, labels = _middle(part)
        panels, styles = group(part, "target"), shown_styles(part, styles)
        about = ", ".join(filter(None, [protocol, labels, _use(scores, use)]))
        figure, axes = draw_panels([str(target) for (target,) in panels], styles, about)
        for axis, same in zip(axes, panels.values(), strict=True):
            _draw_groups(axis, same, styles)
        caption = f"{about}: mean ± standard deviation over the seeds, by student."
        pictures.append(Picture(f"{protocol} by student", caption, figure))
    return pictures


def _middle(records: list[Record]) -> tuple[list[Record], str]:
    """Returns the records of one amount of labels, the middle one, and the amount in words."""
    amounts = sorted({record["labels"] for record in records} - {None})
    labels = amounts[len(amounts) // 2] if amounts else None
    return [record for record in records if record["labels"] == labels], amount(labels)


def _draw_groups(axis: "Axes", records: list[Record], styles: Mapping[str, Style]) -> None:
    students = list(dict.fromkeys(record["student"] for record in records))
    names = list(styles)
    for place, student in enumerate(students):
        if place % 2:
            axis.axvspan(place - 0.5, place + 0.5, color="#f1f3f4", zorder=0)
        for record in (r for r in records if r["student"] == student):
            shift = 0.76 * ((names.index(record["set"]) + 0.5) / len(names) - 0.5)
            mean, deviation = shown_values(record)
            draw_point(axis, place + shift, mean, deviation, styles[record["set"]], record["set"])
    axis.set_xlim(-0.5, len(students) - 0.5)
    axis.set_xticks(range(len(students)), [plain(student) for student in students], fontsize=8)
    if len(students) > 2:
        for label in axis.get_xticklabels():
            label.set(rotation=25, ha="right", rotation_mode="anchor")
    axis.grid(visible=False, axis="x")
    axis.set_ylabel(unit(records[0]), fontsize=9)


def _draw_costs(known: list[Record], contest: list[Record], styles: Mapping[str, Style]) -> list[Picture]:
    """Draws scores against the seconds of pre-training; a set that costs nothing is a line."""
    seconds = {
        (record["set"], record["student"], record.get("use")): record["mean"]
        for record in known
        if record["protocol"] in NO_CONTEST and record["metric"] == "seconds" and record["mean"] > 0
    }
    measured = {record["protocol"] for record in contest}
    headline = next((name for name in _HEADLINES if name in measured), None)
    scores = [record for record in contest if record["protocol"] in ("teacher_error", headline)]
    pictures = []
    for (student, use), part in list(group(scores, "student", "use").items())[:_MOST_STUDENTS]:
        costs = {name: cost for (name, *about), cost in seconds.items() if about == [student, use]}
        if costs:
            about = ", ".join(filter(None, ["cost of pre-training", student, _use(scores, use)]))
            caption = f"{about}: seconds of pre-training one student, and what it reaches. A dashed line cost nothing."
            pictures.append(Picture(about, caption, _draw_cost(part, about, costs, styles)))
    return pictures


def _draw_cost(
    records: list[Record], heading: str, costs: Mapping[str, float], styles: Mapping[str, Style]
) -> "Figure":
    chosen = [
        (same[0]["protocol"], target, *_middle(same))
        for (_, target), same in group(records, "protocol", "target").items()
    ]
    styles = shown_styles(records, styles)
    titles = [", ".join(filter(None, [protocol, target, labels])) for protocol, target, _, labels in chosen]
    figure, axes = draw_panels(titles, styles, heading)
    for axis, (*_, part, _) in zip(axes, chosen, strict=True):
        for record in part:
            name, (mean, deviation) = record["set"], shown_values(record)
            if name in costs:
                draw_point(axis, costs[name], mean, deviation, styles[name], name)
            else:
                axis.axhline(mean, color=styles[name].colour, linestyle="--", linewidth=1.2)
        set_log_axis(axis, "seconds of pre-training", costs.values())
        axis.set_ylabel(unit(part[0]), fontsize=9)
        if spans_decades(part):
            axis.set_yscale("log")
    return figure


def _draw_ranks(known: list[Record], contest: list[Record], styles: Mapping[str, Style]) -> list[Picture]:
    """Draws how well a set orders architectures against how much sooner, and the scores that were ordered."""
    ranks = group([record for record in known if record["protocol"] == _RANK], "metric")
    taus = ranks.get(("tau",), [])
    pictures = [_draw_taus(taus, ranks.get(("speedup",), []), styles)] if taus else []
    for (by, target, labels, use), part in group(taus, "by", "target", "labels", "use").items():
        asked = {"protocol": by, "target": target, "labels": labels, "use": use}
        scores = [r for r in contest if all(r.get(key) == value for key, value in asked.items())]
        values = {(r["set"], r["student"]): shown_values(r)[0] for r in scores}
        titles = {r["set"]: f"{r['set']}, tau {r['mean']:.2f}" for r in part}
        names = [name for name in titles if any((name, student) in values for _, student in values)]
        if names and any(name == _TRUTH for name, _ in values):
            about = ", ".join(filter(None, [f"architectures by {by}", target, amount(labels), _use(taus, use)]))
            caption = f"{about}: each point is an architecture, mean over the seeds, on a set and on {_TRUTH}."
            figure = _draw_orders({name: titles[name] for name in names}, values, about, unit(scores[0]), styles)
            pictures.append(Picture(about, caption, figure))
    return pictures


def _draw_taus(taus: list[Record], speedups: list[Record], styles: Mapping[str, Style]) -> Picture:
    caption = "Kendall's tau of the order of architectures on a set and on the whole source; 1 is the same order"
    factors = {(r["set"], r["target"], r.get("use")): r["mean"] for r in speedups if r["mean"] > 0}
    if not all((r["set"], r["target"], r.get("use")) in factors for r in taus):
        return Picture("rank", f"{caption}.", _draw_all_bars(taus, styles))
    panels = group(taus, "target", "use")
    titles = [", ".join(filter(None, [str(target), _use(taus, use)])) for target, use in panels]
    figure, axes = draw_panels(titles, shown_styles(taus, styles), "order of architectures")
    for axis, part in zip(axes, panels.values(), strict=True):
        for record in part:
            name, (mean, deviation) = record["set"], shown_values(record)
            draw_point(axis, factors[name, record["target"], record.get("use")], mean, deviation, styles[name], name)
        set_log_axis(axis, "times as fast as the whole source", factors.values())
        axis.set_ylabel(unit(part[0]), fontsize=9)
    return Picture("rank", f"{caption}; right is sooner.", figure)


def _draw_orders(
    titles: Mapping[str, str],
    values: Mapping[tuple[str, str], float],
    heading: str,
    ylabel: str,
    styles: Mapping[str, Style],
) -> "Figure":
    figure, axes = draw_panels(list(titles.values()), {name: styles[name] for name in titles}, heading)
    for axis, name in zip(axes, titles, strict=True):
        for student in (student for other, student in values if other == name and (_TRUTH, student) in values):
            draw_point(axis, values[_TRUTH, student], values[name, student], None, styles[name], name)
        axis.set_xlabel(f"on {_TRUTH}")
        axis.set_ylabel(ylabel, fontsize=9)
    return figure
