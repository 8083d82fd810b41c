"""Pictures of an evaluation: scores against labels, bytes and cost, and by student; the order of architectures."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ssdd_hub.results.charts import (
    HEADLINES,
    Picture,
    Style,
    draw_bars,
    draw_panels,
    draw_points,
    own_sets,
    plain,
    set_log_axis,
    shown_values,
    spans_decades,
    styles_of,
)
from ssdd_hub.results.compare import NOT_RANKED
from ssdd_hub.results.tables import Record, amount, family, group, sort_columns
from ssdd_hub.text import show_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Styles = Mapping[str, Style]
_MOST_BARS = 6  # panels of bars in one picture
_MOST_STUDENTS = 3  # with pictures of their own; all are in the picture by student
_RANK, _TRUTH = "rank", "full"
TEACHER_ERROR = "teacher_error"


def draw_evaluation(records: Sequence[Record]) -> list[Picture]:
    """Draws the records of `scores.json` that have a mean, each in the picture that suits it.

    Returns:
        The pictures, in the order to look at them.
    """
    known = [record for record in records if record["mean"] is not None]
    styles = styles_of(record["set"] for record in known)
    scores = [record for record in known if record["protocol"] not in (*NOT_RANKED, _RANK)]
    pictures = _draw_bytes(scores)
    for (protocol,), part in sorted(group(scores, "protocol").items(), key=lambda item: item[0] != ("probe",)):
        for (student, use, _), same in list(group(part, "student", "use", "metric").items())[:_MOST_STUDENTS]:
            if len(group(same, "labels")) > 1:
                about = _join(protocol, student, _use(part, use))
                caption = f"{about}: mean over the seeds against the labelled images used, ± standard deviation."
                pictures.append(Picture(about, caption, _draw_curves(same, about, styles)))
        if len(group(part, "student")) > 1:
            pictures += [
                _draw_students(str(protocol), _use(part, use), same, styles)
                for (use, _), same in group(part, "use", "metric").items()
            ]
    return [
        *pictures,
        *_draw_alone(scores, styles),
        *_draw_costs(known, scores, styles),
        *_draw_ranks(known, scores, styles),
    ]


def _join(*parts: str | None) -> str:
    return ", ".join(filter(None, parts))


def _use(records: Sequence[Record], use: str | None) -> str:
    return f"use {use}" if len(group(records, "use")) > 1 else ""


def _draw_curves(records: list[Record], heading: str, styles: Styles) -> "Figure":
    """Draws a panel for each target, a line for each set, over the labels; shares and counts have panels each."""
    labelled = [{**record, "kind": type(record["labels"])} for record in records if record["labels"] is not None]
    panels = group(labelled, "target", "kind")
    figure, axes = draw_panels([(str(target), part) for (target, _), part in panels.items()], styles, heading)
    names = [name for name in styles if any(record["set"] == name for record in labelled)]
    for axis, ((_, kind), part) in zip(axes, panels.items(), strict=True):
        labels = sorted({record["labels"] for record in part})
        # Whiskers of different sets stand beside each other.
        width = 0.02 * math.log(labels[-1] / labels[0])
        for (name,), curve in group(sorted(part, key=lambda record: record["labels"]), "set").items():
            dodge = _dodge(names.index(name), len(names), width)
            draw_points(axis, [record["labels"] * dodge for record in curve], curve, styles[name], line=True)
        axis.set_xscale("log")
        axis.set_xticks(labels, [f"{100 * label:g} %" if kind is float else str(label) for label in labels])
        axis.minorticks_off()
        axis.set_xlabel("labelled images" if kind is int else "share of the labels")
    return figure


def _dodge(place: int, count: int, width: float) -> float:
    """Returns the factor by which points of one of several sets stand beside those of others on a log axis."""
    return math.exp(width * (2 * place / max(count - 1, 1) - 1))


def _draw_bytes(scores: list[Record]) -> list[Picture]:
    """Draws accuracy and error against the bytes of sets, where these differ; what has no bytes is a line."""
    sizes = {record["set"]: record["bytes"] for record in scores if record.get("bytes")}
    if len({*sizes.values()}) < 2:
        return []
    scores = sorted(_headline(scores), key=lambda record: record["protocol"] == TEACHER_ERROR)
    pictures = []
    for (student, use), part in list(group(scores, "student", "use").items())[:_MOST_STUDENTS]:
        about = _join("worth against bytes", student, _use(scores, use))
        caption = (
            f"{about}: mean ± standard deviation over the seeds, against the bytes of pixels, targets and decoder as "
            "stored; points of as many bytes stand slightly beside each other. A dashed line is what has no such "
            "size: no pre-training, or the whole source."
        )
        shown = [_middle(same, smallest=True)[0] for same in group(part, "protocol", "target").values()]
        pictures.append(Picture(about, caption, _draw_worth(shown, about)))
    return pictures


def draw_worth(records: Sequence[Record]) -> "Figure | None":
    """Draws worth against bytes of the first student for a page of text, two panels at most; None for equal bytes.

    They are the scores that a set is first judged by, with the fewest and the most labels, or else the error.
    """
    known = [r for r in records if r["mean"] is not None and r["protocol"] not in (*NOT_RANKED, _RANK)]
    headline = _headline(known)
    if len({record["bytes"] for record in headline if record.get("bytes")}) < 2:
        return None
    headline = next(iter(group(headline, "student", "use").values()))
    headline.sort(key=lambda record: record["protocol"] == TEACHER_ERROR)
    parts = list(group(headline, "protocol", "target").values())
    amounts = list(group(sorted(parts[0], key=lambda record: record["labels"] or 0), "labels").values())
    return _draw_worth([amounts[0], amounts[-1]] if len(amounts) > 1 else parts[:2], "", narrow=True)


def _headline(scores: list[Record]) -> list[Record]:
    """Returns the scores that a set is first judged by, and the errors to the teacher."""
    measured = {record["protocol"] for record in scores}
    headline = next((name for name in HEADLINES if name in measured), None)
    return [record for record in scores if record["protocol"] in (TEACHER_ERROR, headline)]


def _draw_worth(parts: Sequence[list[Record]], heading: str, narrow: bool = False) -> "Figure":
    """Draws a panel for each measurement, with a line for each kind of set over its bytes."""
    # The legend is one of kinds.
    parts = [[{**record, "set": family(record)} for record in part] for part in parts]
    families = list(dict.fromkeys(record["set"] for part in parts for record in part))
    styles, titles = styles_of(families), [(r["protocol"], r["target"], amount(r["labels"])) for r, *_ in parts]
    panels = [(_join(*title), part) for title, part in zip(titles, parts, strict=True)]
    figure, axes = draw_panels(panels, styles, heading, narrow)
    if not narrow:
        # Whiskers of many references need some height.
        figure.set_size_inches(*(figure.get_size_inches() * (1, 1.35)))
    for axis, part in zip(axes, parts, strict=True):
        sizes = [record["bytes"] for record in part if record.get("bytes")]
        width = 0.02 * math.log(max(10, max(sizes) / min(sizes))) if sizes else 0
        for (kind,), curve in group(part, "set").items():
            points = sorted((r for r in curve if r.get("bytes")), key=lambda record: record["bytes"])
            dodge = _dodge(families.index(kind), len(families), width)
            if points:
                x = [record["bytes"] * dodge for record in points]
                draw_points(axis, x, points, styles[kind], line=len(points) > 1, first=bool(own_sets(points)))
            for record in curve if not points else []:
                _draw_level(axis, record, styles[kind])
        if sizes:
            set_log_axis(axis, "bytes as stored", sizes, lambda value: show_bytes(value).replace(".0 ", " "))
        if spans_decades(part):
            axis.set_yscale("log")
    return figure


def _draw_level(axis: "Axes", record: Record, style: Style) -> None:
    axis.axhline(shown_values(record)[0], color=style.colour, linestyle="--", linewidth=1.2)


def _draw_students(protocol: str, use: str, records: list[Record], styles: Styles) -> Picture:
    part, labels = _middle(records)
    panels, about = group(part, "target"), _join(protocol, labels, use)
    figure, axes = draw_panels([(str(target), same) for (target,), same in panels.items()], styles, about)
    sets = {record["set"] for record in part}
    names = [name for name in styles if name in sets]
    for axis, same in zip(axes, panels.values(), strict=True):
        students = group(same, "student")
        for place, scores in enumerate(students.values()):
            if place % 2:
                axis.axvspan(place - 0.5, place + 0.5, color="#f1f3f4", zorder=0)
            for record in scores:
                shift = 0.76 * ((names.index(record["set"]) + 0.5) / len(names) - 0.5)
                draw_points(axis, [place + shift], [record], styles[record["set"]])
        axis.set_xlim(-0.5, len(students) - 0.5)
        axis.set_xticks(range(len(students)), [plain(student) for (student,) in students], fontsize=8)
        if len(students) > 2:
            for label in axis.get_xticklabels():
                label.set(rotation=25, ha="right", rotation_mode="anchor")
        axis.grid(visible=False, axis="x")
    return Picture(f"{protocol} by student", f"{about}: mean ± standard deviation over the seeds, by student.", figure)


def _middle(records: list[Record], smallest: bool = False) -> tuple[list[Record], str]:
    """Returns the records of one amount of labels, the middle one or the smallest share, and the amount in words."""
    amounts = sorted({record["labels"] for record in records} - {None})
    if smallest:
        amounts = [labels for labels in amounts if isinstance(labels, float)][:1] or amounts[:1]
    labels = amounts[len(amounts) // 2] if amounts else None
    return [record for record in records if record["labels"] == labels], amount(labels)


def _draw_alone(scores: list[Record], styles: Styles) -> list[Picture]:
    """Draws bars of errors, and of what has neither several amounts of labels nor several students."""
    alone = []
    for same in group(scores, "protocol").values():
        several = len(group(same, "student", "use", "metric")) > 1
        chosen = [record for record in same if record["metric"] == "mse" or not several]
        alone += chosen if len(group(chosen, "labels")) == 1 else []
    parts = group(alone, "protocol")
    parts = {("scores",): alone} if alone and len(sort_columns(alone)) <= _MOST_BARS else parts
    caption = "mean (bar or marker), standard deviation over seeds (whiskers), every seed (dots)."
    return [
        Picture(f"{name} bars", f"{_join(*(p for (p,) in group(part, 'protocol')))}: {caption}", _bars(part, styles))
        for (name,), part in parts.items()
    ]


def _bars(records: list[Record], styles: Styles) -> "Figure":
    return draw_bars(records, styles, across=min(2, len(sort_columns(records))))


def _draw_costs(known: list[Record], scores: list[Record], styles: Styles) -> list[Picture]:
    """Draws scores against the seconds of pre-training; a set that costs nothing is a line."""
    seconds = {
        (record["set"], record["student"], record.get("use")): record["mean"]
        for record in known
        if record["protocol"] in NOT_RANKED and record["metric"] == "seconds" and record["mean"] > 0
    }
    pictures, scores = [], _headline(scores)
    for (student, use), part in list(group(scores, "student", "use").items())[:_MOST_STUDENTS]:
        costs = {name: cost for (name, *about), cost in seconds.items() if about == [student, use]}
        if costs:
            about = _join("cost of pre-training", student, _use(scores, use))
            caption = f"{about}: seconds of pre-training one student, and what it reaches. A dashed line cost nothing."
            pictures.append(Picture(about, caption, _draw_cost(part, about, costs, styles)))
    return pictures


def _draw_cost(records: list[Record], heading: str, costs: Mapping[str, float], styles: Styles) -> "Figure":
    panels = []
    for (protocol, target), same in group(records, "protocol", "target").items():
        part, labels = _middle(same)
        panels.append((_join(protocol, target, labels), part))
    figure, axes = draw_panels(panels, styles, heading)
    for axis, (_, part) in zip(axes, panels, strict=True):
        for record in part:
            style = styles[record["set"]]
            if record["set"] in costs:
                draw_points(axis, [costs[record["set"]]], [record], style)
            else:
                _draw_level(axis, record, style)
        set_log_axis(axis, "seconds of pre-training", costs.values())
        if spans_decades(part):
            axis.set_yscale("log")
    return figure


def _draw_ranks(known: list[Record], scores: list[Record], styles: Styles) -> list[Picture]:
    """Draws how well a set orders architectures against how much sooner, and the scores that were ordered."""
    ranks = group([record for record in known if record["protocol"] == _RANK], "metric")
    taus = ranks.get(("tau",), [])
    pictures = [_draw_taus(taus, ranks.get(("speedup",), []), styles)] if taus else []
    for (by, target, labels, use), part in group(taus, "by", "target", "labels", "use").items():
        ordered = group(scores, "protocol", "target", "labels", "use").get((by, target, labels, use), [])
        sets = {name: same for (name,), same in group(ordered, "set").items()}
        panels = [(f"{r['set']}, tau {r['mean']:.2f}", sets[r["set"]]) for r in part if r["set"] in sets]
        if panels and _TRUTH in sets:
            about = _join(f"architectures by {by}", target, amount(labels), _use(taus, use))
            caption = f"{about}: each point is an architecture, mean over the seeds, on a set and on {_TRUTH}."
            pictures.append(Picture(about, caption, _draw_orders(panels, sets[_TRUTH], about, styles)))
    return pictures


def _draw_taus(taus: list[Record], speedups: list[Record], styles: Styles) -> Picture:
    caption = "Kendall's tau of the order of architectures on a set and on the whole source; 1 is the same order"
    factors = {(r["set"], r["target"], r.get("use")): r["mean"] for r in speedups if r["mean"] > 0}
    if not all((r["set"], r["target"], r.get("use")) in factors for r in taus):
        return Picture("rank", f"{caption}.", _bars(taus, styles))
    panels = [
        (_join(str(target), _use(taus, use)), part) for (target, use), part in group(taus, "target", "use").items()
    ]
    figure, axes = draw_panels(panels, styles, "order of architectures")
    for axis, (_, part) in zip(axes, panels, strict=True):
        for record in part:
            factor = factors[record["set"], record["target"], record.get("use")]
            draw_points(axis, [factor], [record], styles[record["set"]])
        set_log_axis(axis, "times as fast as the whole source", factors.values())
    return Picture("rank", f"{caption}; right is sooner.", figure)


def _draw_orders(
    panels: Sequence[tuple[str, list[Record]]], truth: list[Record], heading: str, styles: Styles
) -> "Figure":
    figure, axes = draw_panels(panels, styles, heading)
    true = {record["student"]: shown_values(record)[0] for record in truth}
    for axis, (_, part) in zip(axes, panels, strict=True):
        for record in part:
            if record["student"] in true:
                draw_points(axis, [true[record["student"]]], [record], styles[record["set"]], bars=False)
        axis.set_xlabel(f"on {_TRUTH}")
    return figure
