"""The distilled set: images, targets, the pixel space that gives the images a meaning, and where they come from."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

from ssdd_hub.errors import InputError
from ssdd_hub.files import replaced_folder
from ssdd_hub.hub.download import fetch_set
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.plain_files import require_plain
from ssdd_hub.record import CARD_FILE, FORMAT_VERSION, METADATA_FILE, TRANSFORM_FILE, read_metadata, write_metadata
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.sets import parquet
from ssdd_hub.sets.card import render_dataset_card
from ssdd_hub.sets.folder import COLUMNS, Stated
from ssdd_hub.sets.publish import MESSAGE, push_set
from ssdd_hub.sets.tensor_checks import check_student_space, check_tensors
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.text import blot_tokens


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
        self.view_targets = None if self.view_targets is None else self.view_targets.detach()
        check_tensors(self._tensors(), self.pixel_space, self.label_names)
        if self.target_transform is not None and self.target_transform.width != self.targets.shape[1]:
            widths = f"{self.target_transform.width} and {self.targets.shape[1]}"
            raise InputError(f"the target transform must give targets of the width of the set's; got {widths}")
        self.provenance = _to_json(self.provenance, "provenance")
        check_student_space(self.provenance.get("student_pixel_space"), self.pixel_space.channels)

    def __repr__(self) -> str:
        images, targets = tuple(self.images.shape), tuple(self.targets.shape)
        return f"DistilledSet(images={images}, targets={targets}, method={self.provenance.get('method')!r})"

    def _tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that there are, by name."""
        tensors = {name: getattr(self, name) for name in COLUMNS}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

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
        tensors = self._tensors()
        metadata = {
            "format_version": FORMAT_VERSION,
            "tensors": parquet.describe_tensors(tensors),
            "pixel_space": self.pixel_space.to_dict(),
            **parquet.measure_range(self.images, self.pixel_space),
            "label_names": self.label_names,
            "provenance": {"versions": describe_versions(), **_to_json(self.provenance, "provenance")},
        }
        with replaced_folder(folder) as new:
            parquet.write_tensors(new, tensors, self.pixel_space, self.label_names)
            if self.target_transform is not None:
                path = new / TRANSFORM_FILE
                metadata["target_transform"] = {"sha256": self.target_transform.save(path)}
            write_metadata(new, metadata)
            (new / CARD_FILE).write_text(render_dataset_card(metadata, location), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "DistilledSet":
        """Reads a folder that `save` wrote and checks the tensors against their sha256.

        Raises:
            InputError: The folder is missing, damaged, or no distilled set.
        """
        folder = Path(folder)
        metadata = read_metadata(folder)
        try:
            pixel_space = PixelSpace.from_dict(metadata["pixel_space"])
            names, provenance = list(metadata["label_names"] or ()), dict(metadata["provenance"])
            if not all(isinstance(name, str) for name in names):
                raise TypeError(f"label_names must be texts, got {str(names)[:80]}")
            stated = Stated.of(metadata)
            # As text, since None would mean that there is none.
            transform_sha256 = str(metadata["target_transform"]["sha256"]) if "target_transform" in metadata else None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / METADATA_FILE} is incomplete ({error!r}): fetch or make the set again"
            ) from error
        tensors = parquet.read_tensors(folder, stated)
        transform = None
        if transform_sha256 is not None:
            require_plain(folder, [TRANSFORM_FILE])
            transform = TargetTransform.load(folder / TRANSFORM_FILE, transform_sha256)
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

    @property
    def student_pixel_space(self) -> PixelSpace:
        """The space of real images for networks pre-trained on the set: the stated one, or that of the set."""
        stated = self.provenance.get("student_pixel_space")
        return PixelSpace.from_dict(stated) if stated else self.pixel_space

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
            private: Whether a repository created here is private; one that is there must be so already.
            revision: A branch, created when there is none; the main one by default.
            create_pr: Whether to offer the set as a pull request instead.
            tag: Name of the tag; by default `set-` and eight digits made of the contents, none for a pull request.
            token: A Hub token; by default the one of the login.
            commit_message: The commit's title.

        Returns:
            The sha of the commit, which `from_pretrained(repo_id, revision=...)` takes.

        Raises:
            InputError: The licence will not do, there is no token that may write, the repository holds something else,
                somebody else published meanwhile, or the Hub cannot be reached or gives back what was not sent.
        """
        how = {"private": private, "revision": revision, "create_pr": create_pr, "tag": tag}
        with tempfile.TemporaryDirectory(prefix="ssdd-hub-push-") as scratch:
            folder = self._save(Path(scratch, "set"), location=repo_id)
            return push_set(folder, repo_id, token=token, message=commit_message, **how).commit

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_folder: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "DistilledSet":
        """Loads a set from a folder, or else from a dataset repository of the Hub.

        What was fetched before is taken from the client's cache, also when the Hub cannot be reached. Nothing but the
        set's own files is fetched, none of them holds code, and the tensors are checked against their sha256; a
        damaged download is fetched once more.

        Args:
            repo_id_or_folder: A folder that exists, or `owner/name`.
            revision: Branch, tag or sha in the repository; a folder has none.
            token: A Hub token; by default the one of the login.

        Raises:
            InputError: There is neither such a folder nor such a repository, or the set is damaged.
        """
        if Path(repo_id_or_folder).is_dir():
            if revision is not None:
                raise InputError(f"{repo_id_or_folder} is a folder, which has no revision {revision!r}: leave it out")
            return cls.load(repo_id_or_folder)
        return fetch_set(str(repo_id_or_folder), cls.load, revision, token)


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
