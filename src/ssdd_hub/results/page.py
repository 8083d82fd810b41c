"""HTML pages of a distillation and of an evaluation, with tables and pictures in one file."""

import base64
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ssdd_hub.files import atomic_path
from ssdd_hub.results.charts import draw_bars, own_sets, save_figures, styles_of
from ssdd_hub.results.class_charts import draw_classes
from ssdd_hub.results.compare import (
    DIFFERENCE_NOTE,
    EQUAL_BYTES_NOTE,
    NOT_RANKED,
    UPPER_BOUNDS,
    difference_tables,
    score_note,
    score_tables,
    share_of_way,
)
from ssdd_hub.results.evaluation_charts import draw_evaluation
from ssdd_hub.results.run_charts import draw_images, draw_losses
from ssdd_hub.results.tables import Record, Table, build_tables, group, headings, score_rows, sort_columns, unit
from ssdd_hub.results.verdict import verdicts
from ssdd_hub.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment

CAPTIONS = {
    "images": (
        "Images of the set before and after distillation, and their difference (red: brighter, blue: darker); random: "
        "as many real images, drawn for the first student of that reference, in the same scale."
    ),
    "loss": (
        "Training losses: every logged value (faint) and their running median (strong). The outer loss jumps up where "
        "a student of the pool reached its age and was renewed (triangles): a new network fits the targets less well. "
        "The error on held-out images, where there is one, is that of a kernel regression on the set through its "
        "method's network, for KRR-ST the oldest student, so points differ a little by luck; where it no longer "
        "falls, more steps do not help."
    ),
    "scores": "Scores: mean (bar or marker), standard deviation over seeds (whiskers) and every single seed (dots).",
}


def render_pictures(
    folder: Path,
    *,
    before: Tensor,
    after: Tensor,
    log: list[Record],
    scores: list[Record],
    by_class: Mapping[str, Any] | None = None,
    random: Tensor | None = None,
) -> list[tuple[Path, str]]:
    """Writes the pictures of a distillation into a folder; returns the files with their captions.

    They are `images.png`, `loss.png`, `scores.png`, and `classes.png` where scores are known by class.

    Args:
        folder: Where to.
        before: Pixels `(M, C, H, W)` of what the set started from.
        after: Those of the set, perhaps outside `[0, 1]`.
        log: The records of `log.jsonl`.
        scores: The records of `scores.json`.
        by_class: What `scores.json` holds under this name.
        random: As many random real images, `(M, C, H, W)`, to be shown beside the set.
    """
    if before.shape != after.shape or before.ndim != 4 or len(before) == 0:
        raise ValueError(
            "the pictures need the same images (M, C, H, W), M > 0, before and after; "
            f"got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    scores = [record for record in scores if record["protocol"] not in NOT_RANKED]
    bars = draw_bars(scores, styles_of(record["set"] for record in scores))
    figures = {"images": draw_images(before, after, random), "loss": draw_losses(log), "scores": bars}
    captions = dict(CAPTIONS)
    for picture in draw_classes(by_class or {})[:1]:
        figures["classes"], captions["classes"] = picture.figure, picture.caption
    return [(path, captions[name]) for name, path in save_figures(folder, figures).items()]


def render_report(
    path: Path,
    *,
    title: str,
    pictures: list[tuple[Path, str]],
    scores: list[Record],
    config: str,
    facts: dict[str, str],
    links: Mapping[str, str] | None = None,
) -> Path:
    """Writes one HTML page that needs no other file: no script, pictures inside; returns its path.

    `pictures` are PNG files with captions, as `render_pictures` returns them, `scores` the records of `scores.json`,
    `config` the resolved configuration as YAML, `facts` what was run, on what, for how long, and `links` what
    else lies beside the page, by what it is called.
    """
    # Of the costs the seconds alone, as the last column.
    shown = sorted(scores, key=lambda record: record["protocol"] in NOT_RANKED)
    columns = sort_columns(
        [each for each in shown if each["protocol"] not in NOT_RANKED or each["metric"] == "seconds"]
    )
    return render_page(
        path,
        "report.html",
        pictures,
        links=links or {},
        title=title,
        facts=facts,
        verdicts=verdicts(scores),
        columns=headings(columns),
        rows=score_rows(columns),
        config=config,
    )


@cache
def templates(package: str) -> "Environment":
    """Returns the HTML templates of a package, each of which is compiled once; a name that it lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader(package)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["unit"] = unit
    return environment


def render_page(path: Path, template: str, pictures: list[tuple[Path, str]], **context: Any) -> Path:
    """Writes one of the HTML templates of this package with pictures and their captions inside; returns its path.

    The context is what the template takes besides `figures`; a name that it lacks is an error.
    """
    figures = [(base64.b64encode(picture.read_bytes()).decode(), caption) for picture, caption in pictures]
    page = templates("ssdd_hub.results").get_template(template).render(figures=figures, **context)
    with atomic_path(path) as temporary:
        temporary.write_text(printable(page), encoding="utf-8")
    return path


def render_evaluation(
    folder: Path,
    records: list[Record],
    comparisons: list[Record],
    facts: Mapping[str, Any],
    config_text: str,
    previews: Mapping[str, Path] | None = None,
    by_class: Mapping[str, Any] | None = None,
    links: Mapping[str, str] | None = None,
) -> Path:
    """Writes `report.html`, a page that needs no other file, and its pictures in `pictures/`; returns the page.

    Args:
        folder: Where to.
        records: The records of `scores.json`.
        comparisons: Of `compare`, with any baselines, and of `compare_at_bytes`.
        facts: Machine, versions and the like, in this order: text, a mapping, or a list of commands.
        config_text: The resolved configuration, YAML text.
        previews: PNG files that show some images of a set, by its name.
        by_class: What `scores.json` holds under this name.
        links: What else lies beside the page, by what it is called.
    """
    drawn = {
        f"{number:02}-{re.sub(r'[^a-z0-9]+', '-', picture.name.lower()).strip('-')[:60]}": picture
        for number, picture in enumerate([*draw_evaluation(records), *draw_classes(by_class or {})], 1)
    }
    paths = save_figures(folder / "pictures", {name: picture.figure for name, picture in drawn.items()})
    kinds = dict.fromkeys(own_sets(records), "set")
    shown = [(path, f"Images of the {kinds.get(name, 'reference')} {name}") for name, path in (previews or {}).items()]
    return render_page(
        folder / "report.html",
        "evaluation.html",
        shown + [(path, drawn[name].caption) for name, path in paths.items()],
        title=f"Evaluation of {', '.join(own_sets(records) or _sets(records)) or 'nothing'}",
        previews=len(shown),
        links=links or {},
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
    # Costs differ by what a set is, and not by what it is worth.
    told = [result for result in comparisons if result["protocol"] not in NOT_RANKED]
    note = f"{DIFFERENCE_NOTE} In brackets the 95 % interval."
    if at_bytes := [result for result in told if "among" in result]:
        tables = difference_tables(at_bytes, intervals=True)
        parts.append(("Differences at equal bytes", tables, f"{note} {EQUAL_BYTES_NOTE}"))
    for (baseline,), results in group([result for result in told if "among" not in result], "baseline").items():
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
