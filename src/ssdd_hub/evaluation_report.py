"""What a person looks at after an evaluation: every score drawn and in a table, and what differs from what."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ssdd_hub.comparison import (
    CEILINGS,
    DIFFERENCE_NOTE,
    difference_tables,
    score_note,
    score_tables,
    share_of_way,
)
from ssdd_hub.evaluation_pictures import draw_evaluation
from ssdd_hub.report import render_page, save_figures
from ssdd_hub.scores import Record, Table, build_tables, group, unit


def render_evaluation(
    folder: Path,
    records: list[Record],
    comparisons: list[Record],
    facts: Mapping[str, Any],
    config_text: str,
    previews: Mapping[str, Path] | None = None,
) -> Path:
    """Writes pictures, and one HTML page that needs no other file: no script, no link, pictures inside.

    Args:
        folder: Gets `report.html`, and the pictures in `pictures/`.
        records: The records of `scores.json`.
        comparisons: Of `compare`, with any baselines.
        facts: Machine, versions, commands and the like, in this order: text, a mapping, or a list of commands.
        config_text: The resolved configuration, YAML text.
        previews: PNG files that show some images of a set, by its name.

    Returns:
        The page.

    Raises:
        ValueError: Two records score the same set in the same way.
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
        title=f"Evaluation of {', '.join(dict.fromkeys(_rivals(records))) or 'nothing'}",
        previews=len(shown),
        facts=facts,
        parts=_parts(records, comparisons),
        config=config_text,
    )


def _rivals(records: Iterable[Record]) -> list[str]:
    return [record["set"] for record in records if record["set"] not in (*CEILINGS, "none")]


def _parts(records: list[Record], comparisons: list[Record]) -> list[dict[str, Any]]:
    """Returns headings, tables and notes of the page."""
    note = score_note(records, comparisons)
    parts = [_part("Scores", score_tables(records, comparisons), note, "No scores were measured.")]
    for (baseline,), results in group(comparisons, "baseline").items():
        note = f"{DIFFERENCE_NOTE} In brackets the 95 % interval."
        parts.append(_part(f"Differences to {baseline}", difference_tables(results, intervals=True), note))
    for high in (name for name in CEILINGS if any(record["set"] == name for record in records)):
        shares = [
            share for name in dict.fromkeys(_rivals(records)) for share in share_of_way(records, name, high=high)
        ]
        shares = [share for share in shares if share["set"] != "random"]
        tables = build_tables(shares, _share, lambda column: set())
        notes = " ".join(dict.fromkeys(f"* {share['note']}." for share in shares if share["note"]))
        note = f"0 % is random, 100 % is {high}, of the means. {notes}"
        parts += [_part(f"Share of the way from random to {high}", tables, note)] if tables else []
    return parts


def _part(heading: str, tables: list[Table], note: str, empty: str = "") -> dict[str, Any]:
    shown = [
        (title, [(name, unit(record)) for name, record in columns], [[name, *cells] for name, cells in rows])
        for title, columns, rows in tables
    ]
    return {"heading": heading, "tables": shown, "note": note, "empty": empty}


def _share(share: Record) -> str:
    text = "equal" if share["share"] is None else f"{100 * share['share']:.0f} %"
    return f"{text}{' *' if share['note'] else ''}"
