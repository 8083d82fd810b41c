"""Image datasets, decoded once into one uint8 tensor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ssdd_hub.bounds import Count, Rule, Settings, Weight, either
from ssdd_hub.data.columns import require_split
from ssdd_hub.data.decode import (
    CHANNELS,
    LARGEST_NATIVE_SIZE,
    LARGEST_SIZE,
    SMALLEST_SIZE,
    CorruptImageError,
    PixelStore,
    allocate,
    decode_image,
    fingerprint_pixels,
)
from ssdd_hub.data.digits import DigitsSource
from ssdd_hub.data.disk_store import DiskStore
from ssdd_hub.data.labels import Labels
from ssdd_hub.data.left_out import refuse_left_out
from ssdd_hub.data.sources import DatasetSource
from ssdd_hub.errors import Check, InputError
from ssdd_hub.files import user_cache
from ssdd_hub.record import hash_json
from ssdd_hub.seeds import generator

HELDOUT_SPLITS = ("test", "validation", "valid", "val", "dev")
"""Splits for `heldout_split="auto"`; the first that exists is taken."""


@dataclass(frozen=True)
class DataSettings(Settings, section="data"):
    """Which images to load, and how.

    Attributes:
        name: `digits` (embedded, scikit-learn), a Hub id, or a local folder, whose path is taken literally.
        config: Configuration of the dataset; None for its default.
        revision: Branch, tag or commit of a Hub dataset.
        split: The split whose images are distilled.
        heldout_split: The split that scores are measured on. `auto` takes the first of `test`, `validation`, `valid`,
            `val` and `dev` that exists, and otherwise holds out a part of `split`.
        heldout_fraction: The part of `split` held out, in (0, 1), when no split is.
        image_column: The column of the images; `auto` when there is only one.
        label_column: The column of the classes, used by evaluations, and as targets by `--targets.of labels`: class
            labels, integers, texts or booleans, which all become numbers from 0 on. `auto` takes the class-label
            column if there is one, `none` takes none.
        image_size: Pixels a side, 8 to 4096: the shorter side is resized to it and the centre cropped. None keeps the
            size of images that all share one square size of at most 64; `digits` are then enlarged to 16.
        mode: `rgb`, `grey`, or `auto`: grey only when every image of the split is stored without colour.
        max_images: At most this many images of the split, and of the held-out images, drawn by seed.
        on_corrupt: `refuse` stops at an image that cannot be decoded, and at image files in a folder that are in no
            split; `skip` leaves them out and lists them.
        memory_budget_gb: Pixels that may need more than this many gigabytes are kept on the disk, in `cache`, and a
            step reads the rows of its batch.
        cache: Folder of decoded images: where it is given, all are kept there, and a later start, or a second pass of
            a stream, decodes none again. None for the user's cache, for images above `memory_budget_gb` alone.
        streaming: Read the images of the split once, in their order, keeping them in `cache` alone; only
            `compute_targets.py` can. `max_images` are then the first ones, none are held out, and `auto` and None
            above mean the mode and the size of the first image.
        follow_links: Also read what symbolic links in a folder lead to outside of it; only for links of your own.

    Raises:
        SettingsError: One or more values are out of range.
    """

    name: Annotated[str, Rule("'digits', a Hub id or a folder", bool)] = "digits"
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    heldout_split: str = "auto"
    heldout_fraction: Annotated[float, Rule("between 0 and 1", lambda part: 0 < part < 1)] = 0.1
    image_column: str = "auto"
    label_column: str = "auto"
    image_size: (
        Annotated[
            int, Rule(f"from {SMALLEST_SIZE} to {LARGEST_SIZE}", lambda size: SMALLEST_SIZE <= size <= LARGEST_SIZE)
        ]
        | None
    ) = None
    mode: Annotated[str, either("auto", "rgb", "grey")] = "auto"
    max_images: Count | None = None
    on_corrupt: Annotated[str, either("refuse", "skip")] = "refuse"
    memory_budget_gb: Weight = 4.0
    cache: str | None = None
    streaming: bool = False
    follow_links: bool = False

    @classmethod
    def option(cls, name: str) -> str:
        """Returns a setting's name on the command line."""
        return f"--data.{name.replace('_', '-')}"

    def conflicts(self) -> Iterator[Check]:
        """Yields the rules between settings."""
        plain = self.config is None and self.revision is None and self.image_column == "auto"
        yield (
            self.name != "digits" or plain and self.label_column in ("auto", "none"),
            "digits take none of --data.config, --data.revision, --data.image-column and --data.label-column",
        )
        yield self.name != "digits" or not self.streaming, "digits are in memory: leave out --data.streaming"
        yield self.name != "digits" or self.cache is None, "digits are in memory: leave out --data.cache"
        yield (
            self.heldout_split != self.split,
            f"--data.heldout-split must differ from --data.split; both are '{self.split}'",
        )


@dataclass(eq=False)
class ImageBank:
    """Decoded images of one size.

    Their provenance `source` has `name`, `config`, `revision`, `split`, `selection`, `num_images`, `num_skipped`,
    `skipped` (the first five, those left out of a folder before others), `image_column`, `image_size`, `mode`,
    `license` and `fingerprint`.
    """

    pixels: Tensor  # (N, C, H, W), uint8, on the CPU; a memory map when above the budget
    labels: Tensor | None  # (N,), int64; -1 marks an unknown one
    label_names: list[str] | None  # one per class
    provenance: dict[str, Any]
    on_disk: bool = False  # whether the pixels are such a map
    budget: int = 2**40  # bytes of pixels in memory; those of a larger subset are in a temporary file

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_channels(self) -> int:
        """Number of channels `C`, 1 or 3."""
        return self.pixels.shape[1]

    @property
    def image_size(self) -> int:
        """Pixels a side, `H = W`."""
        return self.pixels.shape[-1]

    @property
    def num_rows(self) -> int:
        """Number of images `N`; `ImageStream` has it too."""
        return len(self.pixels)

    def rows(self) -> Iterator[Callable[[], Tensor]]:
        """Yields for each image a function that returns its pixels `(C, H, W)`, uint8."""
        return (partial(self.pixels.__getitem__, index) for index in range(len(self.pixels)))

    @property
    def fingerprint(self) -> str:
        """The sha256 of the shape and the pixels, as stored in `source`."""
        return str(self.provenance["fingerprint"])

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageBank":
        """Returns a bank of some of the images, copied, in the order of the indices."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        pixels = torch.from_numpy(allocate((len(indices), *self.pixels.shape[1:]), self.budget))
        for rows, part in zip(torch.split(indices, 256), torch.split(pixels, 256), strict=True):
            part.copy_(self.pixels[rows])
        labels = None if self.labels is None else self.labels[indices]
        source = {**self.provenance, "num_images": len(pixels), "fingerprint": fingerprint_pixels(pixels)}
        return replace(self, pixels=pixels, labels=labels, provenance=source, on_disk=pixels.nbytes > self.budget)


def load_images(settings: DataSettings, seed: int = 0, progress: bool = True) -> tuple[ImageBank, ImageBank]:
    """Decodes the images of `settings.split` and the held-out images, which take size and mode of the former.

    `seed` decides which images are drawn for `max_images` and for a held-out part; no image is in both.
    """
    if settings.streaming:
        raise InputError(
            "--data.streaming reads images once and in their order, and here they are needed in any order: leave it "
            "out; pixels above --data.memory-budget-gb are kept in files, in --data.cache"
        )
    source: DigitsSource | DatasetSource
    if settings.name == "digits":
        source = DigitsSource()
    else:
        columns = (settings.image_column, settings.label_column)
        place = (settings.name, settings.config, settings.revision)
        source = DatasetSource(*place, *columns, progress, settings.follow_links)
    if source.left_out and settings.on_corrupt == "refuse":
        raise refuse_left_out(settings.name, source.left_out)
    chosen, heldout_chosen = _choose(source, settings, seed)
    # Before images are decoded, which may take hours.
    splits = (chosen[0], heldout_chosen[0])
    labels = dict.fromkeys(splits) if settings.label_column == "none" else source.labels(*splits)
    images = _load(source, chosen, labels[splits[0]], settings, progress, source.left_out)
    settings = replace(settings, image_size=images.image_size, mode=images.provenance["mode"])
    return images, _load(source, heldout_chosen, labels[splits[1]], settings, progress)


# A split, some of its rows, and their description in provenance.
_Choice = tuple[str, list[int], str]


def _choose(source: DigitsSource | DatasetSource, settings: DataSettings, seed: int) -> tuple[_Choice, _Choice]:
    split, heldout_split = settings.split, settings.heldout_split
    if heldout_split == "auto":
        heldout_split = next((name for name in HELDOUT_SPLITS if name in source.splits and name != split), split)
    wanted = (("split", split), ("heldout-split", heldout_split))
    for option, name in wanted:
        require_split(settings.name, source.splits, name, option)
    if isinstance(source, DatasetSource) and heldout_split != split:
        source.check_apart(split, heldout_split)
    # From here on the data is downloaded.
    for option, name in wanted:
        if source.num_rows(name) == 0:
            raise InputError(f"the split '{name}' (--data.{option}) of the dataset '{settings.name}' holds no images")
    order = torch.arange(source.num_rows(split))
    if heldout_split != split:
        heldout, parts = torch.arange(source.num_rows(heldout_split)), ("all", "all")
    elif len(order) == 1:
        raise InputError(f"the split '{split}' holds a single image; name another --data.heldout-split")
    else:
        count = min(max(1, round(len(order) * settings.heldout_fraction)), len(order) - 1)
        order = order[torch.randperm(len(order), generator=generator(seed, "images/held-out"))]
        heldout, order = order[:count], order[count:]
        drawn = f"{settings.heldout_fraction:g} held out by seed {seed}"
        parts = (f"all but {drawn}", drawn)
    return (
        _draw(split, order, parts[0], settings.max_images, seed),
        _draw(heldout_split, heldout, parts[1], settings.max_images, seed),
    )


def _draw(split: str, indices: Tensor, selection: str, most: int | None, seed: int) -> _Choice:
    if most is not None and most < len(indices):
        purpose = f"images/subset of {split}, {selection}"
        indices = indices[torch.randperm(len(indices), generator=generator(seed, purpose))[:most]]
        selection = f"{most} drawn by seed {seed} of {selection}"
    return split, sorted(indices.tolist()), selection


def _load(
    source: DigitsSource | DatasetSource,
    chosen: _Choice,
    labels: Labels | None,
    settings: DataSettings,
    progress: bool,
    left_out: Sequence[str] = (),
) -> ImageBank:
    split, indices, selection = chosen
    size = settings.image_size or source.default_size
    with closing(_open_store(source, chosen, settings, size)) as store:
        first = store.num_rows
        rows = source.rows(split, indices[first:])
        for where, read in tqdm(rows, f"decode {split}", len(indices), initial=first, disable=not progress, delay=2):
            try:
                store.add(decode_row(settings, split, where, read, size), where)
            except CorruptImageError as error:
                store.skip(str(error))
        skipped = [*store.skipped.values()]
        if len(skipped) == len(indices):
            raise none_decoded(settings, split, skipped)
        pixels, fingerprint = store.finish()
    kept = [index for row, index in enumerate(indices) if row not in store.skipped]
    numbers = None if labels is None else labels.numbers[kept]
    if labels is None or numbers is None or not (numbers >= 0).any():
        labels = numbers = None
    provenance = {
        "name": settings.name,
        **source.describe(split),
        "split": split,
        "selection": selection,
        "num_images": len(kept),
        "num_skipped": len(left_out) + len(skipped),
        "skipped": [*left_out, *skipped][:5],
        "image_size": store.image_size,
        "mode": store.mode,
        "fingerprint": fingerprint,
    }
    budget = _budget(settings)
    on_disk = isinstance(store, DiskStore) or pixels.nbytes > budget
    return ImageBank(pixels, numbers, labels.names if labels else None, provenance, on_disk, budget)


def _budget(settings: DataSettings) -> int:
    return round(settings.memory_budget_gb * 1e9)


def _open_store(
    source: DigitsSource | DatasetSource, chosen: _Choice, settings: DataSettings, size: int | None
) -> PixelStore:
    """Returns where the pixels go: into memory, or into a cache that may hold them already."""
    split, indices, _ = chosen
    most = len(indices) * CHANNELS.get(settings.mode, 3) * (size or LARGEST_NATIVE_SIZE) ** 2
    place: Path | None = None
    if settings.cache:
        place = cache_of(settings, settings.cache)
    elif most > _budget(settings) and (own := user_cache()):
        place = own / "images"
    if place is None or isinstance(source, DigitsSource):
        return PixelStore(len(indices), size, settings.mode, _budget(settings))
    facts = {name: source.describe(split)[name] for name in ("config", "image_column")}
    facts |= {"files": source.versions(split), "rows": source.versions_of_rows(split), "split": split}
    facts |= {"chosen": hash_json(indices), "image_size": size, "mode": settings.mode}
    return DiskStore(place, {**facts, "on_corrupt": settings.on_corrupt}, len(indices), size, settings.mode)


def cache_of(settings: DataSettings, place: str) -> Path:
    """Returns the folder of decoded images of that name, refused inside that of the images, where it would be read."""
    images, cache = Path(settings.name).resolve(), Path(place).resolve()
    if images.is_dir() and images in (cache, *cache.parents):
        raise InputError(
            f"--data.cache {place} is inside --data.name {settings.name}, and what is kept there would be read as "
            "images: choose another folder"
        )
    return Path(place)


def decode_row(
    settings: DataSettings, split: str, where: str, read: Callable[[], bytes], size: int | None
) -> Image.Image:
    """Decodes the image of the row that messages call `where`; raises `CorruptImageError` to skip it."""
    try:
        return decode_image(read(), size)
    except CorruptImageError as error:
        if settings.on_corrupt == "refuse":
            raise InputError(
                f"the image at {where} of the split '{split}' of '{settings.name}' cannot be decoded ({error}); "
                "repair or remove it, or pass --data.on-corrupt skip"
            ) from error
        raise CorruptImageError(f"{where}: {error}") from error


def none_decoded(settings: DataSettings, split: str, reasons: Sequence[str]) -> InputError:
    """Returns the error for a split without a single image that can be decoded."""
    return InputError(
        f"none of the {len(reasons)} images of the split '{split}' of '{settings.name}' can be decoded; the first is "
        f"{reasons[0]}"
    )


def draw_heldout(bank: ImageBank, most: int, seed: int) -> ImageBank:
    """Returns at most so many images of a bank for measurements, drawn by seed, in their order."""
    order = torch.randperm(len(bank), generator=generator(seed, "held-out images"))
    return bank.subset(order[:most].sort().values)
