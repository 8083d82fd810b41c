"""The gallery of a set: one HTML page, without scripts or other files, of its images, targets and scores."""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path
from ssdd_hub.record import section
from ssdd_hub.results.compare import compare, score_note, score_tables
from ssdd_hub.results.page import templates
from ssdd_hub.results.tables import unit
from ssdd_hub.results.verdict import verdicts
from ssdd_hub.runs.own_runs import is_own_run
from ssdd_hub.sets.origin import Likeness, started_from
from ssdd_hub.sets.preview import to_picture, to_png
from ssdd_hub.text import printable

if TYPE_CHECKING:
    from ssdd_hub.sets.distilled import DistilledSet

STARTS_FILE = "starts.safetensors"
"""What the images started from, in a run folder alone: never a part of a set."""
MOST_PIXELS = 2**24
"""Pixels of one page at most, so that it stays a few tens of megabytes; further images are left out and counted."""
MOST_IMAGES = 10_000
"""Images of one page at most: each is compared with all others."""
_NEIGHBOURS = 3
_ROWS = 1000  # images that are compared at a time
_TILE = 72  # pixels of the page that an image is wide
_WRITTEN = "written by `ssdd-hub view --space`"
_SPACE_CARD = """---
title: {title}
sdk: static
app_file: index.html
pinned: false
---

The gallery of a distilled set, {written}. Its images may show persons or things that the
source shows: the set's card tells where they come from.
"""


def render_gallery(
    distilled: "DistilledSet",
    path: Path,
    title: str,
    starts: Tensor | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Writes the gallery of a set.

    Args:
        distilled: The set.
        path: The page to write, returned as it came.
        title: Heading of the page.
        starts: `(M, C, H, W)`, pixels in `[0, 1]`: what each image started from, shown beside it; None where that is
            not known or not to be shown.
        records: Records of `scores.json`, in place of those of the set.
    """
    pixels = distilled.pixel_space.denormalise(distilled.images)
    shown = max(1, min(len(pixels), MOST_IMAGES, MOST_PIXELS // pixels[0, 0].numel()))
    columns = math.ceil(math.sqrt(shown))
    places = target_map(distilled.targets)[:shown]
    nearest = _nearest(distilled.targets, shown)
    names = _labels(distilled)
    tiles = [
        {
            "number": index,
            "column": index % columns,
            "row": index // columns,
            "left": round(97 * float(x), 2),
            "top": round(95 * float(y), 2),
            "label": names[index],
            "nearest": nearest[index],
        }
        for index, (x, y) in enumerate(places.tolist())
    ]
    stated = distilled.provenance.get("scores") if records is None else records
    scores = [dict(record) for record in stated or [] if isinstance(record, Mapping)]
    template = templates("ssdd_hub.sets").get_template("gallery.html")
    page = template.render(
        title=title,
        facts=_facts(distilled, shown),
        columns=columns,
        tall=pixels.shape[2] / pixels.shape[3],
        # Small images show their pixels; large ones are made smaller.
        rendering="pixelated" if pixels.shape[3] <= _TILE else "auto",
        tiles=tiles,
        sprite=_sprite(pixels[:shown], columns),
        starts=_sprite(starts[:shown], columns) if starts is not None else "",
        **_scores(scores),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(printable(page), encoding="utf-8")
    return path


def keep_starts(run: Path, starts: Tensor) -> None:
    """Writes the real images that a set started from, pixels `(M, C, H, W)` in `[0, 1]`, into its run folder."""
    from safetensors.torch import save

    with atomic_path(run / STARTS_FILE) as temporary:
        temporary.write_bytes(save({"starts": (starts * 255).round().to(torch.uint8)}))


def read_starts(run: Path, images: Tensor) -> Tensor | None:
    """Returns what the images of a run's set started from, `(M, C, H, W)` in `[0, 1]`; None where they are not kept.

    None too for a run that somebody else began: its file may be anything.
    """
    path = run / STARTS_FILE
    if not is_own_run(run / "config.yaml") or not path.is_file():
        return None
    from safetensors.torch import load_file

    starts = load_file(path)["starts"].float() / 255
    return starts if starts.shape == images.shape else None


def write_space(distilled: "DistilledSet", folder: Path, title: str) -> Path:
    """Writes the gallery as a static Space of the Hub: `index.html` and the `README.md` that declares it.

    It shows nothing that the set itself does not hold, so never what the images started from.

    Raises:
        InputError: The folder holds a page or a `README.md` that was not written here.
    """
    card = folder / "README.md"
    own = card.is_file() and _WRITTEN in card.read_text(encoding="utf-8", errors="replace")
    if not own and (card.exists() or (folder / "index.html").exists()):
        raise InputError(
            f"{folder} holds a README.md or an index.html of its own, which this would replace: choose another place"
        )
    folder.mkdir(parents=True, exist_ok=True)
    render_gallery(distilled, folder / "index.html", title)
    # The title comes from a record: one line of plain text, quoted as YAML.
    from ssdd_hub.hub.markdown import one_line, to_yaml

    line = to_yaml(one_line(title)[:100]).strip().removesuffix("...").strip()
    with atomic_path(card) as temporary:
        temporary.write_text(_SPACE_CARD.format(title=line, written=_WRITTEN), encoding="utf-8")
    return folder


def target_map(targets: Tensor) -> Tensor:
    """Returns the first two principal components of targets `(M, D)` as places in the unit square, `(M, 2)`."""
    centred = (targets - targets.mean(0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    found = (left * values)[:, :2]
    found = torch.nn.functional.pad(found, (0, 2 - found.shape[1]))
    # The sign of a component is arbitrary; this one is the same on every machine.
    found = found * torch.where(found.gather(0, found.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    span = (found.amax(0) - found.amin(0)).clamp_min(1e-12)
    return ((found - found.amin(0)) / span).float()


def _nearest(targets: Tensor, shown: int) -> list[list[int]]:
    """Returns the images whose targets are nearest to those of each image shown."""
    found: list[list[int]] = []
    for first in range(0, shown, _ROWS):
        distances = torch.cdist(targets[first : min(first + _ROWS, shown)], targets[:shown])
        distances.diagonal(first).fill_(math.inf)
        found += distances.topk(min(_NEIGHBOURS, shown - 1), largest=False).indices.tolist()
    return found


def _sprite(pixels: Tensor, columns: int) -> str:
    """Returns one PNG of all images in rows, base64: the page shows parts of it."""
    pictures = [to_picture(image) for image in pixels]
    width, height = pictures[0].size
    sheet = Image.new(pictures[0].mode, (columns * width, math.ceil(len(pictures) / columns) * height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return base64.b64encode(to_png(sheet)).decode()


def _labels(distilled: "DistilledSet") -> list[str]:
    if distilled.labels is None:
        return [""] * len(distilled.images)
    names = distilled.label_names
    return [
        "" if label < 0 else names[label] if names and label < len(names) else f"class {label}"
        for label in distilled.labels.tolist()
    ]


def _facts(distilled: "DistilledSet", shown: int) -> list[tuple[str, str]]:
    provenance = distilled.provenance
    total, *shape = distilled.images.shape
    alike = Likeness.read(provenance, "nearest")
    facts = {
        "images": f"{total} of {' x '.join(map(str, shape))}" + (f", {shown} shown" if shown < total else ""),
        "targets": f"width {distilled.targets.shape[1]}",
        "method": provenance.get("method"),
        **{name: section(provenance, name).get("name") for name in ("source", "teacher", "student")},
        "started from": {"noise": "noise", None: None}.get(init := started_from(provenance), f"real images, {init}"),
        "same picture as a source image": f"{alike.alike} of {alike.total}" if alike else None,
        "licence": provenance.get("license"),
    }
    return [(name, str(fact)[:200]) for name, fact in facts.items() if fact]


def _scores(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns tables, note and verdict; none where the records are of other making."""
    try:
        records = [record for record in records if record.get("protocol") != "cost"]
        comparisons = compare(records, "random")
        tables = [
            (table.title, [(heading, unit(record)) for heading, record in table.columns], table.rows)
            for table in score_tables(records, comparisons)
        ]
        note = score_note(records, comparisons) if records else ""
        return {
            "tables": tables,
            "note": note,
            "verdicts": verdicts(records),
        }
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return {"tables": [], "note": "The recorded scores cannot be read.", "verdicts": []}
