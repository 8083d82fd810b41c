"""The dataset card of a distilled set: a function of the metadata that the set carries, nothing typed by hand."""

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

_TAGS = ["dataset-distillation", "dataset-condensation", "self-supervised", "synthetic", "ssdd_hub"]
_SECTIONS = ("selection", "source", "teacher", "target_transform", "student", "hardware", "versions")
_LONGEST_LIST = 8  # a longer one has no place in a cell; `ssdd_hub.json` has it
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
# The identifiers of the Hub's documentation of licences; it takes others as `other` with a name.
_HUB_LICENCES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 gemma unknown other
""".split()
_LICENCE_LINKS = {"dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license"}


def render_dataset_card(metadata: Mapping[str, Any], location: str) -> str:
    """Renders the card of a distilled set; what the metadata lacks is left out or said to be unknown.

    Args:
        metadata: What `ssdd_hub.json` holds.
        location: Where the card's code loads the set from: `owner/name` on the Hub, or the name of the folder.

    Returns:
        Markdown that opens with the YAML block of the Hub.
    """
    provenance = metadata.get("provenance") or {}
    source = section(provenance, "source")
    card = DatasetCard.from_template(
        _card_data(metadata),
        template_str=(files("ssdd_hub") / "templates" / "dataset_card.md").read_text(encoding="utf-8"),
        title=escape(_title(metadata)),
        summary=_summary(metadata, source),
        load_code=fence(_load_code(metadata, location), "python"),
        load_dataset_code=fence(_load_dataset_code(location), "python"),
        pixel_space=describe(metadata["pixel_space"]),
        student_pixel_space=describe(section(provenance, "student_pixel_space")),
        clipped=f"{metadata['clip_fraction']:.2%}",
        num_views=_num_views(metadata),
        use=rows(section(provenance, "use")),
        scores=[score_cells(score) for score in provenance.get("scores") or []],
        record=_record(provenance),
        settings=fence(to_yaml(provenance["settings"]), "yaml") if provenance.get("settings") else "",
        command=fence(str(provenance["command"]), "bash") if provenance.get("command") else "",
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
    data_files = [{"split": "train", "path": "data/train-*"}]
    return {"config_name": "default", "description": digests, "data_files": data_files}


def _source_dataset(source: Mapping[str, Any]) -> str:
    """Names the source on the Hub. A local folder can look like a Hub id, but it has no revision."""
    name = str(source.get("name"))
    return f"extended|{name}" if source.get("revision") and HUB_ID.fullmatch(name) else "original"


def _title(metadata: Mapping[str, Any]) -> str:
    provenance = metadata.get("provenance") or {}
    name = str(section(provenance, "source").get("name") or "").rstrip("/").split("/")[-1]
    size = metadata["tensors"]["images"]["shape"][0]
    return one_line(f"{name or 'Images'} distilled to {size} by {provenance.get('method') or 'an unnamed method'}")


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


def _load_code(metadata: Mapping[str, Any], location: str) -> str:
    images, targets = (tuple(metadata["tensors"][name]["shape"]) for name in ("images", "targets"))
    place = "" if "/" in location else "  # the path of this folder"
    return (
        "from ssdd_hub import DistilledSet\n\n"
        f"distilled = DistilledSet.from_pretrained({json.dumps(location)}){place}\n"
        f"images, targets = distilled.images, distilled.targets  # {images} and {targets}"
    )


def _load_dataset_code(location: str) -> str:
    return (
        "from datasets import load_dataset\n\n"
        f'dataset = load_dataset({json.dumps(location)}, split="train")\n'
        'columns = dataset.select_columns(["pixels", "target"]).with_format("torch")[:]\n'
        'images, targets = columns["pixels"], columns["target"]'
    )


def score_cells(score: Mapping[str, Any]) -> list[str]:
    """Returns the escaped cells of one record of `scores.json`: what was measured, mean ± std, and n."""
    names = ("set", "protocol", "source", "target", "student", "labels", "metric")
    mean, std = score.get("mean"), score.get("std")
    value = "" if mean is None else f"{mean:.4g}" if std is None else f"{mean:.4g} ± {std:.2g}"
    return [*(describe(score.get(name)) for name in names), value, describe(score.get("n"))]


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
    return rows({name: owner.get("license") or "unknown" for name, owner in owners.items()})


def describe_licence(name: str) -> dict[str, Any]:
    """Returns a licence as the Hub's YAML wants it: identifiers that it knows, or `other` with name and link.

    Args:
        name: One licence, or several joined by commas.
    """
    identifier = one_line(name).lower()
    identifiers = [part.strip() for part in identifier.split(",")]
    if all(part in _HUB_LICENCES for part in identifiers):
        return {"license": identifiers if len(identifiers) > 1 else identifier}
    slug = re.sub(r"[^a-z0-9.]+", "-", identifier).strip("-.") or "unnamed"
    link = _LICENCE_LINKS.get(identifier)
    return {"license": "other", "license_name": slug, **({"license_link": link} if link else {})}


def section(provenance: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns one part of the provenance; a bare value counts as its name."""
    value = provenance.get(name) or {}
    return value if isinstance(value, Mapping) else {"name": value}


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns escaped names and values of the facts that are known."""
    return [
        (escape(name.replace("_", " ").capitalize()), describe(value))
        for name, value in facts.items()
        if value is not None
    ]


def describe(facts: Any) -> str:
    """Returns the known facts in one escaped line."""
    return escape(_text(facts))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        known = {name: part for name, part in value.items() if part is not None}
        return "; ".join(f"{str(name).replace('_', ' ')}: {_text(part)}" for name, part in known.items())
    if isinstance(value, list | tuple):
        return f"{len(value)} values" if len(value) > _LONGEST_LIST else ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def to_yaml(settings: Any) -> str:
    """Returns settings as YAML, in their order."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()


def one_line(text: str) -> str:
    """Returns the words with single spaces between them."""
    return " ".join(text.split())


def escape(text: str) -> str:
    """Makes text from outside plain: one line in which Markdown and HTML see nothing but characters."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(one_line(str(text)), quote=False))


def fence(code: str, language: str) -> str:
    """Wraps code in a fence longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
