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

from ssdd_hub import DistilledSet, InputError, PixelSpace, build_student
from ssdd_hub.data import DataSettings, ImageBank, draw_heldout, load_images
from ssdd_hub.distill import DistillerSettings, PoolSettings
from ssdd_hub.errors import require
from ssdd_hub.evaluation import Candidate, CellStore, Evaluation, RealData, set_contender
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.models import StudentSettings, UseSettings
from ssdd_hub.runs import LaunchSettings, RunFolder, describe_machine, describe_versions, report_errors
from ssdd_hub.runs.begin import begin
from ssdd_hub.seeds import generator
from ssdd_hub.selection import Source
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.settings import parse_config, to_dict
from ssdd_hub.targets import Targets, TargetSettings
from ssdd_hub.targets.compute import compute_targets
from ssdd_hub.teachers import TeacherSettings
from ssdd_hub.teachers.loading import load_teacher
from studies.plain import explain_renewal
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
            (not plain or self.pool.renewal == "train", explain_renewal(self.pool.renewal)),
        )


def prepare(
    config: TimeToQualityConfig, bank: ImageBank, heldout: ImageBank, run: RunFolder, accelerator: Accelerator
) -> tuple[Start, PixelSpace, Evaluation]:
    """Returns what both implementations start from, the space of their images, and an evaluation of no sets yet."""
    seed, device, wanted, student = config.seed, accelerator.device, config.distiller.num_images, config.student
    if wanted > len(bank):
        raise InputError(f"{wanted} images are distilled from {len(bank)}: lower --distiller.num-images")
    teacher = load_teacher(config.teacher, bank).to(device)
    shape = {"in_chans": bank.num_channels, "image_size": bank.image_size}
    build = partial(build_student, student.name, **shape, **student.model_args)
    build(num_targets=1)
    run.start()

    folder = Path(config.cache or run.path / "features")
    cache, targets = compute_targets(teacher, bank, config.targets, folder, accelerator)
    heldout_targets = Targets(cache.features(heldout), targets.transform)[:]
    space = PixelSpace.of(bank.pixels)
    own_space = space if config.distiller.pixel_space == "normalised" else PixelSpace.raw(space.channels)
    chosen = torch.randperm(len(bank), generator=generator(seed, "first images"))[:wanted]
    images = own_space.normalise(bank.pixels[chosen].float() / 255)
    source = Source(bank, targets, teacher, targets.transform, space, device)
    build, parts = partial(build, num_targets=targets.width), (config.distiller, config.pool, accelerator, seed)
    start = Start(images, targets[chosen], source, cache, build, *parts)
    shape["num_targets"] = targets.width
    candidate = Candidate.of(student.name, student.model_args, [TeacherError()], **shape)
    real = RealData(str(bank.source["name"]), bank, heldout, space, device, heldout_targets)
    store, seeds = CellStore(run.path / "cells"), config.quality.seeds
    return start, own_space, Evaluation([], [candidate], [real], config.use, seeds, seed, store, {})


@report_errors
def main() -> None:
    """Images, teacher, targets; both implementations in turn; scores of all copies."""
    started = time.perf_counter()
    config = parse_config(TimeToQualityConfig, DEFAULT, description=__doc__)
    accelerator, run = begin(config, one_process=True)
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
