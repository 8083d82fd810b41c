"""Entries of an evaluation: sets, references, and the students pre-trained on each."""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ssdd_hub.bounds import among
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import InputError, require
from ssdd_hub.evaluation.forms import Form, count_for
from ssdd_hub.evaluation.protocols.base import EvaluationProtocol, WholeNetwork
from ssdd_hub.models.build import StudentBuilder
from ssdd_hub.models.pretraining import Pairs, StudentTrainingSettings
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import METADATA_FILE, hash_json, section
from ssdd_hub.runs.inputs import fingerprint_labels
from ssdd_hub.seeds import derive_seed
from ssdd_hub.selection.methods import (
    GAUSSIAN,
    OF_REAL,
    RDED,
    SELECTIONS,
    SelectionSettings,
    choose_rows,
    draw_noise,
    real_images,
)
from ssdd_hub.selection.rded import tile_crops
from ssdd_hub.selection.source import Source, SourcePairs
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.folder import describe_tensor
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.sets.provenance import describe_selection
from ssdd_hub.sets.views import add_views
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.text import show_bytes

_LOG = logging.getLogger(__name__)

NONE, FULL, TEACHER = "none", "full", "teacher"
REFERENCES = (NONE, *SELECTIONS, FULL, TEACHER)
"""No pre-training, selections of as many images as the set has, the whole source, and the teacher's own features."""
_SAMPLED = 256  # images whose bytes tell how many fit


def _no_size(k: int) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, eq=False)
class SetEntry:
    """A set that students are pre-trained on, or a reference in its place."""

    name: str
    pairs: Callable[[int], Pairs | None]  # of student `k`; None for no pre-training
    identity: Callable[[int], Any]  # JSON that names the pairs of student `k` by their content
    same_targets: bool = True  # whether its targets are of the teacher that held-out targets are of
    pixel_space: PixelSpace | None = None  # in which its students see real images; None for the data's own
    network: Callable[[], nn.Module] | None = None  # takes the place of a student and is not pre-trained
    protocols: Collection[str] | None = None  # names of the protocols that apply to it; None for all
    # `images` and `bytes` of what student `k` is pre-trained on; of what fills the bytes of a set, these as `budget`.
    size: Callable[[int], Mapping[str, int]] = _no_size
    use: StudentTrainingSettings | None = None  # how its students are pre-trained; None for as those of the others


@dataclass(frozen=True, eq=False)
class StudentEntry:
    """An architecture that is pre-trained."""

    name: str
    build: Callable[[], nn.Module]  # an untrained network with a head as wide as the targets, by torch's generator
    identity: Any  # JSON
    protocols: Sequence[EvaluationProtocol]

    @classmethod
    def of(
        cls,
        name: str,
        model_args: Mapping[str, Any],
        protocols: Sequence[EvaluationProtocol],
        title: str | None = None,
        **shape: Any,
    ) -> "StudentEntry":
        """Returns a timm model as a candidate, of its timm name or another in the scores.

        `shape` holds `num_targets`, `in_chans` and `image_size`; `model_args` may hold `pretrained` and `features` of
        `build_student` too. An `InputError` says why it cannot be built.
        """
        build = StudentBuilder(name, **shape, **model_args)
        build()
        identity = {"name": name, "model_args": dict(model_args), **shape, **build.weights()}
        return cls(title or name, build, identity, protocols)


def entry_of_set(
    name: str, distilled: DistilledSet, device: torch.device | str, same_targets: bool = True
) -> SetEntry:
    """Returns a set as an entry of an evaluation, for students on a device; every student sees the same pairs.

    They see real images in the space that this set states for its students, whatever other sets state.
    """
    identity = describe_pairs(distilled)
    size, space = size_of(distilled), distilled.student_pixel_space
    pairs = (lambda k: SetPairs(distilled, device), lambda k: identity)
    return SetEntry(name, *pairs, same_targets, space, size=lambda k: size)


def size_of(distilled: DistilledSet) -> dict[str, int]:
    """Returns the number of `images` of a set, and the `bytes` of its pixels, targets and decoder, as stored."""
    return {"images": len(distilled.images), "bytes": sum(distilled.num_bytes().values())}


def entry_of_none(name: str = NONE) -> SetEntry:
    """Returns the reference of no pre-training."""
    return SetEntry(name, _no_pairs, lambda k: NONE)


def first_images(entry: SetEntry) -> torch.Tensor | None:
    """Returns the images of the first student, pixels `(M, C, H, W)` in `[0, 1]`; None where it sees no set."""
    pairs = entry.pairs(0)
    if not isinstance(pairs, SetPairs):
        return None
    distilled = pairs.distilled
    return distilled.pixel_space.denormalise(distilled.images)


def _no_pairs(k: int) -> Pairs | None:
    return None


def describe_pairs(distilled: DistilledSet) -> dict[str, Any]:
    """Returns JSON that names the pairs of a set, and the labels that it may have, by their content."""
    hashes = _hash_tensors(distilled, "images", "targets", "views", "view_targets")
    return {**hashes, "pixel_space": distilled.pixel_space.to_dict(), **_describe_labels(distilled)}


def _describe_labels(owner: DistilledSet | ImageBank) -> dict[str, Any]:
    """Returns what identifies the labels of images and their names; nothing where there are none."""
    if owner.labels is None:
        return {}
    return {"labels": fingerprint_labels(owner.labels), "label_names": owner.label_names}


def describe_matrix(transform: TargetTransform) -> list[str]:
    """Returns the sha256 of the numbers of a transform, which its description leaves out."""
    return list(_hash_tensors(transform, "mean", "scale", "components").values())


def _hash_tensors(owner: object, *names: str) -> dict[str, str]:
    """Returns the sha256 of those tensors of an object that are not None."""
    tensors = {name: getattr(owner, name) for name in names}
    return {name: describe_tensor(tensor)["sha256"] for name, tensor in tensors.items() if tensor is not None}


@dataclass(frozen=True, eq=False)
class Baselines:
    """Baselines; selections of source images among them, one for each student, are kept as distilled sets."""

    folder: Path  # what is there is not selected again
    source: Source
    settings: SelectionSettings
    seed: int
    num_views: int = 0  # views `K` stored with each image of a selection
    view_kind: str = "crops"  # or `rotations`

    def set_entry(self, method: str, count: int, name: str | None = None, form: Form | None = None) -> SetEntry:
        """Returns one of `REFERENCES`, under its own name or another.

        Selections are of `count` images or, in a form, of as many as take `count` bytes.
        """
        name, source = name or method, self.source
        if method == NONE:
            return entry_of_none(name)
        if method == TEACHER:
            about = {**_describe_teacher(source), "pixel_space": source.pixel_space.to_dict()}
            protocols = ("probe", "probe_mkdt", "knn")
            return SetEntry(name, _no_pairs, lambda k: about, network=self._teacher, protocols=protocols)
        if method == FULL:
            pairs = SourcePairs(source.bank, source.targets, source.pixel_space, source.device)
            about = {"full": self._origin, **_describe_labels(source.bank)}
            return SetEntry(name, lambda k: pairs, lambda k: about)
        if method not in SELECTIONS:
            require(among("a reference", method, REFERENCES))

        def load(k: int) -> DistilledSet:
            return DistilledSet.load(self._path(method, count, k, form))

        # Every student of a selection, and every protocol, asks for both.
        @cache
        def identity(k: int) -> dict[str, Any]:
            return describe_pairs(load(k))

        @cache
        def size(k: int) -> dict[str, int]:
            if form:
                # Measured when it was filled: a JPEG is kept as what it decodes to.
                stored = load(k)
                size = stored.provenance["selection"]["stored"]["bytes"]
                return {"images": len(stored.images), "bytes": size, "budget": count}
            # Real images are exact as PNG files, which nobody would store in more bytes.
            return size_of(load(k).compact("uint8", "float32") if method in OF_REAL else load(k))

        return SetEntry(name, lambda k: SetPairs(load(k), source.device), identity, size=size)

    def set_entries(self, methods: Sequence[str], counts: Sequence[int]) -> list[SetEntry]:
        """Returns references beside sets of these numbers of images: a selection for each number, all else once."""
        found = []
        for method in methods:
            sizes = list(dict.fromkeys(counts)) if method in SELECTIONS else [*counts[:1]] or [0]
            found += [self.set_entry(method, n, method if len(sizes) == 1 else f"{method}-{n}") for n in sizes]
        return found

    def set_entries_at_bytes(self, methods: Sequence[str], budgets: Mapping[int, Sequence[Form]]) -> list[SetEntry]:
        """Returns selections in each form that take at most so many bytes, named after method, form and bytes."""
        found, sizes = [], {budget: show_bytes(budget) for budget in budgets}
        if len({*sizes.values()}) < len(sizes):
            sizes = {budget: f"{budget} B" for budget in budgets}
        for method, (budget, forms) in product([name for name in methods if name in OF_REAL], budgets.items()):
            more, names = f" {sizes[budget]}" if len(budgets) > 1 else "", [str(form) for form in forms]
            for form in forms:
                # Sets of as many bytes may store their targets otherwise.
                detail = f" {form.detail}" if names.count(str(form)) > 1 else ""
                found.append(self.set_entry(method, budget, f"{method} {form}{detail}{more}", form))
        return found

    def prepare(
        self,
        methods: Sequence[str],
        counts: Sequence[int],
        seeds: int,
        progress: bool = True,
        budgets: Mapping[int, Sequence[Form]] | None = None,
    ) -> None:
        """Makes the selections that are not there yet, one for each student.

        Args:
            methods: The references; those that are no selections need nothing.
            counts: Numbers of images.
            seeds: Students.
            progress: Whether to show a bar.
            budgets: Forms to be filled by number of bytes.
        """
        chosen = [method for method in methods if method in SELECTIONS]
        jobs: list[tuple[str, int, Form | None]] = [(name, n, None) for name in chosen for n in dict.fromkeys(counts)]
        for budget, forms in (budgets or {}).items():
            jobs += [(name, budget, form) for name in chosen if name in OF_REAL for form in forms]
        todo = [(name, n, k, form) for name, n, form in jobs for k in range(seeds)]
        todo = [job for job in todo if not self._is_whole(self._path(*job))]
        for method, count, k, form in tqdm(todo, "references", unit="set", disable=not (progress and todo)):
            seed = derive_seed(self.seed, f"reference {method}", k)
            selected = self._fill(method, count, seed, form) if form else self._select(method, count, seed)
            selected.save(self._path(method, count, k, form))

    def _select(self, method: str, count: int, seed: int) -> DistilledSet:
        selected = select(method, self.source, count, seed, self.settings)
        if not self.num_views:
            return selected
        if self.source.teacher is None:
            raise InputError("class labels are the targets, and views are made by a teacher: choose another augment")
        parts = (self.source.teacher, self.source.transform, self.num_views, seed, self.view_kind)
        return add_views(selected, *parts)

    def _fill(self, method: str, budget: int, seed: int, form: Form) -> DistilledSet:
        """Selects as many images as take so many bytes in a form, or all that there are to select from."""
        available = len(self.source.bank)
        count = count_for(form, self._select("random", min(_SAMPLED, available), seed), budget)
        if method != "random":
            available = min(available, self.settings.max_images or available)
        available //= real_images(method, 1, self.settings)
        while True:
            count = min(count, available)
            stored, size = form.fit(self._select(method, count, seed), budget)
            if len(stored.images) < count or count == available:
                break
            # Images of this selection take fewer bytes than those at random: all of them fit, and more would.
            count = math.ceil(1.05 * count * budget / size) + 1
        stored.provenance["selection"] = {
            **section(stored.provenance, "selection"),
            "stored": {"form": str(form), "bytes": size},
        }
        return stored

    @staticmethod
    def _is_whole(folder: Path) -> bool:
        if not (folder / METADATA_FILE).is_file():
            return False
        try:
            DistilledSet.load(folder)
        except InputError as error:
            _LOG.warning("%s is damaged (%s): it is made anew", folder, error)
            return False
        return True

    @cached_property
    def _origin(self) -> dict[str, Any]:
        source = self.source
        return {
            "images": source.bank.fingerprint,
            **_describe_teacher(source),
            "transform": [source.transform.describe(), describe_matrix(source.transform)],
            "pixel_space": source.pixel_space.to_dict(),
        }

    def _path(self, method: str, count: int, k: int, form: Form | None = None) -> Path:
        key = [self._origin, method, count, asdict(self.settings), self.seed, k, self.num_views]
        key += [] if self.view_kind == "crops" else [self.view_kind]
        # A selection holds those of its images.
        key += [_describe_labels(self.source.bank)]
        words = [method, *([str(form)] if form else []), str(count), str(k)]
        return self.folder / "-".join([*words, hash_json([*key, *([form.identity] if form else [])])[:8]])

    def _teacher(self) -> nn.Module:
        """Returns the teacher as a network that takes images in the students' pixel space."""
        teacher, space = self.source.teacher, self.source.pixel_space
        if teacher is None:
            raise InputError("class labels are the targets, and there is no teacher: leave out this reference")
        # In a function the teacher is no part of the network, which may be moved and changed without touching it.
        return WholeNetwork(lambda images: teacher(space.denormalise(images)))


def _describe_teacher(source: Source) -> dict[str, Any]:
    if source.teacher is None:
        return {"labels": fingerprint_labels(source.classes)}
    return {"teacher": source.teacher.identity()}


def select(method: str, source: Source, count: int, seed: int, settings: SelectionSettings) -> DistilledSet:
    """Makes a set of source images with their targets, in the order in which they are chosen.

    The same arguments give the same set. Beside what is in memory already, a method holds about 1 GiB at most.

    Args:
        method: One of `SELECTIONS`.
        source: The images and their teacher.
        count: Images `M` of the set: in `[1, N]`, or any number of noise images.
        seed: Seed of all that is drawn.
        settings: See `SelectionSettings`.

    Raises:
        InputError: There is no such method, there are fewer images, targets are not finite, or an expert diverges.
    """
    require(among("the selection", method, SELECTIONS))
    if count < 1:
        raise InputError(f"a selection needs at least 1 image, got {count}")
    bank, facts, labels = source.bank, {"seed": seed, "count": count, **asdict(settings)}, None
    if method == GAUSSIAN:
        images, targets = draw_noise(source, count, seed)
    elif method == RDED:
        pixels, targets, rows = tile_crops(source, count, seed, settings)
        images = source.pixel_space.normalise(pixels / 255)
        labels = None if source.classes is None else source.classes[rows[:, 0]]
        facts["indices_sha256"] = describe_tensor(rows)["sha256"]
    else:
        rows = choose_rows(method, source, count, seed, settings)
        images, targets = source.images(rows), source.targets[rows].cpu()
        labels = None if bank.labels is None else bank.labels[rows]
        facts["indices_sha256"] = describe_tensor(rows)["sha256"]
    return DistilledSet(
        images,
        targets.float(),
        source.pixel_space,
        labels=labels,
        provenance=describe_selection(
            method, facts, bank.provenance, source.teacher, source.transform, source.pixel_space
        ),
        label_names=None if labels is None else bank.label_names,
        target_transform=None if source.transform.kind == "none" else source.transform,
    )
