"""The recipes as calls: images to a set, its scores, a teacher; each is the recipe of its command line."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.evaluation import Record
from ssdd_hub.procedures import command_line, load_recipe, spell_out
from ssdd_hub.record import read_metadata, section
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.folder import describe_tensor
from ssdd_hub.settings import parse_config
from ssdd_hub.teachers.teacher import Teacher

_TAKEN = "a folder, a Hub id, a datasets.Dataset or DatasetDict, or a uint8 tensor (N, C, H, W) with C of 1 or 3"


def distill(
    images: Any,
    num_images: int = 100,
    teacher: str | Path | None = None,
    output: str | Path | None = None,
    config: str | Path | None = None,
    minutes: float | None = None,
    **settings: Any,
) -> DistilledSet:
    """Distils images into a set, in this process: `recipes/distill.py`, with its progress and its run folder.

    The same call goes on where it was interrupted.

    Args:
        images: A folder, a Hub id, `digits`, a `datasets.Dataset` or `DatasetDict`, or a uint8 tensor `(N, C, H, W)`
            with values from 0 to 255. Images in memory are stored in `sources/` beside the run folder.
        num_images: Images `M` of the set.
        teacher: A timm name, `hf-hub:OWNER/NAME`, or the folder of a teacher or of the run that trained it; by
            default one is trained on the images.
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
        # The arguments in a file of settings are for the teacher that it trains.
        settings["teacher"] = {"model_args": {}, **_section(settings, "teacher"), **_ready_teacher(teacher)}
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


def _ready_teacher(teacher: str | Path) -> dict[str, Any]:
    if not isinstance(teacher, str | Path):
        raise InputError(
            f"teacher must be a timm name, hf-hub:OWNER/NAME, or the folder of a stored teacher; got a "
            f"{type(teacher).__name__}: save it by recipes/train_teacher.py or ssdd_hub.train_teacher"
        )
    folders = [folder for folder in (Path(teacher, "teacher"), Path(teacher)) if (folder / "config.json").is_file()]
    if isinstance(teacher, Path) and not folders:
        raise InputError(f"teacher {teacher} holds no teacher: give the folder of one, or of the run that trained it")
    return {"backbone": f"local-dir:{folders[0]}" if folders else str(teacher), "pretrained": True}


def _store_images(images: Any, output: str | Path | None) -> str:
    """Stores images that are in memory, in a folder named after their content; returns it."""
    import datasets

    if isinstance(images, Tensor):
        images = _as_dataset(images)
    if not isinstance(images, datasets.Dataset | datasets.DatasetDict):
        raise InputError(f"images must be {_TAKEN}; got a {type(images).__name__}")
    tables = images.values() if isinstance(images, datasets.DatasetDict) else [images]
    if not any(table.num_rows for table in tables):
        raise InputError("images must be at least two; got a dataset without rows")
    sources = _sources(output)
    sources.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".images-", dir=sources) as scratch:
        new, digest = Path(scratch, "new"), hashlib.sha256()
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


def _as_dataset(images: Tensor) -> Any:
    import datasets
    from PIL import Image

    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        kind = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise InputError(f"images must be {_TAKEN}; got a tensor of {kind}: scale to 0..255 and call .to(torch.uint8)")
    rows = (image[0] if len(image) == 1 else image.permute(1, 2, 0) for image in images.cpu())
    pictures = [Image.fromarray(row.contiguous().numpy()) for row in rows]
    return datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))


def _store_set(distilled: DistilledSet, output: str | Path | None) -> str:
    """Returns the folder of a set; one that has none, or was changed since, is stored first."""
    now = {name: describe_tensor(getattr(distilled, name)) for name in ("images", "targets")}
    folder = distilled.folder
    if folder is not None and folder.is_dir():
        stated = section(read_metadata(folder), "tensors")
        if all(stated.get(name) == facts for name, facts in now.items()):
            return str(folder)
    digest = hashlib.sha256(json.dumps(now).encode()).hexdigest()[:8]
    return str(distilled.save(_sources(output) / f"set-{digest}"))


def _sources(output: str | Path | None) -> Path:
    return Path(output or "runs/x").parent / "sources"
