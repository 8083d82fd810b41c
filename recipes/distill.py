"""Distils an image dataset: images, teacher, targets, distilled set, first evaluation, report.

accelerate launch recipes/distill.py
accelerate launch recipes/distill.py --config recipes/configs/cifar100.yaml --output runs/cifar100
accelerate launch recipes/distill.py --method krr_st --parameterisation pixels --init kmeans

The first runs on scikit-learn's embedded digits and needs nothing else. Started again, a run goes on where it stopped.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from ssdd_hub import DistilledSet, InputError, PixelSpace
from ssdd_hub.bounds import among
from ssdd_hub.data import DataSettings, draw_heldout, load_images
from ssdd_hub.distill import Distiller, DistillerSettings, Pairs, PoolSettings, Problem, build_batches, build_engine
from ssdd_hub.distill.heldout import HeldoutError
from ssdd_hub.distill.loop import distil
from ssdd_hub.distill.methods import METHODS, build_method, own_networks_check
from ssdd_hub.distill.parameterisations import PARAMETERISATIONS, build_parameterisation
from ssdd_hub.distill.parameterisations.base import Real
from ssdd_hub.distill.parameterisations.views import Views
from ssdd_hub.distill.real import real_of
from ssdd_hub.distill.registry import MethodSettings, ParameterisationSettings
from ssdd_hub.distill.sizes import check_sizes, plan_memory
from ssdd_hub.errors import require
from ssdd_hub.estimates import time_distilling
from ssdd_hub.evaluation import (
    Baselines,
    EvaluateSettings,
    Evaluation,
    RealData,
    ScoreStore,
    StudentEntry,
    entry_of_set,
)
from ssdd_hub.evaluation.entries import first_images
from ssdd_hub.evaluation.evaluation import Results
from ssdd_hub.evaluation.loading import prepare_references
from ssdd_hub.evaluation.protocols import (
    Accuracy,
    AccuracySettings,
    BackboneProbe,
    BackboneProbeSettings,
    EvaluationProtocol,
    LinearProbe,
    ProbeSettings,
    TeacherError,
)
from ssdd_hub.hub.licences import derive_licence
from ssdd_hub.models import StudentBuilder, StudentSettings, StudentTrainingSettings
from ssdd_hub.models.pretraining import check_batches
from ssdd_hub.record import shareable_name
from ssdd_hub.runs import RunSettings, describe_machine, report_errors
from ssdd_hub.runs.begin import begin
from ssdd_hub.runs.estimate import as_sized, estimate, minutes_checks
from ssdd_hub.runs.folder import folder_name
from ssdd_hub.runs.inputs import describe_images
from ssdd_hub.runs.launch import keeping
from ssdd_hub.runs.trackers import start_trackers, track_scores
from ssdd_hub.selection import INITS, SelectionSettings, Source, start_from
from ssdd_hub.selection.methods import RDED, check_experts, needs_expert, real_images
from ssdd_hub.selection.start import MIXED, NOISE
from ssdd_hub.sets import describe_run, describe_training
from ssdd_hub.sets.origin import describe_origin
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.sets.report import keep_set, save_distillation
from ssdd_hub.sets.storage import StorageSettings, pack
from ssdd_hub.settings import parse_config, to_dict
from ssdd_hub.statements import CLASS_LABELS
from ssdd_hub.targets import FeatureCache, Targets, TargetSettings
from ssdd_hub.targets.compute import StandInCache, compute_targets
from ssdd_hub.targets.labels import LABELS, LabelCache, check_classes, with_classes
from ssdd_hub.teachers import Teacher, TeacherSettings, TeacherTrainingSettings, build_teacher
from ssdd_hub.teachers.loading import load_or_train_teacher

DEFAULT = Path(__file__).parent / "configs" / "digits.yaml"


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides a distillation run.

    Attributes:
        data: The source images.
        teacher: The network whose features are the targets.
        teacher_training: How the teacher is trained, unless it is ready made.
        targets: How its features become targets, or that class labels are the targets.
        student: The network that distils and is pre-trained on the result.
        method: What says how good the set is.
        parameterisation: What is learned, and how it becomes images and targets.
        init: What the set starts from: `random`, `kmeans`, `kmeans-pixels`, `kcenter`, `herding`, `high_loss`, which
            choose real images, `rded`, tiled crops of these, `mixed`, averages of four random ones, or `noise`.
        selection: How these are chosen.
        pool: The online students, of methods that have any.
        distiller: The outer problem.
        student_training: How students are pre-trained on the result.
        storage: How many bytes a value of the result takes.
        evaluate: How much is measured.
        accuracy: The training of a network on the set alone, where its targets are class labels.
        probe: The linear probe of the students' features.
        backbone_probe: Linear probes on frozen networks in place of the scores of students, where these are named.
        run: Where the run is kept, and how often.
        seed: Seed of everything random.
        minutes: How long the run should take: chooses the steps of teacher and distillation, in the ratio of their
            settings, from an estimate; at most 10 times these.
        output: The run folder; `runs/NAME` when not given, after the last part of `data.name`.
    """

    SHORT: ClassVar[dict[str, str]] = {"method": "method.name", "parameterisation": "parameterisation.name"}
    RENAMED: ClassVar[dict[str, str]] = {"pretrain": "teacher_training", "use": "student_training"}

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    teacher_training: TeacherTrainingSettings = field(default_factory=TeacherTrainingSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    parameterisation: ParameterisationSettings = field(default_factory=ParameterisationSettings)
    init: str = "random"
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    student_training: StudentTrainingSettings = field(default_factory=StudentTrainingSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    accuracy: AccuracySettings = field(default_factory=AccuracySettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    backbone_probe: BackboneProbeSettings = field(default_factory=BackboneProbeSettings)
    run: RunSettings = field(default_factory=RunSettings)
    seed: int = 0
    minutes: float | None = None
    output: str = ""

    def __post_init__(self) -> None:
        shared = {**self.distiller.shared(), "pool": self.pool}
        least = real_images(self.init, self.distiller.num_images, self.selection)
        require(
            among("init", self.init, INITS),
            (
                self.init in ("random", MIXED, NOISE) or (self.selection.max_images or least) >= least,
                f"selection.max_images must be at least the {least} images to be chosen, got "
                f"{self.selection.max_images}",
            ),
            (
                self.selection.balance is None or self.init not in (MIXED, NOISE, RDED),
                f"selection.balance is for starts from whole images, and init is {self.init}: leave one of them out",
            ),
            (
                self.student_training.augment != "views" or self.parameterisation.name == Views.name,
                "student_training.augment is views, and such a set stores none: choose none, flip or crop-flip, or "
                "--parameterisation views",
            ),
            (
                self.distiller.augment or not self.targets.views,
                "targets.views are augmented, so pass --distiller.augment true as well, or --targets.views 0",
            ),
            (
                not self.reads_frozen() or self.teacher.ready,
                f"{self.method.name} reads a frozen backbone: give --teacher.backbone NAME --teacher.pretrained true, "
                "or a timm model by --method.args '{backbone: NAME}'",
            ),
            (
                not self.backbone_probe.backbones or self.targets.of == LABELS,
                "backbone_probe.backbones learn the classes of a set: pass --targets.of labels, or leave them out",
            ),
            *minutes_checks(self.minutes, self.run.estimate),
            METHODS.check(self.method, shared),
            own_networks_check(self.method.name, self.distiller.own_networks),
            PARAMETERISATIONS.check(self.parameterisation, shared),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{folder_name(self.data.name)}")

    def reads_frozen(self) -> bool:
        """Whether the method reads a network that is frozen, and no teacher since the targets are class labels."""
        chosen = self.method
        try:
            settings = METHODS.settings(chosen.name, chosen.args, {**self.distiller.shared(), "pool": self.pool})
        except InputError:  # which `METHODS.check` tells
            return False
        return self.targets.of == LABELS and getattr(settings, "backbone", None) == "teacher"


def evaluate(
    config: DistillConfig, distilled: DistilledSet, source: Source, real: RealData, accelerator: Accelerator
) -> tuple[Results, Tensor | None]:
    """Scores the set beside random real images and no pre-training; `recipes/evaluate.py` measures much more.

    Returns the scores, and the random images of the first student.
    """
    seeds, student, folder = config.evaluate.seeds, config.student, Path(config.output)
    pairs = SetPairs(distilled)
    views = (pairs.num_views, pairs.view_kind) if config.student_training.augment == "views" else ()
    references = Baselines(folder / "references", source, SelectionSettings(), config.seed, *views)
    # A start from `mixed` or `noise` may be of more images than there are.
    count = min(len(distilled.images), len(source.bank))
    beside = prepare_references(references, ["random", "none"], [count], seeds, accelerator)
    set_entries = [entry_of_set("distilled", distilled, accelerator.device), *beside]
    accuracy = config.accuracy.of_sets({"distilled": distilled.provenance})
    first = Accuracy(accuracy, config.student_training) if config.targets.of == LABELS else TeacherError()
    protocols: list[EvaluationProtocol] = [*BackboneProbe.of_each(config.backbone_probe)]
    protocols = protocols or [first, LinearProbe(config.probe)]
    candidates = [StudentEntry.of(student.name, student.building(), protocols, **distilled.student_shape)]
    store, facts = ScoreStore(folder / "scores"), {"source": real.name}
    parts = (set_entries, candidates, [real], config.student_training, seeds, config.seed, store, facts)
    return Evaluation(*parts).measure(accelerator), first_images(beside[0])


def own_space(config: DistillConfig, space: PixelSpace) -> PixelSpace:
    """The pixel space of the set, given that of the students."""
    return space if config.distiller.pixel_space == "normalised" else PixelSpace.raw(space.channels)


def frozen_backbone(config: DistillConfig, accelerator: Accelerator) -> Teacher | None:
    """The ready teacher of a run on class labels whose method reads one; its features are no targets."""
    if not config.reads_frozen():
        return None
    return build_teacher(config.teacher.backbone, **config.teacher.building()).to(accelerator.device)


def build_distiller(
    config: DistillConfig,
    accelerator: Accelerator,
    source: Source,
    cache: FeatureCache | StandInCache | LabelCache,
    pairs: Pairs,
    folder: Path | None = None,
) -> Distiller:
    """Engine, real batches, students, method and parameterisation around the first pairs; `folder` keeps its work."""
    settings, chosen = config.distiller, config.parameterisation
    shared, engine = {**settings.shared(), "pool": config.pool}, build_engine(settings.computing(), accelerator)
    # Every process chose them, and what was trained for that may differ in its last bits.
    pairs = Pairs(*(broadcast(part.contiguous()) for part in pairs.to(engine.device, engine.dtype)))
    drawn: dict[str, Any] = {"batch_size": settings.batch_size, "seed": config.seed, "augment": settings.augment}
    # A selection may hold them as a tensor; a run does not.
    images, targets = source.bank, cast(Targets, source.targets)
    batches = build_batches(images, cache, targets, source.pixel_space, **drawn, views=config.targets.views)
    batches = engine.prefetch(batches, settings.steps)
    shape = {"in_chans": images.num_channels, "image_size": images.image_size, "num_targets": targets.width}
    student = StudentBuilder(config.student.name, **{**shape, **config.student.building()})
    place = {"rank": accelerator.process_index, "world": accelerator.num_processes, "folder": folder}
    place |= {"own_networks": settings.own_networks, "frozen": frozen_backbone(config, accelerator)}
    problem = Problem(batches, student, engine, settings.batch_size, config.seed, source, **place)
    space = own_space(config, source.pixel_space)
    black, white = (space.normalise(torch.full((space.channels, 1, 1), end)).flatten().tolist() for end in (0.0, 1.0))
    given = {"black": black, "white": white, "real": real_of(source, space, pairs)}
    synthetic = build_parameterisation(chosen.name, pairs, chosen.args, {**shared, **given})
    # Of views, where there are any, too.
    shown = synthetic().targets.view(-1, *pairs.targets.shape).argmax(2)
    if config.targets.of == LABELS and not bool((shown == pairs.targets.argmax(1)).all()):
        raise InputError(
            f"{chosen.name} keeps too little of class labels to tell the {pairs.targets.shape[1]} classes apart: "
            "raise, or leave out, those of --parameterisation.args that make targets smaller, such as target_bases"
        )
    method = build_method(config.method.name, problem, config.method.args, shared)
    return Distiller(synthetic, method, settings, accelerator)


def make_set(config: DistillConfig) -> DistilledSet:
    """Images, teacher, targets, start, method and parameterisation, distillation, evaluation, report.

    Returns the set, which the run folder holds too.
    """
    started, config = time.perf_counter(), as_sized(config)
    accelerator, run = begin(config, defaults=DistillConfig())
    settings, dtype = config.distiller, getattr(torch, config.distiller.precision)
    if settings.batch_size < accelerator.num_processes:
        needed = f"{accelerator.num_processes}, one image for each process"
        raise InputError(f"--distiller.batch-size must be at least {needed}, got {settings.batch_size}: raise it")
    images, heldout = load_images(config.data, config.seed, accelerator.is_main_process)
    labelled = config.targets.of == LABELS
    if labelled:
        images, heldout = with_classes(images, config.data), with_classes(heldout, config.data)
        check_classes(cast(Tensor, images.labels))
    least = real_images(config.init, settings.num_images, config.selection)
    if least > len(images) and config.init not in (MIXED, NOISE):
        raise InputError(
            f"{settings.num_images} distilled images start as {least} source images, and there are {len(images)}: "
            "lower --distiller.num-images, or use more images"
        )
    inputs = describe_images(images, heldout, labelled)
    heldout = draw_heldout(heldout, config.evaluate.max_heldout, config.seed)
    shape = {"in_chans": images.num_channels, "image_size": images.image_size}
    students = StudentBuilder(config.student.name, **{"num_targets": 1, **shape, **config.student.building()})
    student, space = students(), students.pixel_space(images.pixels)
    if config.student.pretrained:
        inputs["student"] = students.weights()
    batches = {"--distiller.num-images": settings.num_images}
    sizes = {"student-training": config.student_training.batch_size, "accuracy": config.accuracy.batch_size}
    for name, size in sizes.items():
        batches[f"--{name}.batch-size"] = min(size, settings.num_images)
    shared = {**settings.shared(), "pool": config.pool}
    of_method = METHODS.settings(config.method.name, config.method.args, shared)
    batches |= METHODS.find(config.method.name).batches(of_method, settings.num_images)
    check_batches(student, batches, **shape)
    if needs_expert(config.init, labelled):
        check_experts(config.selection, len(images), **shape)
    check_sizes(settings, getattr(of_method, "pool", None), student, accelerator, **shape)
    # Images that the parameterisation does not take are refused before the work.
    trial, chosen = Pairs(torch.zeros(1, *images.pixels.shape[1:]), torch.zeros(1, 1)), config.parameterisation
    given = {"real": Real(lambda count: trial, lambda seen: seen.new_zeros(len(seen), 1))}
    trial_set = build_parameterisation(chosen.name, trial, chosen.args, {**shared, **given})
    copy = partial(build_distiller, config, accelerator)
    stages = partial(time_distilling, config, images, heldout, space, run, accelerator, copy)
    config, estimated = estimate(config, run, accelerator, started, stages)
    settings = config.distiller
    if settings.steps:
        require(trial_set.steps_check(settings.steps))

    if labelled:
        teacher = None
        run.start(inputs)
        start_trackers(accelerator, run)
    else:
        about: dict[str, Any] = {"seed": config.seed, "least": config.targets.dim or 1, "accelerator": accelerator}
        about |= {"provenance": describe_training(to_dict(config), images.provenance), "inputs": inputs}
        teacher = load_or_train_teacher(config.teacher, config.teacher_training, images, run, **about)
        teacher = teacher.to(accelerator.device, dtype)
    estimated.done("teacher")
    folder = Path(config.run.cache or run.path / "features")
    cache, targets = compute_targets(teacher, images, config.targets, folder, accelerator, dtype)
    features, transform = targets.features, targets.transform
    heldout_targets = Targets(cache.features(heldout), transform)[:]
    estimated.done("features")

    source = Source(images, targets, teacher, transform, space, accelerator.device)
    before, first, rows = start_from(config.init, source, settings.num_images, config.seed, config.selection, dtype)
    own = own_space(config, space)
    estimated.done("start")
    pairs = Pairs(own.normalise(before), first)
    distiller = build_distiller(config, accelerator, source, cache, pairs, run.path / "checkpoints" / "method")
    config.accuracy.of_sets({"distilled": {"learned": distiller.method.learned()}})
    # Of views, where there are any.
    estimated.done("features")
    # On the CPU each thread trains one: on the set, or on random images.
    at_once = 1 if accelerator.device.type != "cpu" else min(torch.get_num_threads(), 2 * config.evaluate.seeds)
    planned = plan_memory(distiller, config.student_training, at_once)
    if planned:
        accelerator.print(planned)
    heldout_error = HeldoutError.plan(distiller, heldout, heldout_targets, space)
    warmed_up = partial(estimated.done, "warm-up")
    seconds = distil(distiller, run, config.run, accelerator.is_main_process, heldout_error, warmed_up)
    estimated.done("distillation")

    about_students = students.describe()
    provenance = describe_run(to_dict(config), images.provenance, teacher, transform, space, about_students)
    provenance |= {"method": config.method.name.replace("_", "-"), "target_features": targets.describe()}
    provenance |= {"use": config.student_training.describe(), "seconds": seconds, "heldout": inputs["heldout"]}
    if learned := distiller.method.learned():
        provenance["learned"] = learned
    if frozen := distiller.method.problem.frozen:
        provenance["backbone"] = {**frozen.identity(), "name": shareable_name(frozen.name)}
        provenance["license"] = derive_licence(provenance["license"], frozen.license)
    kept = None if transform.kind == "none" else transform
    stored = pack(distiller.parameterisation, own, config.storage)
    classes = {"labels": stored.decode()["targets"].argmax(1), "label_names": images.label_names} if labelled else {}
    distilled = DistilledSet.of(stored, provenance=provenance, target_transform=kept, **classes)
    distilled.provenance |= describe_origin(config.init, rows, before, images, own.denormalise(distilled.images))
    source = replace(source, targets=Targets(features, transform), teacher=teacher and teacher.float())
    known = None if labelled else heldout_targets
    real = RealData(provenance["source"]["name"], images, heldout, space, accelerator.device, known)
    if accelerator.is_main_process:
        # First: whatever fails from here on, the set is there.
        keep_set(run, distilled, describe_machine(accelerator.device, accelerator.num_processes))
    with keeping("the distilled set", run.path / "distilled"):
        results, random = evaluate(config, distilled, source, real, accelerator)
        track_scores(accelerator, results.records, settings.steps)
    estimated.done("evaluation")
    if accelerator.is_main_process:
        machine = describe_machine(accelerator.device, accelerator.num_processes)
        distilled.provenance |= {"scores": results.records, "hardware": machine}
        facts = {
            "source": f"{len(images)} images of {real.name}, {images.image_size} px",
            "teacher": teacher.name if teacher else f"none, {CLASS_LABELS}",
            "targets": f"{targets.width} dimensions, transform {transform.kind}, {features}",
            "distillation": f"{settings.steps} outer steps, {seconds:.0f} s",
            "whole run": estimated.total(),
        }
        with keeping("the distilled set", run.path / "distilled"):
            print(save_distillation(run, distilled, before, facts, results.by_class, random))
        ended = estimated.finish("report")
        print(f"\n{ended}" if ended else "")
        spent = f"{estimated.total()}, at most {machine['peak_memory_gib']} GiB"
        print(f"In {run.path} after {spent}: report.html, gallery.html, scores.json, distilled/")
    accelerator.end_training()
    return distilled


@report_errors
def main() -> None:
    """Reads the settings and makes the set."""
    make_set(parse_config(DistillConfig, DEFAULT, description=__doc__))


if __name__ == "__main__":
    main()
