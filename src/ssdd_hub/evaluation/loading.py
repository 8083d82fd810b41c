"""What an evaluation compares: sets, students and references, and the images that they are measured on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ssdd_hub.data.bank import DataSettings, draw_heldout, load_images
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.entries import TEACHER, Baselines, SetEntry, StudentEntry, entry_of_set, size_of
from ssdd_hub.evaluation.forms import Form
from ssdd_hub.evaluation.inputs import (
    ABSENT,
    check_alike,
    check_asked_images,
    check_stated_images,
    check_stated_teacher,
    has_targets_of,
    load_dataset,
    load_set,
    name_sets,
)
from ssdd_hub.evaluation.protocols.base import EvaluationProtocol, LabelledProtocol
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.pretraining import StudentTrainingSettings, check_batches
from ssdd_hub.record import section
from ssdd_hub.selection.methods import OF_REAL, SELECTIONS, SelectionSettings, check_experts, needs_expert, real_images
from ssdd_hub.selection.source import Source
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.statements import of_labels, stated_student
from ssdd_hub.targets.bank import FeatureBank
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.labels import LabelCache, OneHot, with_classes
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher, TeacherSettings, build_teacher
from ssdd_hub.text import show


def load_sets(places: Sequence[str], foreign: Mapping[str, Any]) -> dict[str, DistilledSet]:
    """Loads sets of one shape, by names that tell them apart; see `load_set`."""
    loaded = [load_set(place, foreign) for place in places]
    sets = dict(zip(name_sets(list(places)), loaded, strict=True))
    check_alike(sets)
    return sets


@dataclass(frozen=True, eq=False)
class Loader:
    """Loads what sets are measured with and on.

    Attributes:
        first: The first set; all others are of its shape.
        given: Names of settings that are given: all else must be as the first set states it.
        seed: Seed of the run.
        most: Held-out images of each dataset at most.
        accelerator: Device and processes.
    """

    first: DistilledSet
    given: Collection[str]
    seed: int
    most: int
    accelerator: Accelerator

    @property
    def labelled(self) -> bool:
        """Whether the targets of the first set are class labels, of which there is no teacher."""
        return of_labels(self.first.provenance)

    def source(self, settings: DataSettings) -> RealData | None:
        """Returns the images that the sets were made of; None where they are not to be had."""
        first = self.first
        if settings.name == ABSENT:
            return None
        check_asked_images(first, settings)
        bank, heldout = load_images(settings, self.seed, self.accelerator.is_main_process)
        if self.labelled:
            bank, heldout = with_classes(bank, settings), with_classes(heldout, settings)
        if (bank.num_channels, bank.image_size) != (first.images.shape[1], first.images.shape[3]):
            raise InputError(f"the source images are {tuple(bank.pixels.shape[1:])}, those of the set {first}")
        if "source.name" not in self.given:
            check_stated_images(first, settings, self.seed, bank, heldout)
        heldout = draw_heldout(heldout, self.most, self.seed)
        name, space = Path(settings.name).name, first.student_pixel_space
        return RealData(name, bank, heldout, space, self.accelerator.device)

    def teacher(self, settings: TeacherSettings) -> Teacher | None:
        """Returns the teacher that the targets are of; None where there is none, or it is not to be had."""
        if settings.backbone == ABSENT:
            return None
        if self.labelled:
            raise InputError("the targets of the set are class labels, of no teacher: leave out --teacher")
        teacher = build_teacher(settings.backbone, **settings.building())
        check_stated_teacher(self.first, teacher, self.given)
        transform = self.first.target_transform
        if transform is not None and len(transform.mean) != teacher.feature_dim:
            raise InputError(
                f"the targets of the set are made of {len(transform.mean)} features, and the teacher {teacher.name} "
                f"gives {teacher.feature_dim} of images of {teacher.input_size} pixels: leave out "
                "--teacher.input-size and what else of --teacher differs from the set's own, or give "
                "--teacher.backbone none"
            )
        return teacher.to(self.accelerator.device)

    def datasets(self, names: Sequence[str], args: Mapping[str, Any], own: RealData | None) -> list[RealData]:
        """Returns what is measured on; `source`, the images that the sets were made of, comes first."""
        device = self.accelerator.device
        names = list(dict.fromkeys(names))
        titles = [own.name if name == "source" and own else Path(name).name for name in names]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise InputError(
                f"--datasets must differ in the last part of their names, by which their scores are told apart, and "
                f"{' and '.join(twice)} is there twice: call one by a name of its own, --datasets OTHER "
                "--dataset-args.OTHER.name FOLDER"
            )
        found = [own] if own is not None and "source" in names else []
        for name in names:
            if name != "source":
                found.append(load_dataset(name, args.get(name, {}), self.first, self.most, self.seed, device))
        if not found:
            raise InputError("there is nothing to measure on: give --source.name, or --datasets that are datasets")
        return found

    def targets(self, own: RealData, teacher: Teacher | None, folder: Path) -> tuple[Source, RealData]:
        """Computes the targets of source and held-out images, a teacher's features kept in a folder.

        Without a teacher they are of classes, and no held-out targets are known.
        """
        if teacher is None:
            classes = LabelCache(own.train, self.accelerator).features(own.train)
            transform = self._transform(classes)
            source = Source(own.train, Targets(classes, transform), None, transform, own.pixel_space, own.device)
            return source, own
        cache = FeatureCache(teacher, self.accelerator, folder)
        features, heldout = cache.features(own.train), cache.features(own.heldout)
        transform = self._transform(features)
        parts = (Targets(features, transform), teacher, transform, own.pixel_space, own.device)
        return Source(own.train, *parts), replace(own, heldout_targets=Targets(heldout, transform)[:])

    def _transform(self, features: FeatureBank | OneHot) -> TargetTransform:
        return self.first.target_transform or TargetTransform.fit("none", features)

    def candidates(
        self, students: Sequence[str], args: Mapping[str, Any], protocols: Sequence[EvaluationProtocol]
    ) -> list[StudentEntry]:
        """Returns the students; `own` is what the first set was distilled with.

        Raises:
            InputError: One cannot be built, or `own` started from stored weights, which a record does not choose.
        """
        own = stated_student(self.first.provenance) or {"name": "ssdd_convnet3", "model_args": {}}
        weights = section(self.first.provenance, "student").get("weights")
        if weights and "own" in students:
            raise InputError(
                f"the students of the set started from the weights {show(weights)}: name these in place of own, "
                "--students NAME, with {pretrained: true} among the --student-args of that name"
            )
        named = {name: (name, args.get(name, {})) for name in students}
        if named.pop("own", None):
            title = f"own {own['name']}" if own["name"] in named else own["name"]
            named = {title: (own["name"], own["model_args"]), **named}
        shape = self.first.student_shape
        return [StudentEntry.of(*each, protocols, title, **shape) for title, each in named.items()]

    def variants(self, variants: Sequence[Mapping[str, Any]], protocol: EvaluationProtocol) -> list[StudentEntry]:
        """Returns the architectures to be ranked, which one protocol scores."""
        found = []
        for variant in variants:
            args = {key: value for key, value in variant.items() if key != "name"}
            title = f"{variant['name']} {' '.join(f'{key}={value}' for key, value in args.items())}"
            found.append(StudentEntry.of(variant["name"], args, [protocol], title, **self.first.student_shape))
        return found

    def set_entries(self, sets: Mapping[str, DistilledSet], source: Source | None) -> list[SetEntry]:
        """Returns the sets; without a source nothing is known of their targets."""
        found = []
        for name, distilled in sets.items():
            same = source is not None and has_targets_of(distilled, source.teacher, self.first.target_transform)
            found.append(entry_of_set(name, distilled, self.accelerator.device, same))
        return found


def check_references(
    methods: Collection[str], counts: Sequence[int], own: RealData, settings: SelectionSettings, labelled: bool = False
) -> None:
    """Refuses references of more images than there are, noise aside, and experts that cannot be trained.

    Class labels have no teacher, so that this is no reference of `labelled` sets.
    """
    if labelled and TEACHER in methods:
        raise InputError("the targets of the set are class labels, of no teacher: leave out the reference teacher")
    if any(needs_expert(method, labelled) for method in methods):
        check_experts(settings, len(own.train), in_chans=own.train.num_channels, image_size=own.train.image_size)
    chosen = [name for name in methods if name in OF_REAL]
    least = max((real_images(name, max(counts), settings) for name in chosen), default=0)
    if {*chosen} - {"random"} and (settings.max_images or least) < least:
        raise InputError(
            f"--selection.max-images must be at least the {least} to be chosen, got {settings.max_images}"
        )
    if chosen and least > len(own.train):
        raise InputError(
            f"{least} images of the source are to be selected for the references {', '.join(chosen)}, and there are "
            f"{len(own.train)}: raise --source.max-images, or leave these references out"
        )


def check_students(students: Sequence[StudentEntry], use: StudentTrainingSettings, size: int) -> None:
    """Refuses a student that the smallest batches of its trainings after a set of `size` images cannot train."""
    for student in students:
        batches = {f"--student-training.batch-size {use.batch_size} on a set of {size}": min(use.batch_size, size)}
        for protocol in student.protocols:
            batches |= protocol.batches(size) if isinstance(protocol, LabelledProtocol) else {}
        shape = {name: student.identity[name] for name in ("in_chans", "image_size")}
        try:
            check_batches(student.build(), batches, **shape)
        except InputError as error:
            raise InputError(f"{student.name}: {error}") from error


def check_views(sets: Mapping[str, DistilledSet], use: StudentTrainingSettings) -> None:
    """Refuses sets without stored views where students are to be trained on views."""
    without = [name for name, distilled in sets.items() if not SetPairs(distilled).num_views]
    if use.augment == "views" and without:
        raise InputError(
            f"student_training.augment is views, and {', '.join(without)} has none: make some with "
            "ssdd_hub.add_views, or give --student-training.augment none, flip or crop-flip"
        )


def prepare_references(
    references: Baselines,
    methods: Sequence[str],
    counts: Sequence[int],
    seeds: int,
    accelerator: Accelerator,
    budgets: Mapping[int, Sequence[Form]] | None = None,
) -> list[SetEntry]:
    """Returns references; one process makes the selections that are not there yet, and the others wait.

    Args:
        references: What makes them.
        methods: Their kinds.
        counts: Numbers of images of selections.
        seeds: Students.
        accelerator: The processes.
        budgets: Forms of selections to be filled by number of bytes, beside those of numbers of images.
    """
    if accelerator.is_main_process:
        references.prepare(methods, counts, seeds, budgets=budgets)
    accelerator.wait_for_everyone()
    # Without numbers of images there are none of them, but all other references.
    others = [method for method in methods if counts or method not in SELECTIONS]
    return references.set_entries(others, counts) + references.set_entries_at_bytes(methods, budgets or {})


def budgets_of(
    sets: Mapping[str, DistilledSet], forms: Sequence[str], budgets: Sequence[int] = ()
) -> dict[int, list[Form]]:
    """Returns the bytes of each set, or the smallest of some budgets that holds it, with the forms to fill as many.

    Targets are stored as the set's are; of sets of as many bytes that store them otherwise, each has forms of its own,
    and of those in one of the budgets the first.

    Raises:
        InputError: The images cannot be stored in a form, or a set is larger than all budgets.
    """
    found = dict[int, dict[Form, None]]()
    for name, distilled in sets.items():
        size = size_of(distilled)["bytes"]
        size = min((each for each in budgets if each >= size), default=size)
        if budgets and size in found:
            continue
        if budgets and size not in budgets:
            raise InputError(f"{name} takes {size} bytes, more than all --budgets, {max(budgets)} at most: add one")
        one = DistilledSet(distilled.images[:1], distilled.targets[:1], distilled.pixel_space)
        for form in (Form.of(text, distilled) for text in forms):
            try:
                form.store(one)
            except InputError as error:
                raise InputError(f"--forms {form} does not fit {name}: {error}; choose another form") from error
            found.setdefault(size, {})[form] = None
    return {size: [*each] for size, each in found.items()}
