"""The distilled set: images, targets, the pixel space that gives the images a meaning, and where they come from."""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor
from torch.utils.data import TensorDataset

from ssdd_hub import storage
from ssdd_hub.cards import render_dataset_card
from ssdd_hub.errors import InputError
from ssdd_hub.machine import describe_versions
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.set_checks import check_labels, check_tensors, check_views
from ssdd_hub.target_transform import TargetTransform

_NOT_FOUND = (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError, LocalEntryNotFoundError)
_HUB_TOKEN = re.compile(r"\b(?:hf|api_org)_(?:oauth_|jwt_)?[A-Za-z0-9]{16,}[\w.-]*")


@dataclass(eq=False, repr=False)
class DistilledSet:
    """M images with a target vector each, on which a network is pre-trained by regression.

    Attributes:
        images: `(M, C, H, W)`, float32, finite, in `pixel_space`; `C` is 1 or 3. Their pixels may lie outside [0, 1].
        targets: `(M, D)`, float32, finite.
        pixel_space: The space of the images.
        labels: `(M,)`, int64, or None. With `label_names`, -1 stands for an unknown class.
        provenance: How the set was made, as JSON: tuples become lists, paths and arrays of one value become plain
            values, numbers that are not finite become None, and Hub tokens are blotted out.
        label_names: Names of the classes, or None.
        target_transform: What made the targets of the teacher's features: its `inverse` maps what a student gives back
            to features. None when the targets are features.
        views: `(M, K, 3)`, int64, or None: crop offsets and flip of `K` views of each image, as from
            `augment.draw_views`. Black fills up what a crop lacks.
        view_targets: `(M, K, D)`, float32, finite: the targets of the views. Views have targets, and only they.

    Raises:
        InputError: The parts do not fit together, or hold NaN or infinite values.
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

    def __post_init__(self) -> None:
        self.images, self.targets = self.images.detach(), self.targets.detach()
        check_tensors(self.images, self.targets, self.pixel_space)
        check_labels(self.labels, self.label_names, len(self.images))
        self.view_targets = None if self.view_targets is None else self.view_targets.detach()
        check_views(self.views, self.view_targets, tuple(self.targets.shape))
        if self.target_transform is not None and self.target_transform.width != self.targets.shape[1]:
            widths = f"{self.target_transform.width} and {self.targets.shape[1]}"
            raise InputError(f"the target transform must give targets of the width of the set's; got {widths}")
        self.provenance = _to_json(self.provenance, "provenance")

    def __repr__(self) -> str:
        images, targets = tuple(self.images.shape), tuple(self.targets.shape)
        return f"DistilledSet(images={images}, targets={targets}, method={self.provenance.get('method')!r})"

    def as_tensor_dataset(self) -> TensorDataset:
        """Returns the pairs `(image (C, H, W), target (D,))` for a `DataLoader`."""
        return TensorDataset(self.images, self.targets)

    def save(self, folder: str | Path) -> Path:
        """Writes a folder that `datasets.load_dataset(folder, split="train")` reads.

        The folder appears whole or not at all; a distilled set that was there is replaced. Package versions join the
        provenance on disk when it states none.

        Args:
            folder: The place, free or taken by a distilled set; its parents are created.

        Raises:
            InputError: The place is taken by something other than a distilled set.
        """
        # `datasets` cannot load ".", so the card names the folder as seen from its parent.
        return self._save(Path(folder), location=Path(folder).resolve().name)

    def _save(self, folder: Path, location: str) -> Path:
        optional = {"labels": self.labels, "views": self.views, "view_targets": self.view_targets}
        tensors = {"images": self.images, "targets": self.targets}
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        pixels = self.pixel_space.denormalise(self.images)
        metadata = {
            "format_version": storage.FORMAT_VERSION,
            "tensors": {name: storage.describe_tensor(tensor) for name, tensor in tensors.items()},
            "pixel_space": self.pixel_space.to_dict(),
            **storage.measure_range(pixels),
            "label_names": self.label_names,
            "provenance": {"versions": describe_versions(), **_to_json(self.provenance, "provenance")},
        }
        with storage.replaced_folder(folder) as new:
            storage.write_tensors(new, tensors, pixels, self.label_names)
            if self.target_transform is not None:
                path = new / storage.TRANSFORM_FILE
                metadata["target_transform"] = {"sha256": self.target_transform.save(path)}
            storage.write_metadata(new, metadata)
            (new / storage.CARD_FILE).write_text(render_dataset_card(metadata, location), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "DistilledSet":
        """Reads a folder that `save` wrote and checks the tensors against their sha256.

        Raises:
            InputError: The folder is missing, damaged, or no distilled set.
        """
        folder = Path(folder)
        metadata = storage.read_metadata(folder)
        try:
            pixel_space = PixelSpace.from_dict(metadata["pixel_space"])
            names, provenance = list(metadata["label_names"] or ()), dict(metadata["provenance"])
            stated = storage.Stated.of(metadata)
            transform_sha256 = metadata["target_transform"]["sha256"] if "target_transform" in metadata else None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / storage.METADATA_FILE} is incomplete ({error!r}): fetch or make the set again"
            ) from error
        tensors = storage.read_tensors(folder, stated)
        transform = None
        if transform_sha256 is not None:
            transform = TargetTransform.load(folder / storage.TRANSFORM_FILE, transform_sha256)
        return cls(
            tensors["images"],
            tensors["targets"],
            pixel_space,
            labels=tensors.get("labels"),
            provenance=provenance,
            label_names=names or None,
            target_transform=transform,
            views=tensors.get("views"),
            view_targets=tensors.get("view_targets"),
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload the distilled set",
    ) -> str:
        """Uploads the folder that `save` writes to a dataset repository, in one commit.

        Args:
            repo_id: `owner/name`; created when there is none.
            private: Whether a repository created here is private.
            revision: An existing branch; the main one by default.
            token: A Hub token; by default the one of the login.
            commit_message: The commit's title.

        Returns:
            The sha of the commit, which `from_pretrained(repo_id, revision=...)` takes.
        """
        api = HfApi(token=token)
        # The full id, also when only a name was given.
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as scratch:
            folder = self._save(Path(scratch, "set"), location=repo_id)
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            operations = [
                CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=path)
                for path in paths
            ]
            commit = api.create_commit(
                repo_id, operations, repo_type="dataset", revision=revision, commit_message=commit_message
            )
        return commit.oid

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_folder: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "DistilledSet":
        """Loads a set from a folder, or else from a dataset repository of the Hub.

        Args:
            repo_id_or_folder: A folder that exists, or `owner/name`.
            revision: Branch, tag or sha in the repository; a folder has none.
            token: A Hub token; by default the one of the login.

        Raises:
            InputError: There is neither such a folder nor such a repository, or the set is damaged.
        """
        if Path(repo_id_or_folder).is_dir():
            return cls.load(repo_id_or_folder)
        try:
            folder = snapshot_download(
                str(repo_id_or_folder),
                repo_type="dataset",
                revision=revision,
                token=token,
                allow_patterns=[storage.CARD_FILE, storage.METADATA_FILE, storage.TRANSFORM_FILE, "data/*.parquet"],
            )
        except _NOT_FOUND as error:
            raise InputError(
                f"{str(repo_id_or_folder)!r} (revision {revision or 'main'}) is neither a folder nor a dataset "
                "found on the Hub: check the spelling and the connection, and log in if it is private"
            ) from error
        return cls.load(folder)


def blot_tokens(text: str) -> str:
    """Returns text in which `<token>` stands for each access token of the Hub."""
    return _HUB_TOKEN.sub("<token>", text)


def _to_json(value: Any, path: str) -> Any:
    """Returns the value as JSON holds it; `path` says where in the provenance it stands."""
    if isinstance(value, Mapping):
        strangers = [key for key in value if not isinstance(key, str)]
        if strangers:
            raise InputError(f"keys of {path} must be strings to be stored as JSON; got {strangers[0]!r}")
        return {key: _to_json(part, f"{path}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part, f"{path}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, str | os.PathLike):
        return blot_tokens(os.fspath(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if value - value == 0 else None
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _to_json(value.item(), path)
    raise InputError(
        f"{path} must be a number, string, list or dictionary to be stored as JSON; got {type(value).__name__}"
    )
