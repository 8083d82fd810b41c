"""The dataset card of a distilled set: a function of the metadata that the set carries, nothing typed by hand."""

import json
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ssdd_hub.arguments import ARCHITECTURE, find_problems
from ssdd_hub.distill.parameterisations.views import Views
from ssdd_hub.hub.licences import describe_licence
from ssdd_hub.hub.markdown import describe, escape, fence, list_scores, one_line, render_card, rows, to_yaml
from ssdd_hub.record import section
from ssdd_hub.record_schema import Stated
from ssdd_hub.results.compare import markdown_table
from ssdd_hub.results.verdict import verdicts
from ssdd_hub.sets.origin import NOISES, source_address, source_on_hub, started_from, tell_origin
from ssdd_hub.sets.storage import Decoder, shown_shapes
from ssdd_hub.statements import of_labels
from ssdd_hub.text import HUB_ID, tell_bytes

DATA_FILES = "data/train-*"
"""The pattern by which a card names the data files of its set, for `datasets`."""
_TAGS = ["dataset-distillation", "dataset-condensation", "self-supervised", "ssdd_hub"]
_SECTIONS = ("selection", "source", "teacher", "target_transform", "student", "learned", "hardware", "versions")
_LONG_HASH = re.compile("[0-9a-f]{64,128}")
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def render_dataset_card(metadata: Mapping[str, Any], location: str, revision: str | None = None) -> str:
    """Renders the card of a distilled set; what the metadata lacks is left out or stated as unknown.

    Args:
        metadata: The contents of `ssdd_hub.json`.
        location: Where the card's code loads the set from: `owner/name` on the Hub, or a path.
        revision: The tag or commit that the code loads.
    """
    provenance = metadata.get("provenance") or {}
    shapes = shown_shapes(metadata)
    source, teacher = section(provenance, "source"), section(provenance, "teacher")
    title = _title(provenance, shapes["images"][0])
    place = json.dumps(location) + (f", revision={json.dumps(revision)}" if revision else "")
    labelled = of_labels(provenance)
    licences = {"this set": provenance, "source": source, **({} if labelled else {"teacher": teacher})}
    seconds = provenance.get("seconds")
    hashes: dict[str, str] = {}
    record = {
        "method": provenance.get("method"),
        "seed": provenance.get("seed"),
        "targets": provenance.get("targets"),
        **{name: _shorten(section(provenance, name), name, hashes) or None for name in _SECTIONS},
        "time": None if seconds is None else f"{seconds:.1f} s",
    }
    return render_card(
        DatasetCard,
        _card_data(metadata, title),
        "ssdd_hub.sets",
        "dataset_card.md",
        title=escape(title),
        summary=_summary(provenance, shapes, _stored(metadata) is None),
        fence=fence,
        place=place,
        is_folder=not HUB_ID.fullmatch(location),
        images=tuple(shapes["images"]),
        targets=tuple(shapes["targets"]),
        pixel_space=describe(metadata["pixel_space"]),
        student_pixel_space=describe(section(provenance, "student_pixel_space")),
        clipped=f"{metadata['clip_fraction']:.2%}",
        stored=_stored(metadata),
        space=metadata["pixel_space"],
        num_bytes=tell_bytes(section(metadata, "num_bytes")),
        labelled=labelled,
        num_views=shapes["views"][1] if "views" in shapes else 0,
        use=rows(section(provenance, "use")),
        student=_student(provenance, shapes),
        verdicts=_verdicts(provenance.get("scores") or []),
        scores=_scores(provenance.get("scores") or []),
        origin=tell_origin(provenance, shapes["images"][0]),
        source=rows(_shorten(_source(source), "source", hashes)),
        measured=_measured(provenance.get("scores") or []),
        record=rows(record),
        hashes=rows(hashes),
        settings=fence(to_yaml(provenance["settings"]), "yaml") if provenance.get("settings") else "",
        command=fence(str(provenance["command"]), "bash") if provenance.get("command") else "",
        teacher_link=_teacher_link(teacher),
        licences=rows(
            {name: part.get("license") or "unknown" for name, part in licences.items()}
            | {"reason": provenance.get("license_reason")}
        ),
        citation=provenance.get("method") == "krr-st",
    )


def _stored(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what the code on the card does with stored rows; None where it need do nothing."""
    stated = Stated.of(metadata)
    decoder, types = Decoder.of(metadata, stated), {name: each.dtype for name, each in stated.items()}
    if (types.get("images"), types["targets"], decoder.args) == ("float32", "float32", {}):
        return None
    views = {"kind": "crops", **decoder.args} if decoder.kind is Views else None
    images = decoder.args if views is None else views["of_args"]
    found = {"factor": images.get("factor", 1), "pictures": types.get("images") == "uint8", "views": views}
    found |= {"coefficients": types.get("coefficients"), "whole_targets": types["targets"] == "int8"}
    found |= {"view_targets": types.get("view_targets")}
    shared = {name: str(part.dtype).removeprefix("torch.") for name, part in decoder.shared.items()}
    found |= {name: shared.get(name) for name in ("bases", "target_bases")}
    found["packed"] = "int8" in shared.values()
    found |= {
        "shared": bool(decoder.shared),
        "record": bool(decoder.levels or decoder.shared) or "coefficients" in types,
    }
    return found


def _card_data(metadata: Mapping[str, Any], title: str) -> DatasetCardData:
    provenance, tensors = metadata.get("provenance") or {}, metadata["tensors"]
    on_hub, method = source_on_hub(section(provenance, "source")), provenance.get("method")
    made_up = [] if started_from(provenance) not in NOISES and method != "selection/gaussian" else ["synthetic"]
    # The description is all by which the cache of `datasets` tells local sets in folders of one name apart.
    digests = ", ".join(
        f"{name} sha256 {facts['sha256'][:16]}" for name, facts in tensors.items() if "sha256" in facts
    )
    config = {"config_name": "default", "description": digests, "data_files": [{"split": "train", "path": DATA_FILES}]}
    size = tensors["targets"]["shape"][0]
    return DatasetCardData(
        **describe_licence(str(provenance.get("license") or "unknown")),
        pretty_name=title,
        task_categories=["image-feature-extraction", "image-classification"],
        size_categories=next((name for limit, name in _SIZES.items() if size < limit), "1M<n<10M"),
        # The Hub knows `original`, which derived images never are, and this form for a dataset that it has.
        source_datasets=[f"extended|{on_hub}"] if on_hub else None,
        tags=[*_TAGS, *made_up, *(["krr-st"] if method == "krr-st" else []), "timm", "lightly"],
        configs=[config],
    )


def _title(provenance: Mapping[str, Any], size: int) -> str:
    name = str(section(provenance, "source").get("name") or "").rstrip("/").split("/")[-1]
    method = str(provenance.get("method") or "an unnamed method")
    if method.startswith("selection/"):
        return one_line(f"{size} reference images for {name or 'a source'}: {method.removeprefix('selection/')}")
    return one_line(f"{name or 'Images'} distilled to {size} by {method}")


def _summary(provenance: Mapping[str, Any], shapes: Mapping[str, Any], plain: bool) -> str:
    (size, *shape), (_, width) = shapes["images"], shapes["targets"]
    source, method = section(provenance, "source"), str(provenance.get("method"))
    amount = f"{source['num_images']} images" if source.get("num_images") else "images"
    kind, verb = ("real ", "chosen from") if method.startswith("selection/") else ("", "distilled from")
    if method == "selection/rded":
        kind, verb = "tiled ", "cropped from"
    if method == "selection/gaussian":
        kind, verb = "noise ", "for comparison with"
    origin = f", {verb} {escape(amount)} of {escape(source['name'])}" if source.get("name") else ""
    sides, type_ = "x".join(map(str, shape)), ", float32" if plain else ""
    return f"{size} {kind}images ({sides}{type_}), each with a target vector of width {width}{origin}."


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tells which images the source was, and in which version."""
    address = source_address(source)
    stated = {name: source.get(name) for name in ("name", "config", "split", "selection", "num_images", "revision")}
    return {**stated, "address": address or "not recorded", "fingerprint": source.get("fingerprint") or "unknown"}


def _measured(records: list[Any]) -> str:
    """Returns with what networks, and on what datasets, the set was measured; empty where it was not."""
    known = [record for record in records if isinstance(record, Mapping)]
    parts = (dict.fromkeys(str(r[key]) for r in known if r.get(key)) for key in ("student", "target"))
    networks, datasets = (describe(list(part)) for part in parts)
    return f"{networks} on {datasets}" if networks and datasets else ""


def _shorten(value: Any, path: str, hashes: dict[str, str]) -> Any:
    """Returns facts with long hashes cut, which are collected under their places."""
    if isinstance(value, Mapping):
        return {name: _shorten(part, f"{path} {name}", hashes) for name, part in value.items()}
    if isinstance(value, str) and _LONG_HASH.fullmatch(value):
        hashes[path] = value
        return f"{value[:12]}…"
    return value


def _student(provenance: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    """Returns the arguments of `build_student` for the set's own network; empty where it states none."""
    student = section(provenance, "student")
    name, args = student.get("name"), student.get("model_args") or {}
    if student.get("features") and isinstance(args, Mapping):
        args = {**args, "features": student["features"]}
    # A reader runs this code, so it holds no more than would be taken from a record.
    if not isinstance(name, str) or not ARCHITECTURE.fullmatch(name) or find_problems(args):
        return ""
    _, channels, _, side = shapes["images"]
    shape = {"num_targets": shapes["targets"][1], "in_chans": channels, "image_size": side}
    literals = {key: json.dumps(value) if isinstance(value, str) else repr(value) for key, value in args.items()}
    return ", ".join([json.dumps(name), *(f"{key}={literal}" for key, literal in {**shape, **literals}.items())])


def _scores(records: list[Any]) -> str:
    """Returns the scores as a table, without costs, which depend on the machine and not on the set."""
    try:
        records = [record for record in records if record.get("protocol") != "cost"]
        return markdown_table(records) if records else ""
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        # Of other making, or scored twice: listed one by one.
        return list_scores([record for record in records if isinstance(record, Mapping)])


def _verdicts(records: list[Any]) -> list[str]:
    """Returns the verdict on each set as a paragraph; none where the records are of other making."""
    try:
        return [escape(text) for text in verdicts(records)]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return []


def _teacher_link(teacher: Mapping[str, Any]) -> str:
    """Returns a link to the teacher on the Hub; empty where it is not known to be there."""
    name = str(teacher.get("hub") or teacher.get("name"))
    repo_id = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    known = teacher.get("hub") or repo_id != name
    repo_id = repo_id.partition("@")[0]
    return f"[{escape(repo_id)}](https://huggingface.co/{repo_id})" if known and HUB_ID.fullmatch(repo_id) else ""
