"""What an evaluation compares: sets, the references beside them, and the students pre-trained on each."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.base import EvaluationProtocol
from ssdd_hub.models.build import build_student
from ssdd_hub.models.pretraining import Pairs
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import METADATA_FILE, hash_json
from ssdd_hub.seeds import derive_seed
from ssdd_hub.selection.methods import GAUSSIAN, SELECTIONS, SelectionSettings, choose_rows, draw_noise
from ssdd_hub.selection.source import Source, SourcePairs
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.folder import describe_tensor
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.sets.provenance import describe_selection
from ssdd_hub.sets.views import add_views
from ssdd_hub.targets.transform import TargetTransform

NONE, FULL, TEACHER = "none", "full", "teacher"
REFERENCES = (NONE, *SELECTIONS, FULL, TEACHER)
"""No pre-training, selections of as many images as the set has, the whole source, and the teacher's own features."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A set that students are pre-trained on, or a reference in its place.

    Attributes:
        name: Its name in the scores.
        pairs: From the number `k` of the student to its pairs; None for no pre-training.
        identity: From `k` to JSON that names these pairs by their content.
        same_targets: Whether its targets are of the teacher that held-out targets are of.
        pixel_space: The space in which its students see real images; None for the data's own.
        network: Returns a network that takes the place of a student and is not pre-trained, such as the teacher.
        protocols: Names of the protocols that it can be asked; None for all.
    """

    name: str
    pairs: Callable[[int], Pairs | None]
    identity: Callable[[int], Any]
    same_targets: bool = True
    pixel_space: PixelSpace | None = None
    network: Callable[[], nn.Module] | None = None
    protocols: Collection[str] | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """An architecture that is pre-trained.

    Attributes:
        name: Its name in the scores.
        build: Returns an untrained network on the CPU, with a head as wide as the targets; called under a seeded
            global generator.
        identity: JSON that names it.
        protocols: What it is asked.
    """

    name: str
    build: Callable[[], nn.Module]
    identity: Any
    protocols: Sequence[EvaluationProtocol]

    @classmethod
    def of(
        cls,
        name: str,
        model_args: Mapping[str, Any],
        protocols: Sequence[EvaluationProtocol],
        title: str | None = None,
        **shape: Any,
    ) -> "Candidate":
        """Returns a timm model as a candidate.

        Args:
            name: Its timm name.
            model_args: Further arguments of the model.
            protocols: What it is asked.
            title: Its name in the scores; by default the timm name.
            **shape: `num_targets`, `in_chans` and `image_size`, as `build_student` takes them.

        Raises:
            InputError: There is no such model, or it takes no such arguments or images.
        """
        build = partial(build_student, name, **shape, **model_args)
        build()
        return cls(title or name, build, {"name": name, "model_args": dict(model_args), **shape}, protocols)


def set_contender(
    name: str, distilled: DistilledSet, device: torch.device | str, same_targets: bool = True
) -> Contender:
    """Returns a set as a contender; every student sees the same pairs.

    Args:
        name: Its name in the scores.
        distilled: The set.
        device: Where the students are.
        same_targets: Whether its targets are of the teacher that held-out targets are of.
    """
    identity = describe_pairs(distilled)
    return Contender(name, lambda k: SetPairs(distilled, device), lambda k: identity, same_targets)


def describe_pairs(distilled: DistilledSet) -> dict[str, Any]:
    """Returns what names the pairs of a set by their content, as JSON."""
    tensors = {name: getattr(distilled, name) for name in ("images", "targets", "views", "view_targets")}
    hashes = {name: describe_tensor(tensor)["sha256"] for name, tensor in tensors.items() if tensor is not None}
    return {**hashes, "pixel_space": distilled.pixel_space.to_dict()}


def describe_matrix(transform: TargetTransform) -> list[str]:
    """Returns the sha256 of the numbers of a transform, which its description leaves out."""
    tensors = (transform.mean, transform.scale, transform.components)
    return [describe_tensor(tensor)["sha256"] for tensor in tensors if tensor is not None]


@dataclass(frozen=True, eq=False)
class References:
    """Selections of source images with their teacher's targets, one for each student, kept as distilled sets.

    Attributes:
        folder: Where they are kept; what is there is not selected again.
        source: The source images and their teacher.
        settings: Of the selections.
        seed: Seed of the run.
        num_views: Views `K` that are stored with each image of a selection.
    """

    folder: Path
    source: Source
    settings: SelectionSettings
    seed: int
    num_views: int = 0

    def contender(self, method: str, count: int, name: str | None = None) -> Contender:
        """Returns one of `REFERENCES` as a contender.

        Args:
            method: Its kind.
            count: Images `M` of a selection.
            name: Its name in the scores; by default its kind.

        Raises:
            InputError: There is no such reference.
        """
        name, source = name or method, self.source
        if method == NONE:
            return none_contender(name)
        if method == TEACHER:
            return teacher_contender(source, name)
        if method == FULL:
            pairs = SourcePairs(source.bank, source.targets, source.pixel_space, source.device)
            return Contender(name, lambda k: pairs, lambda k: {"full": self._origin})
        if method not in SELECTIONS:
            raise InputError(f"there is no reference {method!r}: use some of {', '.join(REFERENCES)}")
        return Contender(name, partial(self._pairs, method, count), partial(self._identity, method, count))

    def contenders(self, methods: Sequence[str], counts: Sequence[int]) -> list[Contender]:
        """Returns references beside sets of these numbers of images: a selection for each number, all else once.

        Args:
            methods: Some of `REFERENCES`.
            counts: Images `M` of the sets.

        Raises:
            InputError: There is no such reference.
        """
        found = []
        for method in methods:
            sizes = list(dict.fromkeys(counts)) if method in SELECTIONS else counts[:1]
            names = [method if len(sizes) == 1 else f"{method}-{size}" for size in sizes]
            found += [self.contender(method, size, name) for size, name in zip(sizes, names, strict=True)]
        return found

    def prepare(self, methods: Sequence[str], counts: Sequence[int], seeds: int, progress: bool = True) -> None:
        """Makes the selections that are not there yet: for each kind and number of images, one for each student."""
        sizes, chosen = dict.fromkeys(counts), [method for method in methods if method in SELECTIONS]
        todo = [(method, count, k) for method in chosen for count in sizes for k in range(seeds)]
        todo = [job for job in todo if not (self._path(*job) / METADATA_FILE).is_file()]
        for method, count, k in tqdm(todo, "references", unit="set", disable=not (progress and todo)):
            seed = derive_seed(self.seed, f"reference {method}", k)
            selected = select(method, self.source, count, seed, self.settings)
            if self.num_views:
                selected = add_views(selected, self.source.teacher, self.source.transform, self.num_views, seed)
            selected.save(self._path(method, count, k))

    @cached_property
    def _origin(self) -> dict[str, Any]:
        source = self.source
        return {
            "images": source.bank.fingerprint,
            "teacher": source.teacher.describe(),
            "transform": [source.transform.describe(), describe_matrix(source.transform)],
            "pixel_space": source.pixel_space.to_dict(),
        }

    def _path(self, method: str, count: int, k: int) -> Path:
        key = [self._origin, method, count, asdict(self.settings), self.seed, k, self.num_views]
        return self.folder / f"{method}-{count}-{k}-{hash_json(key)[:8]}"

    def _pairs(self, method: str, count: int, k: int) -> Pairs:
        return SetPairs(DistilledSet.load(self._path(method, count, k)), self.source.device)

    def _identity(self, method: str, count: int, k: int) -> Any:
        return describe_pairs(DistilledSet.load(self._path(method, count, k)))


def none_contender(name: str = NONE) -> Contender:
    """Returns the reference of no pre-training."""

    def _no_pairs(k: int) -> Pairs | None:
        return None

    return Contender(name, _no_pairs, lambda k: NONE)


def teacher_contender(source: Source, name: str = TEACHER) -> Contender:
    """Returns the teacher's own features as a contender: what a student would be worth that had learnt all of them."""

    def _no_pairs(k: int) -> Pairs | None:
        return None

    def _network() -> nn.Module:
        return _TeacherNetwork(source)

    identity = {"teacher": source.teacher.describe(), "pixel_space": source.pixel_space.to_dict()}
    return Contender(name, _no_pairs, lambda k: identity, network=_network, protocols=("probe", "probe_mkdt", "knn"))


class _TeacherNetwork(nn.Module):
    """The teacher as a network that is fed with images in the students' pixel space."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        # In a tuple the teacher is no part of this network, which may be moved and changed without touching it.
        self.parts = (source.teacher, source.pixel_space)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images `(n, C, H, W)` of the students' space to the teacher's features `(n, D)`."""
        teacher, space = self.parts
        features: Tensor = teacher(space.denormalise(images))
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the features: there is no head."""
        return features


def select(method: str, source: Source, count: int, seed: int, settings: SelectionSettings) -> DistilledSet:
    """Makes a set of source images with their teacher's targets, in the order in which they are chosen.

    The same arguments give the same set. Beside what is in memory already, a method holds about 1 GiB at most.

    Args:
        method: One of `SELECTIONS`.
        source: The images and their teacher.
        count: Images `M` of the set: in `[1, N]`, or any number of noise images.
        seed: Decides whatever is drawn.
        settings: See `SelectionSettings`.

    Raises:
        InputError: There is no such method, there are fewer images, targets are not finite, or an expert diverges.
    """
    if method not in SELECTIONS:
        raise InputError(f"there is no selection {method!r}: use one of {', '.join(SELECTIONS)}")
    if count < 1:
        raise InputError(f"a selection needs at least 1 image, got {count}")
    rows = None
    if method == GAUSSIAN:
        images, targets = draw_noise(source, count, seed)
    else:
        rows = choose_rows(method, source, count, seed, settings)
        images, targets = source.images(rows), source.targets[rows].cpu()
    labels = None if rows is None or source.bank.labels is None else source.bank.labels[rows]
    chosen = {} if rows is None else {"indices_sha256": describe_tensor(rows)["sha256"]}
    facts = {"seed": seed, "count": count, **asdict(settings), **chosen}
    parts = (source.bank.source, source.teacher, source.transform, source.pixel_space)
    return DistilledSet(
        images,
        targets.float(),
        source.pixel_space,
        labels=labels,
        provenance=describe_selection(method, facts, *parts),
        label_names=None if labels is None else source.bank.label_names,
        target_transform=None if source.transform.kind == "none" else source.transform,
    )
