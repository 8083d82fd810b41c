"""Where a set comes from: the run that made it, its source images and its teacher, as far as they can be had."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from ssdd_hub.contenders import REFERENCES, describe_matrix
from ssdd_hub.distilled import DistilledSet
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.images import DataSettings, ImageBank, load_images
from ssdd_hub.inputs import deciding_facts
from ssdd_hub.interop import LAYOUTS, import_tensors, is_foreign
from ssdd_hub.markdown import section
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.protocols import RealData, draw_heldout
from ssdd_hub.target_transform import TargetTransform
from ssdd_hub.teacher import Teacher
from ssdd_hub.tensor_pairs import find_pair
from ssdd_hub.use import stated_use

ABSENT = "none"
TARGETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "cars": "tanganke/stanford_cars"}
"""Short names of labelled datasets of the Hub."""


def load_set(place: str, foreign: Mapping[str, Any] | None = None) -> DistilledSet:
    """Loads a distilled set: a folder, a Hub id, or a pair of tensors that other code wrote.

    Args:
        place: Where it is.
        foreign: What a pair does not say of itself: its `layout`, and the space of its images and of real ones, by
            `mean` and `std` or by the `dataset` for which that code has them.

    Raises:
        InputError: There is no such set, it is damaged, or it cannot be read with so little said of it.
    """
    if not is_foreign(place):
        return DistilledSet.from_pretrained(place)
    said = dict(foreign or {})
    strangers = sorted(said.keys() - {"layout", "dataset", "mean", "std"})
    if strangers or ("mean" in said) != ("std" in said):
        raise InputError(f"a set of other code is described by layout, and dataset or mean and std; got {said}")
    layout = str(said.get("layout", "auto"))
    if "mean" in said:
        space = PixelSpace(tuple(said["mean"]), tuple(said["std"]))
        return import_tensors(place, layout=layout, pixel_space=space, student_pixel_space=space)
    if "dataset" not in said:
        return import_tensors(place, layout=layout)
    entry = LAYOUTS[find_pair(Path(place), layout).layout]
    if said["dataset"] not in entry.real_spaces:
        known = ", ".join(entry.real_spaces)
        raise InputError(f"that code has no pixel space of {said['dataset']!r}, only of {known}: give mean and std")
    real = entry.real_spaces[said["dataset"]]
    own = None if entry.raw_images else real
    return import_tensors(place, layout=layout, pixel_space=own, student_pixel_space=real)


def name_sets(places: list[str]) -> list[str]:
    """Returns a short name for each set: `distilled` for a single one, and else what tells their places apart.

    Names differ from each other and from those of references.
    """
    if len(places) == 1:
        return ["distilled"]
    parts = [[part for part in Path(place).parts if part not in (".", "..", "/", "distilled")] for place in places]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if all(names) and len(set(names)) == len(names) and not {name.split("-")[0] for name in names} & {*REFERENCES}:
            return names
    return [f"set-{number}" + "".join(f"-{name}" for name in part[-1:]) for number, part in enumerate(parts, 1)]


def stated_settings(place: str) -> dict[str, Any]:
    """Returns what a set, or the run folder around it, states of its making, as settings of an evaluation.

    Args:
        place: A folder or a Hub id.

    Returns:
        As far as they are known: `source`, the settings of the source images; `teacher`, those of a teacher that can
        be loaded; `use`, the recipe of the set; and `seed`.

    Raises:
        InputError: There is no such set, or it is damaged.
    """
    if is_foreign(place):
        return {}
    run = Path(place).parent
    if Path(place).is_dir() and (run / "config.yaml").is_file():
        return _of_run(run)
    return _of_provenance(load_set(place).provenance)


def _of_run(run: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        settings = {"source": config["data"], "use": config.get("use", {}), "seed": config["seed"]}
        teacher = dict(config["teacher"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise InputError(f"{run / 'config.yaml'} is not that of a run ({error!r}): move the set elsewhere") from error
    if (run / "teacher").is_dir():
        kept = {"features": teacher.get("features", "pre_logits")}
        teacher = {"backbone": f"local-dir:{run / 'teacher'}", "pretrained": True, **kept}
    return {**settings, "teacher": teacher}


def _of_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    settings = section(provenance, "settings")
    found = {"source": settings["data"]} if "data" in settings else {}
    found |= {"seed": provenance["seed"]} if "seed" in provenance else {}
    teacher = section(settings, "teacher")
    # A folder of somebody else's is not here.
    if teacher.get("pretrained") and not str(teacher.get("backbone")).startswith("local-dir:"):
        found["teacher"] = teacher
    return {**found, "use": stated_use(provenance)}


def check_stated_images(
    distilled: DistilledSet, settings: DataSettings, seed: int, source: ImageBank, heldout: ImageBank
) -> None:
    """Refuses images that are taken for a set's source because it states them, and that have changed since.

    Other images, which a seed or a setting asks for that is not the stated one, are not refused.

    Args:
        distilled: The set.
        settings: By which the images were loaded.
        seed: Likewise.
        source: The source images.
        heldout: All held-out images.

    Raises:
        InputError: The set records another fingerprint.
    """
    provenance = distilled.provenance
    stated = {"seed": provenance.get("seed", seed), **section(section(provenance, "settings"), "data")}
    asked = {"seed": seed, **asdict(settings)}
    # A name is recorded without its folder; the others decide no pixel.
    decide = asked.keys() & stated.keys() - {"name", "label_column", "memory_budget_gb"}
    if any(asked[name] != stated[name] for name in decide):
        return
    for words, name, bank in (("source images", "source", source), ("held-out images", "heldout", heldout)):
        recorded = section(provenance, name).get("fingerprint")
        if recorded not in (None, bank.fingerprint):
            raise InputError(
                f"the {words} at {settings.name} are not those of the set, which records their fingerprint as "
                f"{str(recorded)[:12]}...; it is {bank.fingerprint[:12]}... now: restore them, or give --source.name "
                "to evaluate on other images"
            )


def has_targets_of(distilled: DistilledSet, teacher: Teacher, transform: TargetTransform | None) -> bool:
    """Whether a set's targets are made by this very teacher and transform.

    Args:
        distilled: The set; one that states no teacher is taken at its word.
        teacher: The teacher.
        transform: What makes targets of its features; None where targets are features.
    """
    stated, known = section(distilled.provenance, "teacher"), deciding_facts(teacher.describe())
    # Another version of timm may describe the same structure otherwise.
    known.pop("structure_sha256")
    own, wanted = (None if t is None else describe_matrix(t) for t in (distilled.target_transform, transform))
    return own == wanted and all(stated.get(name) in (None, fact) for name, fact in known.items())


def check_alike(sets: Mapping[str, DistilledSet]) -> None:
    """Refuses sets that no one student can be pre-trained on.

    Raises:
        InputError: They differ in the size of their images or in the width of their targets.
    """
    shapes = {name: (*found.images.shape[1:], found.targets.shape[1]) for name, found in sets.items()}
    if len(set(shapes.values())) > 1:
        listed = "; ".join(f"{name}: {'x'.join(map(str, shape[:3]))}, {shape[3]}" for name, shape in shapes.items())
        raise InputError(
            f"sets evaluated together must have images of one size and targets of one width, got {listed}: evaluate "
            "them one by one"
        )


def load_target(
    name: str, args: Mapping[str, Any], distilled: DistilledSet, most: int, seed: int, device: torch.device
) -> RealData:
    """Loads a dataset to measure on, in the size and mode of a set's images.

    Args:
        name: What it is called: a Hub id, a folder, a name of `TARGETS`, or any name when `args` say what it is.
        args: Settings of its data, of `DataSettings`.
        distilled: The set.
        most: Held-out images at most.
        seed: Decides which.
        device: Where the students are.

    Raises:
        InputError: It cannot be found or used, or has no labels.
    """
    mode = "rgb" if distilled.images.shape[1] == 3 else "grey"
    given = {"name": TARGETS.get(name, name), **args}
    try:
        settings = DataSettings(**{**given, "image_size": distilled.images.shape[-1], "mode": mode})
    except SettingsError:
        raise
    except TypeError as error:
        raise InputError(f"--target-args.{name} holds an unknown setting of its data: {error}") from error
    train, heldout = load_images(settings, seed)
    space = distilled.student_pixel_space
    data = RealData(Path(name).name, train, draw_heldout(heldout, most, seed), space, device)
    if not data.labelled:
        raise InputError(
            f"the target {name} has no labels of two classes, and nothing can be measured on it: name their column by "
            f"--target-args.{name}.label_column, or choose another target"
        )
    return data
