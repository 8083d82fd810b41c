"""The model card of a teacher: a function of what its folder records, nothing typed by hand."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ssdd_hub.hub.licences import describe_licence
from ssdd_hub.hub.markdown import describe, escape, fence, list_scores, one_line, rows, to_yaml
from ssdd_hub.record import section
from ssdd_hub.text import HUB_ID

_TAGS = ["self-supervised", "dataset-distillation", "ssdd_hub"]
STUDENT_OBJECTIVE = "regression on a distilled set"
"""Objective of networks that were pre-trained on a distilled set, which are no teachers."""
_READ = {
    "pre_logits": "what the classifier would read (timm's pre-logits)",
    "cls": "the class token",
    "mean": "the mean over patch tokens or the feature map",
}


def render_teacher_card(metadata: Mapping[str, Any], location: str) -> str:
    """Renders the card of a teacher; what the metadata lacks is left out or said to be unknown.

    Args:
        metadata: `architecture`, `teacher` (what `Teacher.describe()` gives) and `provenance`.
        location: Where the card's code loads the teacher from: `owner/name` on the Hub, or the name of the folder.

    Returns:
        Markdown that opens with the YAML block of the Hub.
    """
    teacher, provenance = metadata["teacher"], metadata["provenance"]
    source, objective = section(provenance, "source"), section(provenance, "objective")
    card = ModelCard.from_template(
        ModelCardData(**_card_data(metadata)),
        template_str=(files("ssdd_hub.teachers") / "templates" / "model_card.md").read_text(encoding="utf-8"),
        title=escape(_title(metadata)),
        summary=_summary(metadata),
        timm_code=fence(_timm_code(metadata, location), "python"),
        code=fence(_code(teacher, location), "python"),
        pixel_space=describe(teacher["pixel_space"]),
        interpolation=escape(teacher["interpolation"]),
        size=f"{teacher['input_size']}x{teacher['input_size']}",
        features=_READ[teacher["features"]],
        scores=list_scores(provenance.get("scores") or []),
        record=_record(provenance),
        settings=fence(to_yaml(provenance["settings"]), "yaml") if provenance.get("settings") else "",
        command=fence(str(provenance["command"]), "bash") if provenance.get("command") else "",
        links=_links(provenance),
        licences=rows({"this model": teacher["license"], "source": source.get("license") or "unknown"}),
        citation=describe(objective.get("citation")),
    )
    return f"{str(card).rstrip()}\n"


def _card_data(metadata: Mapping[str, Any]) -> dict[str, Any]:
    provenance, architecture = metadata["provenance"], str(metadata["architecture"])
    source, objective = section(provenance, "source"), section(provenance, "objective")
    dataset = str(source.get("name"))
    # A local folder can look like a Hub id, but it has no revision.
    on_hub = source.get("revision") and HUB_ID.fullmatch(dataset)
    base = re.fullmatch(rf"hf[-_]hub:({HUB_ID.pattern})(@.*)?", str(metadata["teacher"]["name"]), re.ASCII)
    trained = objective.get("name") and not _is_student(provenance)
    name = one_line(str(objective["name"])) if trained else None
    return {
        **describe_licence(str(metadata["teacher"]["license"])),
        # The Hub's own code for timm does not import what registers our networks.
        "library_name": "ssdd_hub" if _is_ours(architecture) else "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": [*_TAGS, "timm", *([name] if name else [])],
        "datasets": [dataset] if on_hub else None,
        "base_model": base[1] if base else None,
    }


def _is_ours(architecture: str) -> bool:
    return architecture.startswith("ssdd_")


def _title(metadata: Mapping[str, Any]) -> str:
    provenance = metadata["provenance"]
    objective, source = (section(provenance, part).get("name") for part in ("objective", "source"))
    trained = f" trained with {objective}" if objective else ""
    if _is_student(provenance):
        trained = " pre-trained"
    where = str(source).rstrip("/").split("/")[-1] if source else ""
    return one_line(f"{metadata['architecture']}{trained}" + (f" on {where}" if trained and where else ""))


def _summary(metadata: Mapping[str, Any]) -> str:
    teacher, source = metadata["teacher"], section(metadata["provenance"], "source")
    amount = f"{source['num_images']} images" if source.get("num_images") else "images"
    name, origin = escape(metadata["architecture"]), f"{escape(amount)} of {escape(source.get('name') or '')}"
    if _is_student(metadata["provenance"]):
        return (
            f"A {name} that was pre-trained on the {origin}, a distilled set, by regression on their targets. Without "
            f"its head it maps an image to {teacher['feature_dim']} features. It is a start for tasks with few "
            "labels: fine-tune it, or train a linear probe on its features."
        )
    trained = section(metadata["provenance"], "objective").get("name") and source.get("name")
    how = f" It was trained without labels on {origin}." if trained else ""
    return (
        f"A frozen {name} without a classifier: it maps an image to {teacher['feature_dim']} features.{how} Datasets "
        "are distilled with such features as targets."
    )


def _is_student(provenance: Mapping[str, Any]) -> bool:
    return section(provenance, "objective").get("name") == STUDENT_OBJECTIVE


def _links(provenance: Mapping[str, Any]) -> str:
    """Returns links to the sets that were distilled with a teacher, or that a student was pre-trained on."""
    source = section(provenance, "source")
    student = _is_student(provenance)
    names = [source.get("name")] if student and source.get("revision") else provenance.get("sets") or []
    known = [str(name) for name in names if HUB_ID.fullmatch(str(name))]
    linked = ", ".join(f"[{escape(name)}](https://huggingface.co/datasets/{name})" for name in known)
    what = "Pre-trained on the distilled set" if student else "Distilled with its features"
    return f"{what}: {linked}." if linked else ""


def _place(location: str) -> tuple[str, str]:
    """Returns the name that timm loads, and a comment where the reader has to put a path."""
    if "/" in location:
        return json.dumps(f"hf-hub:{location}"), ""
    return json.dumps(f"local-dir:{location}"), "  # the path of this folder"


def _timm_code(metadata: Mapping[str, Any], location: str) -> str:
    name, comment = _place(location)
    registers = (
        "import ssdd_hub  # registers the architecture with timm\n" if _is_ours(metadata["architecture"]) else ""
    )
    size, channels = metadata["teacher"]["input_size"], len(metadata["teacher"]["pixel_space"]["mean"])
    return (
        f"{registers}import timm\nimport torch\n\n"
        f"model = timm.create_model({name}, pretrained=True, num_classes=0).eval(){comment}\n"
        f"pixels = torch.rand(1, {channels}, {size}, {size})  # values in [0, 1]\n"
        'mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))\n'
        "outputs = model((pixels - mean) / std)"
    )


def _code(teacher: Mapping[str, Any], location: str) -> str:
    name, comment = _place(location)
    features = "" if teacher["features"] == "pre_logits" else f", features={json.dumps(teacher['features'])}"
    return (
        "from ssdd_hub import build_teacher\n\n"
        f"teacher = build_teacher({name}{features}){comment}\n"
        f"features = teacher(pixels)  # (1, {teacher['feature_dim']})"
    )


def _record(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = provenance.get("seconds")
    return rows(
        {
            **{name: section(provenance, name) or None for name in ("objective", "source", "checkpoint")},
            "seed": provenance.get("seed"),
            **{name: section(provenance, name) or None for name in ("hardware", "versions")},
            "time": None if seconds is None else f"{seconds:.1f} s",
        }
    )
