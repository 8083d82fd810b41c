"""The origin of a set: what its images started from, what they still show of the source, who is to be asked."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ssdd_hub.hub.markdown import escape
from ssdd_hub.record import section
from ssdd_hub.sets.audit import tell_audit
from ssdd_hub.sets.similarity import ALIKE, measure_similarity
from ssdd_hub.statements import DIGITS
from ssdd_hub.text import HUB_ID

if TYPE_CHECKING:
    from ssdd_hub.data.bank import ImageBank

NOISES = ("noise", "gaussian")
"""Starts, and selections, that are no real images."""
_DIGITS_ADDRESS = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"


def describe_origin(
    init: str, rows: Tensor | None, before: Tensor, source: "ImageBank", pixels: Tensor
) -> dict[str, Any]:
    """Returns what the provenance of a set states of its origin: `start` and `similarity`.

    Args:
        init: What the images started from, one of `selection.INITS`.
        rows: `(M,)`, the images of `source` that they started from, `(M, n)` for averages and tiled crops, or None for
            noise.
        before: `(M, C, H, W)`, what they started from, `[0, 1]`.
        source: The source images.
        pixels: `(M, C, H, W)`, the images of the set, `[0, 1]` and beyond.
    """
    starts = None if rows is None else before.float() * 255
    start = {"init": init, **({} if rows is None else {"indices": rows.tolist()})}
    return {"start": start, "similarity": measure_similarity(pixels, source.pixels, starts)}


class Likeness(NamedTuple):
    """How similar the images of a set are to real ones, as correlations of their pixels."""

    median: float
    most: float
    alike: int  # images above `ALIKE`, in which a person sees the same picture
    total: int

    @classmethod
    def read(cls, provenance: Mapping[str, Any], kind: str) -> "Likeness | None":
        """Reads what an untrusted record states of `nearest` or `start`; None where it does not, or not in numbers."""
        stated = section(section(provenance, "similarity"), kind)
        values = [stated.get(name) for name in ("median", "max", f"above_{ALIKE}", "of")]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) < len(values):
            return None
        median, most, alike, total = numbers
        sound = -1 <= median <= most <= 1.001 and 0 <= alike <= total
        return cls(float(median), float(most), int(alike), int(total)) if sound else None


def source_on_hub(source: Mapping[str, Any]) -> str | None:
    """Returns the id of a source on the Hub; None for a local folder, which can look like one but has no revision."""
    name = str(source.get("name"))
    return name if source.get("revision") and HUB_ID.fullmatch(name) else None


def started_from(provenance: Mapping[str, Any]) -> str | None:
    """Returns the start that a record states, in the settings of earlier versions too; None where it states none."""
    if provenance.get("start"):
        stated = section(provenance, "start").get("init")
    else:
        stated = section(provenance, "settings").get("init")
    return stated if isinstance(stated, str) else None


def tell_origin(provenance: Mapping[str, Any], count: int) -> list[str]:
    """Returns in sentences, as Markdown with names escaped, where the images of a set come from and what they show.

    Args:
        provenance: That of the set; what it lacks is said not to be recorded or not to be measured.
        count: The images of the set.
    """
    method = str(provenance.get("method") or "")
    if method.startswith("selection/"):
        if method.removeprefix("selection/") in NOISES:
            return ["The images are noise, and show nothing of the source."]
        what = "unchanged" if method != "selection/rded" else "cropped, shrunk and tiled"
        return [f"The images are {count} real images of the source, {what}.", _shows(), _contact(provenance)]
    measured = [*_similarity(provenance), *tell_audit(section(provenance, "audit"))]
    return [_start(provenance, method), *measured, _shows(), _contact(provenance)]


def _start(provenance: Mapping[str, Any], method: str) -> str:
    init = started_from(provenance)
    if init in NOISES:
        return "Distillation started from noise."
    if init:
        rows = section(provenance, "start").get("indices")
        where = ""
        if isinstance(rows, list):
            where = ", whose places among the images loaded are in `ssdd_hub.json` (`provenance.start.indices`)"
        if init == "mixed":
            return f"Distillation started from averages of several real images of the source{where}."
        if init == "rded":
            return f"Distillation started from tiled crops of real images of the source{where}."
        return f"Distillation started from real images of the source, chosen by the method {escape(init)[:80]}{where}."
    usual = " Sets of this method usually start from real images of the source." if method == "krr-st" else ""
    return f"The record does not tell what the images started from.{usual}"


def _similarity(provenance: Mapping[str, Any]) -> list[str]:
    searched = section(provenance, "similarity").get("searched")
    nearest = f"the nearest of {searched} source images" if isinstance(searched, int) else "the nearest source image"
    found = {
        words: likeness
        for kind, words in (("nearest", nearest), ("start", "the image that each started from"))
        if (likeness := Likeness.read(provenance, kind))
    }
    if not found:
        return [
            "How similar the images are to those of the source was not measured: "
            "images that start as real ones often stay recognisable."
        ]
    return [
        f"Correlation of the pixels with {words}: median {each.median:.2f}, at most {each.most:.2f}; {each.alike} of "
        f"{each.total} above {ALIKE}, where a person sees the same picture."
        for words, each in found.items()
    ]


def _shows() -> str:
    return "The images may show persons or things that the source shows: this is no anonymisation."


def _contact(provenance: Mapping[str, Any]) -> str:
    source = section(provenance, "source")
    if not source.get("name"):
        return "The record does not name the source, so it does not tell either who is to be asked about rights."
    address = source_address(source)
    told = f"[{escape(source['name'])}]({address})" if address else escape(source["name"])
    known = "" if address else "; the record has no address of it, so it may not be public"
    return f"About rights, and about persons shown, ask those who published the source, {told}{known}."


def source_address(source: Mapping[str, Any]) -> str | None:
    """Returns where a source can be found; None for a local folder."""
    if source.get("name") == DIGITS:
        return _DIGITS_ADDRESS
    name = source_on_hub(source)
    return f"https://huggingface.co/datasets/{name}" if name else None


def publishing_risks(provenance: Mapping[str, Any]) -> list[str]:
    """Returns warnings, a line each, for those who are about to publish a set."""
    source, risks = section(provenance, "source"), []
    if source_address(source) is None:
        name = f"the source, {str(source['name'])[:80]}," if source.get("name") else "the source"
        risks.append(f"{name} is not known to be public: publish what still shows its images only if you may")
    likeness = Likeness.read(provenance, "nearest")
    if likeness and likeness.alike:
        risks.append(
            f"in {likeness.alike} of {likeness.total} images a person sees the same picture as in an image of the "
            f"source (correlation above {ALIKE})"
        )
    return risks
