"""The recipes as calls: images to a set, its scores, a teacher; each is the recipe of its command line."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageOps
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.evaluation import Record
from ssdd_hub.files import hidden_folder, remove_abandoned
from ssdd_hub.procedures import command_line, load_recipe, spell_out
from ssdd_hub.record import hash_json, read_metadata
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.folder import describe_storage, describe_tensor
from ssdd_hub.settings import parse_config
from ssdd_hub.teachers.teacher import Teacher

_TAKEN = (
    "a folder, a Hub id, a datasets.Dataset or DatasetDict, a list of PIL images, or a uint8 tensor or array "
    "(N, C, H, W) with C of 1 or 3"
)

# PNG would cut the values of the mode I to 16 bits.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def distill(
    images: Any,
    num_images: int = 100,
    teacher: str | Path | Teacher | Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    config: str | Path | None = None,
    minutes: float | None = None,
    **settings: Any,
) -> DistilledSet:
    """Distils images into a set, in this process: `recipes/distill.py`, with its progress and its run folder.

    The same call goes on where it was interrupted.

    Args:
        images: A folder, a Hub id, `digits`, a `datasets.Dataset` or `DatasetDict`, a list of PIL images, or a uint8
            tensor or array `(N, C, H, W)` with values from 0 to 255. Images in memory are stored in `sources/` beside
            the run folder.
        num_images: Images `M` of the set.
        teacher: A timm name, `hf-hub:OWNER/NAME`, the folder of a teacher or of the run that trained it, a `Teacher`,
            which is stored in `sources/` too, or settings such as `{"backbone": "resnet18", "checkpoint":
            "weights.pt"}`; by default one is trained on the images.
        output: The run folder; `runs/NAME` by default, after the images.
        config: A file of settings, or its name in `recipes/configs`; by default `photos`, and for `digits` `digits`.
        minutes: How long it should take: chooses the steps of teacher and distillation, by an estimate that is made
            first, at most 10 times those of the settings.
        **settings: Further settings of the recipe: `seed=1`, or sections, `distiller={"steps": 500}`.

    Returns:
        The set, which `folder` says the place of; its `provenance["scores"]` are beside random images and none.

    Raises:
        InputError: Images or settings cannot be used, of which all mistakes are named; or the minutes do not suffice.
    """
    settings = {
        **_sizing(minutes),
        **settings,
        "distiller": {"num_images": num_images, **_section(settings, "distiller")},
    }
    if teacher is not None:
        settings["teacher"] = _teacher_settings(teacher, output)
    recipe = load_recipe("distill")
    with _alone(), command_line("distill", _words("distill", images, output, config, settings)):
        return cast(DistilledSet, recipe.make_set(parse_config(recipe.DistillConfig, recipe.DEFAULT)))


def train_teacher(
    images: Any,
    output: str | Path | None = None,
    config: str | Path | None = None,
    minutes: float | None = None,
    **settings: Any,
) -> Teacher:
    """Trains a teacher without labels, in this process: `recipes/train_teacher.py`.

    Its run folder is what `distill(teacher=...)` takes. The arguments are those of `distill`; `config` is by default
    `photos_teacher`, and for `digits` `teacher`.

    Raises:
        InputError: Images or settings cannot be used; all mistakes in settings are named.
    """
    recipe, settings = load_recipe("train-teacher"), {**_sizing(minutes), **settings}
    with _alone(), command_line("train-teacher", _words("train-teacher", images, output, config, settings)):
        return cast(Teacher, recipe.make_teacher(parse_config(recipe.TrainTeacherConfig, recipe.DEFAULT)))


def evaluate(
    distilled: DistilledSet | str | Path,
    output: str | Path | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> list[Record]:
    """Scores a set beside references, in this process: `recipes/evaluate.py`; prints the table.

    Args:
        distilled: A set, its folder, or a Hub id. One that is nowhere as it is now is stored in `sources/` first.
        output: The folder of the results; `runs/NAME-evaluation` by default, after the set.
        config: A file of settings.
        **settings: Settings of the recipe, such as `protocols=["probe", "knn"]` or `evaluate={"seeds": 3}`.

    Returns:
        A record for each score, as `scores.json` holds them.

    Raises:
        InputError: The set or settings cannot be used; all mistakes in settings are named.
    """
    if not isinstance(distilled, DistilledSet | str | Path):
        raise InputError(f"a set is a DistilledSet, its folder or a Hub id; got a {type(distilled).__name__}")
    place = _store_set(distilled, output) if isinstance(distilled, DistilledSet) else str(distilled)
    recipe = load_recipe("evaluate")
    with _alone(), command_line("evaluate", _words("evaluate", place, output, config, settings)):
        return cast(list[Record], recipe.measure(*recipe.read_settings()))


@contextmanager
def _alone() -> Iterator[None]:
    """Gives a recipe an Accelerate as fresh as its command line would, and gives the caller's own back after it.

    Accelerate keeps one state for a process, and refuses another precision than it began with.
    """
    shared = AcceleratorState._shared_state
    before = dict(shared)
    shared.clear()
    try:
        yield
    finally:
        shared.clear()
        shared.update(before)


def _words(
    name: str, images: Any, output: str | Path | None, config: str | Path | None, settings: Mapping[str, Any]
) -> list[str]:
    """Returns the command line of a call, which is what the record of its result states."""
    place = str(images) if isinstance(images, str | Path) else _store_images(images, output)
    given = {"config": config, "output": output}
    options = [f"--{key}={value}" for key, value in given.items() if value is not None]
    for key, value in settings.items():
        entries = (
            {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, Mapping) else {key: value}
        )
        options += [f"--{name}={_text(entry)}" for name, entry in entries.items()]
    return spell_out(name, [place, *options])


def _text(value: Any) -> str:
    try:
        return str(value) if isinstance(value, str | Path) else json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"settings are numbers, texts, lists and dictionaries of them; got {value!r}") from error


def _sizing(minutes: float | None) -> dict[str, float]:
    return {} if minutes is None else {"minutes": minutes}


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    given = settings.get(name, {})
    if not isinstance(given, Mapping):
        raise InputError(f"{name} is a section: give its settings as a dictionary, {name}={{...}}; got {given!r}")
    return given


def _teacher_settings(teacher: Any, output: str | Path | None) -> Mapping[str, Any]:
    if isinstance(teacher, Mapping):
        return teacher
    if isinstance(teacher, Teacher):
        place = _sources(output) / f"teacher-{hash_json(teacher.identity())[:8]}"
        teacher.save(place)
        return {"backbone": f"local-dir:{place}", "pretrained": True, "features": teacher.features}
    if not isinstance(teacher, str | Path):
        raise InputError(
            f"teacher must be a timm name, hf-hub:OWNER/NAME, the folder of a stored teacher, or a Teacher; got a "
            f"{type(teacher).__name__}: make one of a network by build_teacher(NETWORK)"
        )
    folders = [folder for folder in (Path(teacher, "teacher"), Path(teacher)) if (folder / "config.json").is_file()]
    if isinstance(teacher, Path) and not folders:
        raise InputError(f"teacher {teacher} holds no teacher: give the folder of one, or of the run that trained it")
    return {"backbone": f"local-dir:{folders[0]}" if folders else str(teacher), "pretrained": True}


def _store_images(images: Any, output: str | Path | None) -> str:
    """Stores images that are in memory, in a folder named after their content; returns it."""
    import datasets

    if isinstance(images, Tensor | np.ndarray):
        images = _as_dataset(_pictures(images))
    elif isinstance(images, list | tuple) and images and all(isinstance(image, Image.Image) for image in images):
        images = _as_dataset(images)
    if not isinstance(images, datasets.Dataset | datasets.DatasetDict):
        remedy = ": datasets.Dataset.from_generator takes lambda: iter(images)"
        remedy = remedy if isinstance(images, datasets.IterableDataset) else ""
        raise InputError(f"images must be {_TAKEN}; got a {type(images).__name__}{remedy}")
    tables = images.values() if isinstance(images, datasets.DatasetDict) else [images]
    if not any(table.num_rows for table in tables):
        raise InputError("images must be at least two; got a dataset without rows")
    sources = _sources(output)
    # What killed calls were writing.
    remove_abandoned(sources)
    with hidden_folder(sources / "images") as new:
        digest = hashlib.sha256()
        # What is stored is the data, and not how it is shown.
        images.with_format(None).save_to_disk(str(new))
        for file in sorted(new.rglob("*.arrow")):
            digest.update(str(file.relative_to(new)).encode() + file.read_bytes())
        place = sources / f"images-{digest.hexdigest()[:8]}"
        try:
            os.rename(new, place)
        except OSError:
            # The same images are there already.
            if not place.is_dir():
                raise
    return str(place)


def _as_dataset(pictures: Sequence[Image.Image]) -> Any:
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": _encode(picture), "path": None} for picture in pictures]
    return datasets.Dataset.from_dict({"image": rows}, features=features)


def _encode(picture: Image.Image) -> bytes:
    """Returns a file of an image as it is now, without loss.

    `datasets` would read the file again that it was opened from, without what was painted over since.
    """
    file, upright = io.BytesIO(), ImageOps.exif_transpose(picture)
    try:
        upright.save(file, "PNG" if upright.mode in _PNG_MODES else "TIFF")
    except (OSError, KeyError):  # of modes that neither has, such as HSV
        file = io.BytesIO()
        upright.convert("RGBA" if upright.has_transparency_data else "RGB").save(file, "PNG")
    return file.getvalue()


def _pictures(images: Tensor | np.ndarray) -> list[Image.Image]:
    """Returns the images of a tensor or array `(N, C, H, W)`, uint8."""
    shape, dtype = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    is_tensor = isinstance(images, Tensor)
    remedies = {
        "give it values": isinstance(images, Tensor) and (images.is_meta or images.layout != torch.strided),
        f"scale to 0..255 and call {'.to(torch.uint8)' if is_tensor else '.astype(numpy.uint8)'}": dtype != "uint8",
        "add a dimension, of channels by images[:, None], of images by images[None]": len(shape) == 3,
        f"call .{'permute' if is_tensor else 'transpose'}(0, 3, 1, 2)": (
            len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3)
        ),
    }
    needed = [remedy for remedy, is_needed in remedies.items() if is_needed]
    if needed or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        found = f"a {'tensor' if is_tensor else 'ndarray'} of {dtype} {shape}"
        raise InputError(f"images must be {_TAKEN}; got {found}{': ' if needed else ''}{'; '.join(needed)}")
    rows = images.permute(0, 2, 3, 1).cpu().numpy() if isinstance(images, Tensor) else images.transpose(0, 2, 3, 1)
    return [Image.fromarray(np.ascontiguousarray(row[..., 0] if shape[1] == 1 else row)) for row in rows]


def _store_set(distilled: DistilledSet, output: str | Path | None) -> str:
    """Returns the folder of a set; one that has none, or was changed since, is stored first."""
    stored = distilled.stored()
    now = {name: describe_tensor(stored[name]) for name in ("images", "coefficients", "targets") if name in stored}
    storage = describe_storage(distilled.packed.decoder) if distilled.packed else None
    folder = distilled.folder
    if folder is not None and folder.is_dir():
        stated = read_metadata(folder)
        same = all(stated["tensors"].get(name) == facts for name, facts in now.items())
        if same and stated.get("storage") == storage:
            return str(folder)
    digest = hashlib.sha256(json.dumps([now, storage] if storage else now).encode()).hexdigest()[:8]
    return str(distilled.save(_sources(output) / f"set-{digest}"))


def _sources(output: str | Path | None) -> Path:
    return Path(output or "runs/x").parent / "sources"
