"""What a distillation and an evaluation write into their run folders at the end: scores, pictures, a page."""

import io
import os
import textwrap
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import InputError
from ssdd_hub.hub.markdown import escape
from ssdd_hub.record import read_metadata, section
from ssdd_hub.results.charts import save_figures
from ssdd_hub.results.compare import NOT_RANKED, compare, compare_at_bytes, console_table, markdown_table
from ssdd_hub.results.equal_worth import bytes_for_worth
from ssdd_hub.results.evaluation_charts import draw_worth
from ssdd_hub.results.page import render_evaluation, render_pictures, render_report
from ssdd_hub.results.tables import CONSOLE, Record, score_table
from ssdd_hub.results.verdict import verdicts
from ssdd_hub.runs.estimate import Stage
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.folder import describe_tensor
from ssdd_hub.sets.gallery import keep_starts, render_gallery
from ssdd_hub.sets.preview import MOST_IMAGES, write_preview
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.sets.similarity import nearest
from ssdd_hub.settings import to_yaml
from ssdd_hub.text import printable

LINKS = {
    "gallery": "gallery.html",
    "card of the set": "distilled/README.md",
    "scores.json": "scores.json",
    "log.jsonl": "log.jsonl",
}
"""What the report of a distillation points to, all of it in the run folder."""
BASELINES = ("random", "kmeans")
"""The references that sets are tested against."""
_TIMED = 2000  # images that the search of similar ones is timed on
_FIGURES = 10  # small figures that take as long as all pictures and pages


def time_report(images: ImageBank, size: int) -> Stage:
    """Times what follows the training of a set of `size` images: its similarity to the source, pictures, pages."""
    from matplotlib.figure import Figure

    few = images.pixels[:_TIMED]
    started = time.perf_counter()
    nearest(torch.rand(size, *few.shape[1:]), few)
    similarity = (time.perf_counter() - started) * len(images) / len(few)
    figure = Figure(layout="constrained")
    figure.subplots(1, 2)
    started = time.perf_counter()
    figure.savefig(io.BytesIO(), format="png", dpi=120)
    return Stage("report", 0, similarity + _FIGURES * (time.perf_counter() - started))


def keep_set(run: RunFolder, distilled: DistilledSet, machine: Mapping[str, Any]) -> None:
    """Writes `distilled/` before the set is scored, unless the same pairs are there, which may have scores.

    An audit that is recorded there joins the provenance of the set.
    """
    folder = run.path / "distilled"
    pairs = {name: describe_tensor(tensor) for name, tensor in distilled.stored().items()}
    with suppress(InputError):
        stated = read_metadata(folder)
        if stated.get("tensors") == pairs:
            audited = section(stated, "provenance").get("audit")
            distilled.provenance |= {} if audited is None else {"audit": audited}
            return
    unscored = {**distilled.provenance, "hardware": machine}
    replace(distilled, provenance=unscored).save(folder)


def save_distillation(
    run: RunFolder,
    distilled: DistilledSet,
    before: Tensor,
    facts: Mapping[str, str],
    by_class: Mapping[str, Any],
    random: Tensor | None,
) -> str:
    """Writes `scores.json`, `distilled/`, `pictures/`, `report.html` and `gallery.html`; returns verdict and table.

    Args:
        run: The run.
        distilled: The set, whose provenance holds `start`, `scores` and `hardware`.
        before: `(M, C, H, W)`, pixels in `[0, 1]`, of what it started from.
        facts: Shown in the report.
        by_class: The scores class by class, for `scores.json` and a picture.
        random: As many random real images, `(M, C, H, W)`, pixels in `[0, 1]`, shown beside the set.
    """
    provenance, scores = distilled.provenance, distilled.provenance["scores"]
    run.write_json("scores.json", {"records": scores, "by_class": by_class, **_describe(provenance["hardware"])})
    distilled.save(run.path / "distilled")
    after = distilled.pixel_space.denormalise(distilled.images)
    pictures = render_pictures(
        run.path / "pictures",
        before=before,
        after=after,
        log=run.log.read(),
        scores=scores,
        by_class=by_class,
        random=random,
    )
    facts = {**facts, "machine": _machine(provenance["hardware"])}
    title = f"{provenance['source']['name']}: {len(before)} distilled images"
    config = (run.path / "config.yaml").read_text(encoding="utf-8")
    about = {"title": title, "config": config}
    render_report(run.path / "report.html", pictures=pictures, scores=scores, facts=facts, links=LINKS, **about)
    starts = before.float().cpu() if "indices" in provenance["start"] else None
    if starts is not None:
        keep_starts(run.path, starts)
    render_gallery(distilled, run.path / "gallery.html", title, starts)
    ranked = [record for record in scores if record["protocol"] not in NOT_RANKED]
    return "\n".join([*_told(verdicts(scores)), "", score_table(ranked)])


def save_evaluation(
    run: RunFolder,
    config: Any,
    sets: Mapping[str, DistilledSet],
    records: list[Record],
    machine: Mapping[str, Any],
    seconds: float,
    by_class: Mapping[str, Any],
    references: Mapping[str, Tensor | None],
) -> str:
    """Writes `scores.json`, `scores.md`, `pictures/`, `report.html` and galleries; returns verdicts and a table.

    The gallery of the first set is `gallery.html`, those of others have numbers. Where sizes differ, `worth.png` draws
    worth against bytes, 1,600 pixels wide.

    Args:
        run: The run.
        config: Its settings.
        sets: The sets, by name.
        records: The records of `scores.json`.
        machine: Of `describe_machine`.
        seconds: Of this command.
        by_class: The scores class by class, for `scores.json` and pictures.
        references: Images of references, `(M, C, H, W)`, pixels in `[0, 1]`, to be shown beside the sets.
    """
    baselines = [name for name in BASELINES if name in config.references]
    comparisons = compare_at_bytes(records) + [row for name in baselines for row in compare(records, name)]
    about, table = _describe(machine), markdown_table(records, baselines)
    told = verdicts(records)
    found = {"records": records, "comparisons": comparisons, "equal_worth": bytes_for_worth(records)}
    run.write_json("scores.json", {**found, "by_class": by_class, "use": config.student_training.describe(), **about})
    (run.path / "scores.md").write_text("\n\n".join([*map(escape, told), table]), encoding="utf-8")
    if worth := draw_worth(records):
        save_figures(run.path, {"worth": worth})
    # Drawn here: the file of a folder from elsewhere may show anything.
    images = {name: each.pixel_space.denormalise(each.images[:MOST_IMAGES]) for name, each in sets.items()}
    images |= {name: pixels[:MOST_IMAGES] for name, pixels in references.items() if pixels is not None}
    previews = {name: run.path / "pictures" / f"set-{number}.png" for number, name in enumerate(images, 1)}
    for name, path in previews.items():
        write_preview(path, images[name])
    facts = {"sets": ", ".join(config.sets), "seconds of this command": f"{seconds:.0f}"}
    facts |= {"machine": _machine(machine), "command": about["command"]}
    files = ["gallery.html", *(f"gallery-{number}.html" for number in range(2, len(sets) + 1))]
    galleries = dict(zip(sets, files, strict=True))
    # A set on the Hub has its card there.
    folders = [path for path in map(Path, config.sets) if (path / "README.md").is_file()]
    cards = {f"card of {path.parent.name}/{path.name}": path / "README.md" for path in folders}
    links = {name: quote(os.path.relpath(card, run.path)) for name, card in cards.items()}
    links |= {"scores.json": "scores.json", "scores.md": "scores.md"}
    links |= {f"gallery of {name}" if len(sets) > 1 else "gallery": file for name, file in galleries.items()}
    render_evaluation(run.path, records, comparisons, facts, to_yaml(config), previews, by_class, links)
    for name, file in galleries.items():
        render_gallery(sets[name], run.path / file, name, records=records)
    return "\n".join([*_told(map(printable, told)), "", printable(console_table(records))])


def _told(verdicts: Iterable[str]) -> list[str]:
    """Returns sentences as lines of a console."""
    return [line for verdict in verdicts for line in textwrap.wrap(verdict, CONSOLE, break_on_hyphens=False)]


def _describe(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {"machine": machine, "versions": describe_versions(), "command": describe_command()}


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpus']} CPUs, {machine['device']}, {machine['processes']} process(es)"
