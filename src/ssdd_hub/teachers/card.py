"""The model card of a teacher, rendered from what its folder records."""

import json
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ssdd_hub.hub.licences import describe_licence
from ssdd_hub.hub.markdown import describe, escape, fence, list_scores, one_line, render_card, rows, to_yaml
from ssdd_hub.record import section
from ssdd_hub.text import HUB_ID

STUDENT_OBJECTIVE = "regression on a distilled set"
"""The recorded objective of students that were pre-trained on a distilled set."""
_FEATURES = {
    "pre_logits": "what the classifier would read (timm's pre-logits)",
    "cls": "the class token",
    "mean": "the mean over patch tokens or the feature map",
}


def render_teacher_card(metadata: Mapping[str, Any], location: str) -> str:
    """Returns the card of a teacher, Markdown with the Hub's YAML block; what is not recorded is left out or unknown.

    Args:
        metadata: `architecture`, `teacher` (`Teacher.identity()`) and `provenance`.
        location: Where the card's code loads the teacher from: `owner/name` on the Hub, or a path.
    """
    teacher, provenance = metadata["teacher"], metadata["provenance"]
    source, objective = section(provenance, "source"), section(provenance, "objective")
    amount = f"{source['num_images']} images" if source.get("num_images") else "images"
    on_hub = HUB_ID.fullmatch(location)
    return render_card(
        ModelCard,
        ModelCardData(**_card_data(metadata)),
        "ssdd_hub.teachers",
        "model_card.md",
        title=escape(_title(metadata)),
        name=escape(metadata["architecture"]),
        images=f"{escape(amount)} of {escape(source.get('name') or '')}",
        student=_is_student(provenance),
        trained=objective.get("name") and source.get("name"),
        links=_links(provenance),
        fence=fence,
        ours=_is_ours(metadata),
        place=json.dumps(f"hf-hub:{location}" if on_hub else f"local-dir:{location}"),
        comment="" if on_hub else "  # the path of this folder",
        channels=len(teacher["pixel_space"]["mean"]),
        size=teacher["input_size"],
        feature_dim=teacher["feature_dim"],
        features=teacher["features"],
        kind=_FEATURES[teacher["features"]],
        pixel_space=describe(teacher["pixel_space"]),
        interpolation=escape(teacher["interpolation"]),
        scores=list_scores(provenance.get("scores") or []),
        record=_record(provenance),
        settings=to_yaml(provenance["settings"]) if provenance.get("settings") else "",
        command=str(provenance.get("command") or ""),
        licences=rows({"this model": teacher["license"], "source": source.get("license") or "unknown"}),
        citation=describe(objective.get("citation")),
    )


def _card_data(metadata: Mapping[str, Any]) -> dict[str, Any]:
    provenance, teacher = metadata["provenance"], metadata["teacher"]
    source, objective = section(provenance, "source"), section(provenance, "objective").get("name")
    dataset = str(source.get("name"))
    # A local folder can look like a Hub id, but it has no revision.
    on_hub = source.get("revision") and HUB_ID.fullmatch(dataset)
    base = re.fullmatch(rf"hf[-_]hub:({HUB_ID.pattern})(@.*)?", str(teacher["name"]), re.ASCII)
    trained = [one_line(str(objective))] if objective and objective != STUDENT_OBJECTIVE else []
    return {
        **describe_licence(str(teacher["license"])),
        # The Hub's own code for timm does not import what registers our networks.
        "library_name": "ssdd_hub" if _is_ours(metadata) else "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "dataset-distillation", "ssdd_hub", "timm", *trained],
        "datasets": [dataset] if on_hub else None,
        "base_model": base[1] if base else None,
    }


def _is_ours(metadata: Mapping[str, Any]) -> bool:
    return str(metadata["architecture"]).startswith("ssdd_")


def _is_student(provenance: Mapping[str, Any]) -> bool:
    return section(provenance, "objective").get("name") == STUDENT_OBJECTIVE


def _title(metadata: Mapping[str, Any]) -> str:
    objective, source = (section(metadata["provenance"], part).get("name") for part in ("objective", "source"))
    trained = f" trained with {objective}" if objective else ""
    if objective == STUDENT_OBJECTIVE:
        trained = " pre-trained"
    where = str(source).rstrip("/").split("/")[-1] if source else ""
    return one_line(f"{metadata['architecture']}{trained}" + (f" on {where}" if trained and where else ""))


def _links(provenance: Mapping[str, Any]) -> str:
    """Returns links to the sets that were distilled with a teacher, or that a student was pre-trained on."""
    names, what = provenance.get("sets") or [], "Distilled with its features"
    if _is_student(provenance):
        source, what = section(provenance, "source"), "Pre-trained on the distilled set"
        names = [source.get("name")] if source.get("revision") else names
    known = [str(name) for name in names if HUB_ID.fullmatch(str(name))]
    linked = ", ".join(f"[{escape(name)}](https://huggingface.co/datasets/{name})" for name in known)
    return f"{what}: {linked}." if linked else ""


def _record(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = ("objective", "source", "checkpoint", "seed", "hardware", "versions")
    parts = {name: provenance.get(name) if name == "seed" else section(provenance, name) or None for name in names}
    seconds = provenance.get("seconds")
    return rows({**parts, "time": None if seconds is None else f"{seconds:.1f} s"})
