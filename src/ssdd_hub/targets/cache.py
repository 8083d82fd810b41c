"""Teacher features of whole datasets, computed once, in shards distributed over the processes, and kept on disk."""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from ssdd_hub.data.augment import crop_flip, draw_views
from ssdd_hub.data.decode import CorruptImageError
from ssdd_hub.errors import InputError
from ssdd_hub.files import remove_abandoned
from ssdd_hub.plain_files import require_readable_entries
from ssdd_hub.record import hash_json, shareable_name
from ssdd_hub.runs.inputs import deciding_facts
from ssdd_hub.seeds import generator
from ssdd_hub.targets.bank import INDEX_FILE, FeatureBank, Index, Shard, shard_path, write_shard
from ssdd_hub.teachers.teacher import Teacher

if TYPE_CHECKING:
    from ssdd_hub.data.bank import ImageBank
    from ssdd_hub.data.stream import ImageStream

DTYPES = ("teacher", "float16", "bfloat16")

# Rows whose views come from one generator, so that those of a row do not depend on how many rows there are.
_VIEW_BLOCK = 4096

_LOG = logging.getLogger(__name__)

_Row = Callable[[], Tensor]


def fixed_views(rows: range, view: int, seed: int) -> Tensor:
    """Returns the crop and flip of some rows in one of the `K` fixed views: `(len(rows), 3)`, as from `draw_views`."""
    blocks = range(rows.start // _VIEW_BLOCK, -(-rows.stop // _VIEW_BLOCK))
    drawn = torch.cat([draw_views(_VIEW_BLOCK, generator(seed, "fixed view", view, block)) for block in blocks])
    offset = blocks.start * _VIEW_BLOCK
    return drawn[rows.start - offset : rows.stop - offset]


class FeatureCache:
    """A teacher's features of whole datasets, computed once and kept on disk.

    Features of one dataset are a folder `features-HASH`, after the hash of all that they depend on: the images, the
    teacher, the type, the views, the size of a shard. Shard `i` is computed by process `i` modulo their number, in
    batches that are always the same, so the bytes do not depend on the number of processes, given the same number of
    CPU threads each. A shard appears whole or not at all and is not computed again, so that an interrupted pass
    continues with the next one. Several machines must share the folder, and several runs of a machine may: shards that
    another run may be reading or writing are not removed, only replaced as a whole.

    The teacher is on `accelerator.device`; the other arguments are explained by `TargetSettings`.
    """

    def __init__(
        self,
        teacher: Teacher,
        accelerator: Accelerator,
        folder: Path,
        *,
        batch_size: int = 256,
        shard_size: int = 8192,
        dtype: str = "teacher",
        refresh: bool = False,
    ) -> None:
        self.teacher, self.accelerator, self.folder = teacher, accelerator, folder
        self.batch_size, self.shard_size, self.refresh = batch_size, shard_size, refresh
        self._computed: torch.dtype = next(teacher.parameters()).dtype
        self._stored: torch.dtype = self._computed if dtype == "teacher" else getattr(torch, dtype)
        described = teacher.identity()
        self._about = {**described, "name": shareable_name(teacher.name), **teacher.public_provenance()}
        types = {"dtype": str(self._computed), "stored": str(self._stored)}
        self._key = {"teacher": deciding_facts(described), **types, "shard_size": shard_size}

    def features(self, images: "ImageBank | ImageStream", view: int | None = None, seed: int = 0) -> FeatureBank:
        """Returns the features of all images that are not skipped, and computes missing ones.

        `view` is the number of a fixed augmented view drawn by `seed`, or None for the images as they are.
        """
        key = {**self._key, "images": images.fingerprint}
        if view is not None:
            key |= {"view": view, "seed": seed}
        folder = self.folder / f"features-{hash_json(key)[:32]}"
        # Every process must decide alike, or some would wait for the others' shards for ever.
        bank = _open(folder, key)
        whole = bank is not None and not self.refresh and self._is_whole(bank)
        if all(gather_object([whole])) and bank is not None:
            return bank
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self.refresh:
                (folder / INDEX_FILE).unlink(missing_ok=True)
            # Those of other features too, which may never be asked for again.
            for each in self.folder.glob("features-*"):
                remove_abandoned(each)
        self.accelerator.wait_for_everyone()
        num_rows = self._compute(images, folder, view, seed)
        if not num_rows:
            raise InputError("there are no images to compute features of")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._write_index(folder, key, num_rows, images.provenance)
        self.accelerator.wait_for_everyone()
        return FeatureBank(folder)

    def _is_whole(self, bank: FeatureBank) -> bool:
        """Whether this process's share of the shards has the bytes that were written; names those that do not."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        damaged = [path for path, shard in bank.shards()[rank::world] if not shard.describes(path)]
        for path in damaged:
            _LOG.warning("%s is damaged, its sha256 is not the one that was written: it is computed again", path)
        return not damaged

    def _compute(self, images: "ImageBank | ImageStream", folder: Path, view: int | None, seed: int) -> int:
        """Writes this process's missing shards and returns the number of rows; those of the others are not decoded."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        bar = tqdm(images.rows(), "targets", images.num_rows, unit="row", delay=2, disable=rank > 0)
        rows, num_rows, number = iter(bar), 0, 0
        while num_rows == number * self.shard_size:
            path, share = shard_path(folder, number), itertools.islice(rows, self.shard_size)
            if number % world != rank or (self._is_done(path) and not self.refresh):
                num_rows += sum(1 for _ in share)
            else:
                num_rows += self._compute_shard(share, path, num_rows, view, seed)
            number += 1
        return num_rows

    def _is_done(self, path: Path) -> bool:
        expected = (self.shard_size, self.teacher.feature_dim, self._stored)
        try:
            shard = Shard.read(path)
            is_same = (shard.num_rows, shard.width, shard.dtype) == expected
            # A stream does not say whether a short shard is its last: that one is computed again.
            return is_same and shard.describes(path)
        except ValueError:
            return False

    @torch.no_grad()
    def _compute_shard(self, rows: Iterator[_Row], path: Path, first: int, view: int | None, seed: int) -> int:
        """Writes one shard, unless there are no rows for it, and returns how many rows there were."""
        parts, skipped, start = [], dict[int, str](), first
        while batch := list(itertools.islice(rows, self.batch_size)):
            pixels, kept = [], []
            for index, read in enumerate(batch):
                try:
                    pixels.append(read())
                    kept.append(index)
                except CorruptImageError as error:
                    skipped[start + index] = str(error)
            if pixels:
                part = torch.stack(pixels).to(self.accelerator.device, self._computed) / 255
                if view is not None:
                    part = crop_flip(part, fixed_views(range(start, start + len(batch)), view, seed)[kept])
                parts.append(self.teacher(part).cpu())
            start += len(batch)
        if start > first:
            features = torch.cat(parts) if parts else torch.empty(0, self.teacher.feature_dim, dtype=self._computed)
            try:
                write_shard(path, features, self._stored, skipped)
            except FileNotFoundError as error:
                raise _disturbed(path.parent, error) from error
        return start - first

    def _write_index(self, folder: Path, key: dict[str, Any], num_rows: int, source: dict[str, Any]) -> None:
        try:
            shards = [Shard.read(shard_path(folder, number)) for number in range(-(-num_rows // self.shard_size))]
        except ValueError as error:
            raise _disturbed(folder, error) from error
        origin = {name: shareable_name(fact) if name == "name" else fact for name, fact in source.items()}
        index = Index.of(key, shards, self.shard_size, {"teacher": self._about, "source": origin})
        if index.num_rows != num_rows:
            raise InputError(
                f"{folder} holds features of {index.num_rows} rows, and there are {num_rows}: pass --targets.refresh"
            )
        if not index.num_images:
            reason = next(iter(index.skipped.values()))
            raise InputError(f"none of the {num_rows} images can be decoded; the first is {reason}")
        index.write(folder)


def _open(folder: Path, key: dict[str, Any]) -> FeatureBank | None:
    # A FIFO is no trace of an interruption, and must not lead to a silent second computation.
    require_readable_entries(folder)
    try:
        bank = FeatureBank(folder)
    except InputError:
        return None
    return bank if bank.index.key == json.loads(json.dumps(key)) else None


def _disturbed(folder: Path, error: Exception) -> InputError:
    return InputError(f"another run has changed {folder} meanwhile ({error}): start again, or use a folder of its own")
