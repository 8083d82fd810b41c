"""The dataset card of a distilled set: a function of the metadata that the set carries, nothing typed by hand."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ssdd_hub.arguments import ARCHITECTURE, find_problems
from ssdd_hub.hub.licences import describe_licence
from ssdd_hub.hub.markdown import describe, escape, fence, list_scores, one_line, rows, to_yaml
from ssdd_hub.record import section
from ssdd_hub.results.compare import markdown_table
from ssdd_hub.text import HUB_ID

DATA_FILES = "data/train-*"
"""The pattern by which a card names the data files of its set, for `datasets`."""
_TAGS = ["dataset-distillation", "dataset-condensation", "self-supervised", "synthetic", "ssdd_hub"]
_SECTIONS = ("selection", "source", "teacher", "target_transform", "student", "hardware", "versions")
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def render_dataset_card(metadata: Mapping[str, Any], location: str, revision: str | None = None) -> str:
    """Renders the card of a distilled set; what the metadata lacks is left out or said to be unknown.

    Args:
        metadata: What `ssdd_hub.json` holds.
        location: Where the card's code loads the set from: `owner/name` on the Hub, or the name of the folder.
        revision: The tag or commit that the code loads.

    Returns:
        Markdown that opens with the YAML block of the Hub.
    """
    provenance = metadata.get("provenance") or {}
    source = section(provenance, "source")
    card = DatasetCard.from_template(
        _card_data(metadata),
        template_str=(files("ssdd_hub.sets") / "templates" / "dataset_card.md").read_text(encoding="utf-8"),
        title=escape(_title(metadata)),
        summary=_summary(metadata, source),
        load_code=fence(_load_code(metadata, location, revision), "python"),
        load_dataset_code=fence(_load_dataset_code(location, revision), "python"),
        pixel_space=describe(metadata["pixel_space"]),
        student_pixel_space=describe(section(provenance, "student_pixel_space")),
        clipped=f"{metadata['clip_fraction']:.2%}",
        num_views=_num_views(metadata),
        use=rows(section(provenance, "use")),
        use_code=_use_code(metadata),
        scores=_scores(provenance.get("scores") or []),
        record=_record(provenance),
        settings=fence(to_yaml(provenance["settings"]), "yaml") if provenance.get("settings") else "",
        command=fence(str(provenance["command"]), "bash") if provenance.get("command") else "",
        teacher_link=_teacher_link(section(provenance, "teacher")),
        licences=_licences(provenance),
        citation=provenance.get("method") == "krr-st",
    )
    return f"{str(card).rstrip()}\n"


def _card_data(metadata: Mapping[str, Any]) -> DatasetCardData:
    provenance = metadata.get("provenance") or {}
    size = metadata["tensors"]["images"]["shape"][0]
    method = ["krr-st"] if provenance.get("method") == "krr-st" else []
    return DatasetCardData(
        **describe_licence(str(provenance.get("license") or "unknown")),
        pretty_name=_title(metadata),
        task_categories=["image-feature-extraction", "image-classification"],
        size_categories=next((name for limit, name in _SIZES.items() if size < limit), "1M<n<10M"),
        source_datasets=[_source_dataset(section(provenance, "source"))],
        tags=[*_TAGS, *method, "timm", "lightly"],
        configs=[_config(metadata)],
    )


def _config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Describes the data to `datasets`, whose cache tells local sets of one folder name apart by nothing but this."""
    tensors = metadata["tensors"].items()
    digests = ", ".join(f"{name} sha256 {facts['sha256'][:16]}" for name, facts in tensors if "sha256" in facts)
    data_files = [{"split": "train", "path": DATA_FILES}]
    return {"config_name": "default", "description": digests, "data_files": data_files}


def _source_dataset(source: Mapping[str, Any]) -> str:
    """Names the source on the Hub. A local folder can look like a Hub id, but it has no revision."""
    name = str(source.get("name"))
    return f"extended|{name}" if source.get("revision") and HUB_ID.fullmatch(name) else "original"


def _title(metadata: Mapping[str, Any]) -> str:
    provenance = metadata.get("provenance") or {}
    name = str(section(provenance, "source").get("name") or "").rstrip("/").split("/")[-1]
    size = metadata["tensors"]["images"]["shape"][0]
    method = str(provenance.get("method") or "an unnamed method")
    if method.startswith("selection/"):
        return one_line(f"{size} reference images for {name or 'a source'}: {method.removeprefix('selection/')}")
    return one_line(f"{name or 'Images'} distilled to {size} by {method}")


def _summary(metadata: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    size, *shape = metadata["tensors"]["images"]["shape"]
    width = metadata["tensors"]["targets"]["shape"][1]
    amount = f"{source['num_images']} images" if source.get("num_images") else "images"
    kind, verb = _kind_of_images(str((metadata.get("provenance") or {}).get("method")))
    origin = f" {verb} {escape(amount)} of {escape(source['name'])}" if source.get("name") else ""
    sides = "x".join(map(str, shape))
    return f"{size} {kind} images ({sides}, float32), each with a target vector of width {width},{origin}."


def _kind_of_images(method: str) -> tuple[str, str]:
    if method == "selection/gaussian":
        return "noise", "for comparison with"
    return ("real", "chosen from") if method.startswith("selection/") else ("synthetic", "distilled from")


def _num_views(metadata: Mapping[str, Any]) -> int:
    return metadata["tensors"]["views"]["shape"][1] if "views" in metadata["tensors"] else 0


def _load_code(metadata: Mapping[str, Any], location: str, revision: str | None) -> str:
    images, targets = (tuple(metadata["tensors"][name]["shape"]) for name in ("images", "targets"))
    place = "" if "/" in location else "  # the path of this folder"
    return (
        "from ssdd_hub import DistilledSet\n\n"
        f"distilled = DistilledSet.from_pretrained({json.dumps(location)}{_pin(revision)}){place}\n"
        f"images, targets = distilled.images, distilled.targets  # {images} and {targets}"
    )


def _load_dataset_code(location: str, revision: str | None) -> str:
    return (
        "from datasets import load_dataset\n\n"
        f'dataset = load_dataset({json.dumps(location)}{_pin(revision)}, split="train")\n'
        'columns = dataset.select_columns(["pixels", "target"]).with_format("torch")[:]\n'
        'images, targets = columns["pixels"], columns["target"]'
    )


def _pin(revision: str | None) -> str:
    return f", revision={json.dumps(revision)}" if revision else ""


def _use_code(metadata: Mapping[str, Any]) -> str:
    """Returns code that goes on where `_load_code` ends; empty where the set states no student or no recipe."""
    provenance = metadata.get("provenance") or {}
    student = section(provenance, "student")
    name, args = student.get("name"), student.get("model_args") or {}
    # A reader runs this code, so it holds no more than would be taken from a record.
    plain = isinstance(name, str) and ARCHITECTURE.fullmatch(name) and not find_problems(args)
    if not (plain and provenance.get("use")):
        return ""
    _, channels, _, side = metadata["tensors"]["images"]["shape"]
    shape = {"num_targets": metadata["tensors"]["targets"]["shape"][1], "in_chans": channels, "image_size": side}
    listed = ", ".join(f"{key}={_literal(value)}" for key, value in {**shape, **args}.items())
    code = (
        "from ssdd_hub import build_student, pretrain_student\n\n"
        f"student = build_student({json.dumps(name)}, {listed})\n"
        "pretrain_student(student, distilled)  # by the recipe below\n"
        "student.reset_classifier(10)  # a head for 10 classes, to be trained on their images\n"
        "pixels = distilled.pixel_space.denormalise(images)  # in place of real images, of values in [0, 1]\n"
        "outputs = student(distilled.student_pixel_space.normalise(pixels))"
    )
    return fence(code, "python")


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _scores(records: list[Any]) -> str:
    """Returns the scores as a table; what they cost is of one machine and one hour, and tells nothing of the set."""
    try:
        records = [record for record in records if record.get("protocol") != "cost"]
        return markdown_table(records) if records else ""
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        # Of other making, or scored twice: listed one by one, as far as they say what they are.
        return list_scores([record for record in records if isinstance(record, Mapping)])


def _teacher_link(teacher: Mapping[str, Any]) -> str:
    """Returns where the teacher is on the Hub; empty where nobody says."""
    name = str(teacher.get("hub") or teacher.get("name")).removeprefix("hf-hub:").removeprefix("hf_hub:")
    known = teacher.get("hub") or str(teacher.get("name")).startswith(("hf-hub:", "hf_hub:"))
    repo_id = name.partition("@")[0]
    return f"[{escape(repo_id)}](https://huggingface.co/{repo_id})" if known and HUB_ID.fullmatch(repo_id) else ""


def _record(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = provenance.get("seconds")
    facts = {
        "method": provenance.get("method"),
        "seed": provenance.get("seed"),
        **{name: section(provenance, name) or None for name in _SECTIONS},
        "time": None if seconds is None else f"{seconds:.1f} s",
    }
    return rows(facts)


def _licences(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    owners = {"this set": provenance, "source": section(provenance, "source")}
    owners["teacher"] = section(provenance, "teacher")
    licences = {name: owner.get("license") or "unknown" for name, owner in owners.items()}
    return rows({**licences, "reason": provenance.get("license_reason")})
