"""Measures the error of a set against the seconds of its distillation: our implementation and the plain one.

accelerate launch recipes/time_to_quality.py
accelerate launch recipes/time_to_quality.py --quality.seconds '[60, 600]' --quality.implementations '[ours]' \
--output runs/long

Each implementation is built, warmed up and trained against the clock from the same real images, and the set is copied
at given seconds. Afterwards students are pre-trained on each copy, and their error to the teacher is measured on
held-out images. The plain implementation is KRR-ST as the paper writes it down: eager float32 in PyTorch's default
layout, the teacher run on every batch. The teacher's features of all images, which both need for their targets, are
computed before the clock starts.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from ssdd_hub import DistilledSet, build_student
from ssdd_hub.data.bank import DataSettings, ImageBank, draw_heldout, load_images
from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.errors import InputError, require
from ssdd_hub.evaluation.entries import Candidate, set_contender
from ssdd_hub.evaluation.evaluation import Evaluation
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.evaluation.store import CellStore
from ssdd_hub.models.build import StudentSettings
from ssdd_hub.models.pretraining import UseSettings
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.folder import LaunchSettings, RunFolder
from ssdd_hub.runs.launch import build_accelerator, report_errors
from ssdd_hub.runs.machine import describe_machine, describe_versions
from ssdd_hub.seeds import generator
from ssdd_hub.selection.source import Source
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.settings import parse_config, to_dict, to_yaml
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets, TargetSettings
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import TeacherSettings, build_teacher
from studies.time_to_quality import START, QualitySettings, Start, curves, label, quality_table, render_quality, train

DEFAULT = Path(__file__).parent / "configs" / "time_to_quality.yaml"


@dataclass(frozen=True)
class TimeToQualityConfig:
    """Everything that decides how error and seconds are measured.

    Attributes:
        data: The source images.
        teacher: The network whose features are the targets, ready made.
        targets: How its features become targets.
        student: The network that distils and is pre-trained on the result.
        pool: The online students.
        distiller: The outer problem.
        use: How students are pre-trained on the result.
        quality: When a set is scored, and how.
        run: How the process computes; `mixed_precision` is for our implementation, the plain one computes in float32.
        cache: Folder of cached teacher features; `features/` of the output folder when not given.
        seed: Seed of everything random.
        output: The folder of the results.
    """

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    use: UseSettings = field(default_factory=UseSettings)
    quality: QualitySettings = field(default_factory=QualitySettings)
    run: LaunchSettings = field(default_factory=LaunchSettings)
    cache: str | None = None
    seed: int = 0
    output: str = "runs/time-to-quality"

    def __post_init__(self) -> None:
        plain = "plain" in self.quality.implementations
        require(
            (self.teacher.ready, "time starts with a ready-made teacher: pass --teacher.pretrained true"),
            (not self.targets.views, "the time that fixed views take would not count: leave out --targets.views"),
            (self.use.augment != "views", "a set has no views on its way: choose another --use.augment"),
            (self.distiller.precision == "float32", "networks are timed in float32: leave out --distiller.precision"),
            (
                not plain or self.pool.renewal == "train",
                f"pool.renewal must be train in the plain implementation, got {self.pool.renewal!r}",
            ),
        )


def prepare(
    config: TimeToQualityConfig, bank: ImageBank, heldout: ImageBank, run: RunFolder, accelerator: Accelerator
) -> tuple[Start, PixelSpace, Evaluation]:
    """Returns what both implementations start from, the space of their images, and an evaluation of no sets yet."""
    seed, device, wanted = config.seed, accelerator.device, config.distiller.num_images
    if wanted > len(bank):
        raise InputError(f"{wanted} images are distilled from {len(bank)}: lower --distiller.num-images")
    teacher = build_teacher(config.teacher.backbone, **config.teacher.building())
    teacher(torch.zeros(1, bank.num_channels, bank.image_size, bank.image_size))
    shape = {"in_chans": bank.num_channels, "image_size": bank.image_size}
    student = partial(build_student, config.student.name, **shape, **config.student.model_args)
    student(num_targets=1)
    run.start()

    folder = Path(config.cache) if config.cache else run.path / "features"
    cache = FeatureCache(teacher.to(device), accelerator, folder, **config.targets.computing())
    features = cache.features(bank)
    transform = TargetTransform.fit(config.targets.transform, features, config.targets.dim)
    targets, heldout_targets = Targets(features, transform), Targets(cache.features(heldout), transform)[:]
    space = PixelSpace.of(bank.pixels)
    first_space = space if config.distiller.pixel_space == "normalised" else PixelSpace.raw(space.channels)
    chosen = torch.randperm(len(bank), generator=generator(seed, "first images"))[:wanted]
    source = Source(bank, targets, teacher, transform, space, device)
    start = Start(
        first_space.normalise(bank.pixels[chosen].float() / 255),
        targets[chosen],
        source,
        cache,
        partial(student, num_targets=targets.width),
        config.distiller,
        config.pool,
        accelerator,
        seed,
    )
    shape["num_targets"] = targets.width
    candidate = Candidate.of(config.student.name, config.student.model_args, [TeacherError()], **shape)
    real = RealData(str(bank.source["name"]), bank, heldout, space, device, heldout_targets)
    store, seeds = CellStore(run.path / "cells"), config.quality.seeds
    return start, first_space, Evaluation([], [candidate], [real], config.use, seeds, seed, store, {})


@report_errors
def main() -> None:
    """Images, teacher, targets; both implementations in turn; scores of all copies."""
    started = time.perf_counter()
    config = parse_config(TimeToQualityConfig, DEFAULT, description=__doc__)
    accelerator = build_accelerator(config.run, Path(config.output))
    if accelerator.num_processes > 1:
        raise InputError(f"one process is required, got {accelerator.num_processes}: launch with --num_processes 1")
    run = RunFolder(Path(config.output), to_dict(config))
    print(to_yaml(config))

    bank, heldout = load_images(config.data, config.seed)
    heldout = draw_heldout(heldout, config.quality.max_heldout, config.seed)
    start, space, evaluation = prepare(config, bank, heldout, run, accelerator)
    snapshots = {name: train(name, start, config.quality.seconds) for name in config.quality.implementations}
    sets = {START: DistilledSet(start.images, start.targets, space)}
    for name, taken in snapshots.items():
        sets |= {label(name, copy): DistilledSet(copy.images, copy.targets, space) for copy in taken}
    evaluation = replace(evaluation, contenders=[set_contender(*entry, accelerator.device) for entry in sets.items()])
    scores = {
        record["set"]: {key: record[key] for key in ("mean", "std", "n", "values")}
        for record in evaluation.run(accelerator)
        if record["protocol"] == TeacherError.name
    }
    record = curves(snapshots, scores, config.quality.goal)
    machine, seconds = describe_machine(accelerator.device, 1), time.perf_counter() - started
    facts = {"machine": machine, "versions": describe_versions(), "command": describe_command()}
    run.write_json("time_to_quality.json", {**record, **facts, "settings": to_dict(config), "seconds": seconds})
    render_quality(run.path / "time_to_quality.png", record)
    print(quality_table(record))
    print(f"\nIn {run.path} after {seconds:.0f} s: time_to_quality.json, time_to_quality.png")
    accelerator.end_training()


if __name__ == "__main__":
    main()
