"""Loads the inputs of an evaluation: sets, source images, teacher, labelled datasets."""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ssdd_hub.data.bank import DataSettings, ImageBank, draw_heldout, load_images
from ssdd_hub.data.decode import CHANNELS
from ssdd_hub.errors import InputError, nearest
from ssdd_hub.evaluation.entries import REFERENCES, describe_matrix
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.plain_files import require_plain
from ssdd_hub.plain_yaml import load_plain_yaml
from ssdd_hub.record import section
from ssdd_hub.runs.inputs import fingerprint_labels
from ssdd_hub.runs.own_runs import LARGEST_CONFIG, is_own_run
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.interop import import_tensors, is_foreign
from ssdd_hub.sets.layouts import LAYOUTS, find_pair
from ssdd_hub.sets.pretrain import stated_use
from ssdd_hub.statements import check_use, of_labels, stated_source, stated_teacher
from ssdd_hub.targets.labels import LABELS
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.recorded_teacher import UNCOMPARED, compare_teacher
from ssdd_hub.teachers.teacher import Teacher
from ssdd_hub.text import show

ABSENT = "none"
OF_LABELS = ("accuracy", "probe")
"""The protocols for sets whose targets are class labels, unless others are given."""
CONFIG_FILE, TEACHER_FOLDER = "config.yaml", "teacher"
# What `ImageBank.provenance` says of a whole split; and what decides nothing then.
_ALL, _DRAWN = "all", ("seed", "heldout_fraction")
_ANOTHER_TEACHER = ("teacher.backbone.", "teacher.checkpoint.", "teacher.model_args.")
# Facts of a teacher that follow from a setting, the first of them as it is given.
_DECIDED_FACTS = {
    "features": ("features", "feature_dim"),
    "input_size": ("input_size", "feature_dim", "weights_sha256", "structure_sha256"),
    "mean": ("pixel_space",),
    "std": ("pixel_space",),
}
_LOG = logging.getLogger(__name__)
DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "cars": "tanganke/stanford_cars"}
"""Short names of labelled datasets of the Hub."""


def load_set(place: str, foreign: Mapping[str, Any] | None = None) -> DistilledSet:
    """Loads a distilled set: a folder, a Hub id, or a pair of tensors that other code wrote.

    `foreign` is what a pair does not state itself: its `layout`, and the space of its images and of real ones, by
    `mean` and `std` or by the `dataset` for which that code has them.
    """
    if not is_foreign(place):
        return DistilledSet.from_pretrained(place)
    stated = dict(foreign or {})
    if stated.keys() - {"layout", "dataset", "mean", "std"} or ("mean" in stated) != ("std" in stated):
        raise InputError(f"a set of other code is described by layout, and dataset or mean and std; got {stated}")
    layout, space, real = str(stated.get("layout", "auto")), None, None
    if "mean" in stated:
        space = real = PixelSpace(tuple(stated["mean"]), tuple(stated["std"]))
    elif "dataset" in stated:
        entry, dataset = LAYOUTS[find_pair(Path(place), layout).layout], stated["dataset"]
        if dataset not in entry.real_spaces:
            known = ", ".join(entry.real_spaces)
            raise InputError(f"that code has no pixel space of {dataset!r}, only of {known}: give mean and std")
        real = entry.real_spaces[dataset]
        space = None if entry.raw_images else real
    return import_tensors(place, layout=layout, pixel_space=space, student_pixel_space=real)


def name_sets(places: list[str]) -> list[str]:
    """Returns a short name for each set: `distilled` for a single one, and else the end of its place.

    Names differ from each other and from those of references.
    """
    if len(places) == 1:
        return ["distilled"]
    parts = [[part for part in Path(place).parts if part not in (".", "..", "/", "distilled")] for place in places]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        taken = {re.split("[- ]", name)[0] for name in names} & {*REFERENCES}
        if all(names) and len(set(names)) == len(names) and not taken:
            return names
    return ["-".join(["set", str(number), *part[-1:]]) for number, part in enumerate(parts, 1)]


def stated_settings(place: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Returns what a set, or the run folder around it, states of its making, as settings of an evaluation.

    Where they are known, these are `source`, settings of the source images; `teacher`, those of a teacher that can be
    loaded; `student_training`, the recipe of the set; `seed`; and `protocols` where others than the usual ones fit.
    Folders of this machine only where this user began the run.

    Args:
        place: A folder or a Hub id.
        given: Names of settings that are given and that nothing stated takes the place of, such as `source.name`.

    Raises:
        InputError: There is no such set, it is damaged, or it states what a record may not choose.
    """
    if is_foreign(place):
        return {}
    run = Path(place).parent
    if Path(place).is_dir() and (run / CONFIG_FILE).exists():
        return _of_run(run, given)
    provenance = load_set(place).provenance
    settings = section(provenance, "settings")
    found: dict[str, Any] = {"student_training": stated_use(provenance)}
    if "seed" in provenance:
        found["seed"] = provenance["seed"]
    data = section(settings, "data") if "data" in settings else None
    if of_labels(provenance):
        found["protocols"] = list(OF_LABELS)
    return {**_usable(data, section(settings, "teacher"), given), **found}


def _of_run(run: Path, given: Collection[str]) -> dict[str, Any]:
    path = run / CONFIG_FILE
    require_plain(run, [CONFIG_FILE, TEACHER_FOLDER])
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has more than {LARGEST_CONFIG} bytes")
        config = load_plain_yaml(path.read_text(encoding="utf-8"))
        data, teacher = dict(config["data"]), dict(config["teacher"])
        # Older runs have it by its old name.
        use = dict(config.get("student_training") or config.get("use") or {})
        found = {"student_training": use, "seed": config["seed"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is not that of a run ({error!r}): move the set elsewhere") from error
    check_use(use)
    if section(config, "targets").get("of") == LABELS:
        teacher, found = {}, {**found, "protocols": list(OF_LABELS)}
    elif (run / TEACHER_FOLDER).is_dir():
        features = teacher.get("features", "pre_logits")
        found["teacher"] = {"backbone": f"local-dir:{run / TEACHER_FOLDER}", "pretrained": True, "features": features}
    if not is_own_run(path):
        return {**_usable(data, teacher, given), **found}
    ready = {"teacher": teacher} if teacher.get("pretrained") or teacher.get("checkpoint") else {}
    return {"source": data, **ready, **found}


def _usable(data: Mapping[str, Any] | None, teacher: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Returns what may be used of a record's settings, `source` and `teacher`; warns of what may not."""
    if data is not None and "source.name" in given:
        data = {name: value for name, value in data.items() if name != "name"}
    if "teacher.backbone" in given:
        teacher = {name: value for name, value in teacher.items() if name not in ("backbone", "checkpoint")}
    found = {"source": None if data is None else stated_source(data), "teacher": stated_teacher(teacher)}
    if data is not None and found["source"] is None:
        _LOG.warning(
            "the source images are stated as %r, which is no dataset of the Hub or a folder here: to use images of "
            "this machine, name them by --source.name",
            str(data.get("name"))[:80],
        )
    return {name: settings for name, settings in found.items() if settings is not None}


def check_asked_images(distilled: DistilledSet, settings: DataSettings) -> None:
    """Raises an `InputError`, before any is loaded, where source images are not of a set's size and channels."""
    channels, size = distilled.images.shape[1], distilled.images.shape[-1]
    if settings.image_size not in (None, size):
        raise InputError(
            f"the source images must be of {size} pixels a side, as the images of the set, and image_size is "
            f"{settings.image_size}: give --source.image-size {size}"
        )
    if CHANNELS.get(settings.mode, channels) != channels:
        mode = _mode(distilled)
        raise InputError(
            f"the source images must be {mode}, as the images of the set, and mode is {settings.mode}: give "
            f"--source.mode {mode}"
        )


def _mode(distilled: DistilledSet) -> str:
    return "rgb" if distilled.images.shape[1] == 3 else "grey"


def check_stated_images(
    distilled: DistilledSet, settings: DataSettings, seed: int, source: ImageBank, heldout: ImageBank
) -> None:
    """Raises an `InputError` where the images that a set states as its source are not those of its record.

    Where settings or the seed differ from the stated ones, images are not compared, and a warning says so.
    """
    provenance = distilled.provenance
    stated = {"seed": provenance.get("seed", seed), **section(section(provenance, "settings"), "data")}
    now = {"seed": seed, **asdict(settings)}
    # A name is recorded without its folder; the others decide no pixel.
    decide = now.keys() & stated.keys() - {"name", "label_column", "memory_budget_gb", "cache", "follow_links"}
    differing = sorted(name for name in decide if now[name] != stated[name])
    for words, name, bank in (("source images", "source", source), ("held-out images", "heldout", heldout)):
        recorded = section(provenance, name).get("fingerprint")
        # Where all images of a split are taken, nothing is drawn.
        whole = _ALL in (section(provenance, name).get("selection"), bank.provenance.get("selection"))
        idle = _DRAWN if whole and len(bank) <= (settings.max_images or len(bank)) else ()
        others = [f"{key} {show(stated[key])} there, {show(now[key])} now" for key in differing if key not in idle]
        if recorded is not None and others:
            _LOG.warning(
                "the %s are not those of the set, and nothing was compared: others were given (%s)",
                words,
                "; ".join(others),
            )
        elif recorded not in (None, bank.fingerprint):
            raise InputError(
                f"the {words} at {settings.name} are not those of the set, which records their fingerprint as "
                f"{str(recorded)[:12]}...; it is {bank.fingerprint[:12]}... now: restore them, or give --source.name "
                "to evaluate on other images"
            )
        elif (labels := section(provenance, name).get("labels")) not in (None, fingerprint_labels(bank.labels)):
            raise InputError(
                f"the class labels of the {words} at {settings.name} are not those of the set, which records "
                f"their sha256 as {str(labels)[:12]}...: restore them, or give --source.name to evaluate on other "
                "images"
            )


def check_stated_teacher(distilled: DistilledSet, teacher: Teacher, given: Collection[str] = ()) -> None:
    """Raises an `InputError` where the teacher that a set states is not that of its record.

    Another teacher that `given` settings name is not refused, nor is the same one that they have read otherwise.
    """
    if any(f"{name}.".startswith(_ANOTHER_TEACHER) for name in given):
        return
    differences, uncompared = compare_teacher(distilled.provenance, teacher)
    read = [facts for key, facts in _DECIDED_FACTS.items() if f"teacher.{key}" in given and facts[0] in differences]
    left = [text for fact, text in differences.items() if not any(fact in facts for facts in read)]
    if left:
        raise InputError(
            f"the teacher {show(teacher.name)} is not the one that the targets of the set are of ({'; '.join(left)} "
            "now): restore it, or give --teacher.backbone to evaluate with another teacher"
        )
    if uncompared:
        _LOG.warning("%s", UNCOMPARED)


def has_targets_of(distilled: DistilledSet, teacher: Teacher | None, transform: TargetTransform | None) -> bool:
    """Whether a set's targets are made by this teacher and transform, None where targets are features.

    Without a teacher, whether they are class labels.

    A set that states no teacher counts as made by this one.
    """
    own, wanted = (None if t is None else describe_matrix(t) for t in (distilled.target_transform, transform))
    if teacher is None:
        return own == wanted and of_labels(distilled.provenance)
    return own == wanted and not compare_teacher(distilled.provenance, teacher).differences


def check_alike(sets: Mapping[str, DistilledSet]) -> None:
    """Raises an `InputError` where sets differ in the size of their images or in the width of their targets."""
    shapes = {name: (*found.images.shape[1:], found.targets.shape[1]) for name, found in sets.items()}
    if len(set(shapes.values())) > 1:
        listed = "; ".join(f"{name}: {'x'.join(map(str, shape[:3]))}, {shape[3]}" for name, shape in shapes.items())
        raise InputError(
            f"sets evaluated together must have images of one size and targets of one width, got {listed}: evaluate "
            "them one by one"
        )


def load_dataset(
    name: str, args: Mapping[str, Any], distilled: DistilledSet, most: int, seed: int, device: torch.device
) -> RealData:
    """Loads a dataset to measure on, in the size and mode of a set's images.

    Args:
        name: A Hub id, a folder, a name of `DATASETS`, or any name when `args` have one.
        args: Settings of its data, of `DataSettings`.
        distilled: The set.
        most: Held-out images at most.
        seed: Draws them.
        device: Where the students are.
    """
    given = {"name": DATASETS.get(name, name), **args, "image_size": distilled.images.shape[-1]}
    try:
        settings = DataSettings(**{**given, "mode": _mode(distilled)})
    except TypeError as error:
        raise InputError(f"--dataset-args.{name} holds an unknown setting of its data: {error}") from error
    try:
        train, heldout = load_images(settings, seed)
    except InputError as error:
        # A name alone may be a misspelt one of ours.
        short = not args and "/" not in name
        raise InputError(f"{error}{nearest(name, ['source', *DATASETS]) if short else ''}") from error
    heldout = draw_heldout(heldout, most, seed)
    data = RealData(Path(name).name, train, heldout, distilled.student_pixel_space, device)
    if not data.labelled:
        raise InputError(
            f"the target {name} has no labels of two classes, and nothing can be measured on it: name their column by "
            f"--dataset-args.{name}.label_column, or choose another target"
        )
    return data
