"""The distilled set: images, targets, their pixel space and their provenance."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.factor import Factor, FactorSettings
from ssdd_hub.errors import InputError, require
from ssdd_hub.files import replaced_folder
from ssdd_hub.hub.download import fetch_set
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import (
    CARD_FILE,
    PARQUET_GLOB,
    PREVIEW_FILE,
    TRANSFORM_FILE,
    place_in_card,
    read_metadata,
    write_metadata,
)
from ssdd_hub.record_schema import COLUMNS, STORED, find_provenance_misfits
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.sets import parquet
from ssdd_hub.sets.card import render_dataset_card
from ssdd_hub.sets.folder import StatedSet, describe_storage, describe_tensor, measure_range, split_rows
from ssdd_hub.sets.preview import MOST_IMAGES, write_preview
from ssdd_hub.sets.publish import MESSAGE, push_set
from ssdd_hub.sets.shared import save_shared
from ssdd_hub.sets.storage import Packed, StorageSettings, num_bytes, pack
from ssdd_hub.sets.tensor_checks import check_tensors
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.text import redact_tokens, refuse_tokens


@dataclass(eq=False, repr=False)
class DistilledSet:
    """M images with a target vector each, on which a network is pre-trained by regression.

    Attributes:
        images: `(M, C, H, W)`, float32, finite, in `pixel_space`; `C` is 1 or 3. Pixels may lie outside [0, 1].
        targets: `(M, D)`, float32, finite.
        pixel_space: The space of the images.
        labels: `(M,)`, int64, or None. With `label_names`, -1 stands for an unknown class.
        provenance: How the set was made, as JSON: tuples become lists, paths and arrays of one value become plain
            values, numbers that are not finite become None, and Hub tokens are redacted.
        label_names: Names of the classes, or None.
        target_transform: The map from the teacher's features to the targets, whose `inverse` maps a student's outputs
            to features. None when the targets are features.
        views: `(M, K, 3)`, int64, or None: crop offsets and flip of `K` views of each image, as from
            `augment.draw_views`, with 2 more than the flip for each quarter turn; what a crop lacks is black.
        view_targets: `(M, K, D)`, float32, finite: the targets of the views, given with them or not at all.
        packed: What a compact set stores instead of these tensors, which are what it decodes to; see `compact`.
        folder: Where it was last saved or loaded; None for neither.

    Raises:
        InputError: The parts do not fit together, hold NaN or infinite values, or a field of the provenance that this
            package reads is of another type than `record_schema` has.
    """

    images: Tensor
    targets: Tensor
    pixel_space: PixelSpace
    labels: Tensor | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    label_names: list[str] | None = None
    target_transform: TargetTransform | None = None
    views: Tensor | None = None
    view_targets: Tensor | None = None
    packed: Packed | None = None
    folder: Path | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.images, self.targets = self.images.detach(), self.targets.detach()
        self.view_targets = None if self.view_targets is None else self.view_targets.detach()
        check_tensors(self._tensors(), self.pixel_space, self.label_names)
        if self.target_transform is not None and self.target_transform.width != self.targets.shape[1]:
            widths = f"{self.target_transform.width} and {self.targets.shape[1]}"
            raise InputError(f"the target transform must give targets of the width of the set's; got {widths}")
        self.provenance = _to_json(self.provenance, "provenance")
        require(*((False, text) for text in find_provenance_misfits(self.provenance, self.pixel_space.channels)))

    def __repr__(self) -> str:
        images, targets = tuple(self.images.shape), tuple(self.targets.shape)
        return f"DistilledSet(images={images}, targets={targets}, method={self.provenance.get('method')!r})"

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {name: getattr(self, name) for name in COLUMNS}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def of(cls, packed: Packed, **others: Any) -> "DistilledSet":
        """Returns the set that stored tensors decode to; `others` are attributes that they do not hold."""
        kept = packed if packed.is_compact else None
        return cls(**packed.decode(), pixel_space=packed.decoder.pixel_space, packed=kept, **others)

    def stored(self) -> dict[str, Tensor]:
        """Returns the tensors that `save` writes.

        Raises:
            InputError: The images or targets of a compact set are no longer those that it stores.
        """
        tensors = self._tensors()
        if self.packed is None:
            return tensors
        decoded = self.packed.decode()
        changed = [name for name, tensor in decoded.items() if not torch.equal(tensor, tensors[name].cpu())]
        if changed or (self.view_targets is None) != ("view_targets" not in decoded):
            raise InputError(
                f"the {' and '.join(changed) or 'view_targets'} of a compact set are not those that it stores: after "
                "a change call compact() again, or set packed to None"
            )
        tensors |= self.packed.tensors
        # What is made of others is not stored.
        made = decoded.keys() - self.packed.tensors.keys()
        return {name: tensors[name] for name in STORED if name in tensors and name not in made}

    def as_tensor_dataset(self) -> TensorDataset:
        """Returns the pairs `(image (C, H, W), target (D,))` for a `DataLoader`."""
        return TensorDataset(self.images, self.targets)

    def compact(
        self, pixels: str = "uint8", targets: str = "int8", factor: int = 1, target_step: float = 0.0
    ) -> "DistilledSet":
        """Returns the set rounded to what takes few bytes; its images and targets are the rounded ones.

        Args:
            pixels: `float32`, or `uint8`: 256 levels in each channel.
            targets: `float32`, `float16`, or `int8`: 256 levels in each dimension; of views too.
            factor: The images are stored with sides this many times shorter, and enlarged bilinearly.
            target_step: Between the levels of `int8` targets, at least; 0 for the finest, which take most bytes.

        Raises:
            InputError: A type is unknown, or `factor` does not divide the sides of the images.
        """
        pairs = Pairs(self.images.cpu(), self.targets.cpu())
        learned = Factor.start(pairs, FactorSettings(factor=factor))
        packed = pack(learned, self.pixel_space, StorageSettings(pixels, targets), self.view_targets, target_step)
        return replace(self, **packed.decode(), packed=packed if packed.is_compact else None)

    def num_bytes(self) -> dict[str, int]:
        """Returns the bytes of `images`, `targets` and `decoder` as they are stored; see `storage.num_bytes`."""
        return num_bytes(self.stored(), self.packed.decoder if self.packed else None)

    def save(self, folder: str | Path) -> Path:
        """Writes a folder that `datasets.load_dataset(folder, split="train")` reads; it appears whole or not at all.

        Package versions join the provenance on disk when it states none.

        Args:
            folder: The place, free or taken by a distilled set, which is replaced; its parents are created.

        Raises:
            InputError: The place is taken by something other than a distilled set, or a compact set was changed.
        """
        folder, tensors = Path(folder), self.stored()
        refuse_tokens({"the name of the folder, which the card names,": folder.resolve().name})
        metadata = {
            "format_version": 1 if self.packed is None else 2,
            "tensors": {name: describe_tensor(tensor) for name, tensor in tensors.items()},
            **({} if self.packed is None else {"storage": describe_storage(self.packed.decoder)}),
            "pixel_space": self.pixel_space.to_dict(),
            **measure_range(self.pixel_space.denormalise(part) for part in split_rows(self.images)),
            "label_names": self.label_names,
            "provenance": {"versions": describe_versions(), **_to_json(self.provenance, "provenance")},
        }
        with replaced_folder(folder) as new:
            parquet.write_tensors(new, tensors, self.pixel_space, self.label_names)
            write_preview(new / PREVIEW_FILE, self.pixel_space.denormalise(self.images[:MOST_IMAGES]))
            file = save_shared(new, self.packed.decoder.shared if self.packed else {})
            file += sum(path.stat().st_size for path in new.glob(PARQUET_GLOB))
            metadata["num_bytes"] = {**num_bytes(tensors, self.packed and self.packed.decoder), "file": file}
            if self.target_transform is not None:
                metadata["target_transform"] = {"sha256": self.target_transform.save(new / TRANSFORM_FILE)}
            write_metadata(new, metadata)
            (new / CARD_FILE).write_text(render_dataset_card(metadata, place_in_card(folder)), encoding="utf-8")
        self.folder = folder
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "DistilledSet":
        """Reads a folder that `save` wrote and checks the tensors against their sha256.

        Raises:
            InputError: The folder is missing, damaged, or no distilled set.
        """
        folder = Path(folder)
        metadata = read_metadata(folder)
        stated = StatedSet.of(metadata)
        packed = Packed(parquet.read_tensors(folder, stated.tensors, stated.shown), stated.load_decoder(folder))
        loaded = cls.of(
            packed,
            provenance=metadata["provenance"],
            label_names=stated.label_names,
            target_transform=stated.load_transform(folder),
        )
        loaded.folder = folder
        return loaded

    @property
    def student_pixel_space(self) -> PixelSpace:
        """The space of real images for networks pre-trained on the set: the stated one, or that of the set."""
        stated = self.provenance.get("student_pixel_space")
        return PixelSpace.from_dict(stated) if stated else self.pixel_space

    @property
    def student_shape(self) -> dict[str, Any]:
        """What makes a student fit the set: `build_student(name, **distilled.student_shape)`."""
        _, channels, _, size = self.images.shape
        return {"num_targets": self.targets.shape[1], "in_chans": channels, "image_size": size}

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        tag: str | None = None,
        token: str | bool | None = None,
        commit_message: str = MESSAGE,
    ) -> str:
        """Publishes the set in a dataset repository: one commit, fetched again and verified, then tagged.

        Args:
            repo_id: `owner/name`, or a name in your own namespace; created when there is none.
            private: Whether a repository created here is private; an existing one must be so already.
            revision: A branch, created when there is none; the main one by default.
            create_pr: Whether to offer the set as a pull request instead.
            tag: Name of the tag; by default `set-` and eight digits made of the contents, none for a pull request.
            token: A Hub token; by default the one of the login.
            commit_message: The commit's title.

        Returns:
            The sha of the commit, which `from_pretrained(repo_id, revision=...)` takes.

        Raises:
            InputError: The licence is refused, no token may write, the repository holds something else or changed
                meanwhile, or the Hub cannot be reached or gives back other bytes than were sent.
        """
        how = {"private": private, "revision": revision, "create_pr": create_pr, "tag": tag}
        with tempfile.TemporaryDirectory(prefix="ssdd-hub-push-") as scratch:
            folder = self.save(Path(scratch, "set"))
            return push_set(folder, repo_id, token=token, message=commit_message, **how).commit

    @classmethod
    def from_pretrained(
        cls, repo_id_or_folder: str | Path, revision: str | None = None, token: str | bool | None = None
    ) -> "DistilledSet":
        """Loads a set from a folder, or else from a dataset repository of the Hub through the client's cache.

        Only the set's own files are fetched, none of which holds code; the tensors are checked against their sha256,
        and a damaged download is fetched once more.

        Args:
            repo_id_or_folder: A folder that exists, or `owner/name`.
            revision: Branch, tag or sha in the repository; a folder has none.
            token: A Hub token; by default the one of the login.

        Raises:
            InputError: There is neither such a folder nor such a repository, or the set is damaged.
        """
        folder = Path(os.path.expanduser(repo_id_or_folder))
        if folder.is_dir():
            if revision is not None:
                raise InputError(f"{repo_id_or_folder} is a folder, which has no revision {revision!r}: leave it out")
            return cls.load(folder)
        return fetch_set(str(repo_id_or_folder), cls.load, revision, token)


def _to_json(value: Any, path: str) -> Any:
    """Returns a value as JSON holds it; `path` is its place in the provenance, for errors."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"keys of {path} must be strings to be stored as JSON; got {key!r}")
        return {key: _to_json(part, f"{path}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part, f"{path}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, str | os.PathLike):
        return redact_tokens(os.fspath(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _to_json(value.item(), path)
    raise InputError(
        f"{path} must be a number, string, list or dictionary to be stored as JSON; got {type(value).__name__}"
    )
