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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from ssdd_hub import DistilledSet, InputError, PixelSpace
from ssdd_hub.data import DataSettings, draw_heldout, load_images
from ssdd_hub.distill import Distiller, DistillerSettings, PoolSettings, StudentPool, build_batches
from ssdd_hub.distill.sizes import check_sizes
from ssdd_hub.errors import require
from ssdd_hub.evaluation import Evaluation, RealData, ScoreStore, StudentEntry, entry_of_set
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.models import StudentBuilder, StudentSettings, StudentTrainingSettings
from ssdd_hub.models.pretraining import check_batches
from ssdd_hub.runs import UntrackedSettings, describe_machine, describe_versions, report_errors
from ssdd_hub.runs.begin import begin
from ssdd_hub.seeds import generator
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.settings import parse_config, to_dict
from ssdd_hub.targets import Targets, TargetSettings
from ssdd_hub.targets.compute import compute_targets
from ssdd_hub.targets.labels import LABELS
from ssdd_hub.teachers import TeacherSettings
from ssdd_hub.teachers.loading import load_teacher
from studies.plain import PlainDistiller, plain_checks, real_batches
from studies.time_to_quality import START, QualitySettings, curves, label, quality_table, render_quality, train

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
        student_training: How students are pre-trained on the result.
        quality: When a set is scored, and how.
        run: How the process computes; `mixed_precision` is for our implementation, the plain one computes in float32.
        cache: Folder of cached teacher features; `features/` of the output folder when not given.
        seed: Seed of everything random.
        output: The folder of the results.
    """

    RENAMED: ClassVar[dict[str, str]] = {"use": "student_training"}

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    student_training: StudentTrainingSettings = field(default_factory=StudentTrainingSettings)
    quality: QualitySettings = field(default_factory=QualitySettings)
    run: UntrackedSettings = field(default_factory=UntrackedSettings)
    cache: str | None = None
    seed: int = 0
    output: str = "runs/time-to-quality"

    def __post_init__(self) -> None:
        plain = "plain" in self.quality.implementations
        require(
            (self.targets.of != LABELS, "errors to a teacher are measured: leave out --targets.of"),
            (self.teacher.ready, "time starts with a ready-made teacher: pass --teacher.pretrained true"),
            (not self.targets.views, "the time that fixed views take would not count: leave out --targets.views"),
            (
                self.student_training.augment != "views",
                "a set has no views on its way: choose another --student-training.augment",
            ),
            (self.distiller.precision == "float32", "networks are timed in float32: leave out --distiller.precision"),
            *(plain_checks(self.distiller, self.pool) if plain else ()),
        )


@report_errors
def main() -> None:
    """Images, teacher, targets; both implementations in turn; scores of all copies."""
    started = time.perf_counter()
    config = parse_config(TimeToQualityConfig, DEFAULT, description=__doc__)
    accelerator, run = begin(config, one_process=True)
    seed, device, outer, pool = config.seed, accelerator.device, config.distiller, config.pool
    bank, heldout = load_images(config.data, seed)
    heldout = draw_heldout(heldout, config.quality.max_heldout, seed)
    if outer.num_images > len(bank):
        raise InputError(f"{outer.num_images} images are distilled from {len(bank)}: lower --distiller.num-images")
    teacher, student = load_teacher(config.teacher, bank).to(device), config.student
    shape: dict[str, Any] = {"in_chans": bank.num_channels, "image_size": bank.image_size}
    batches = {"--distiller.num-images": outer.num_images}
    batches["--student-training.batch-size"] = min(config.student_training.batch_size, outer.num_images)
    smallest = StudentBuilder(student.name, num_targets=1, **shape, **student.building())()
    check_batches(smallest, batches, **shape)
    check_sizes(outer, pool, smallest, accelerator, **shape)
    run.start()

    folder = Path(config.cache or run.path / "features")
    cache, targets = compute_targets(teacher, bank, config.targets, folder, accelerator)
    transform, shape["num_targets"] = targets.transform.to(device, torch.float32), targets.width
    build = StudentBuilder(student.name, **shape, **student.building())
    space = build.pixel_space(bank.pixels)
    own_space = space if outer.pixel_space == "normalised" else PixelSpace.raw(space.channels)
    chosen = torch.randperm(len(bank), generator=generator(seed, "first images"))[: outer.num_images]
    first = own_space.normalise(bank.pixels[chosen].float() / 255), targets[chosen]

    def ours() -> Distiller:
        """Returns our distiller, with targets from the cache."""
        drawn: dict[str, Any] = {"batch_size": outer.batch_size, "seed": seed, "augment": outer.augment, "views": 0}
        batches = build_batches(bank, cache, targets, space, **drawn)
        return Distiller(*first, StudentPool(build, pool, seed, device=device), batches, outer, accelerator)

    def plain() -> PlainDistiller:
        """Returns the plain distiller, which runs the teacher on every batch."""
        batches = real_batches(bank.pixels, space, outer, seed, device)
        parts = first[0].to(device), first[1].to(device)
        return PlainDistiller(*parts, build, batches, lambda seen: transform(teacher(seen)), outer, pool, seed)

    builders = {"ours": ours, "plain": plain}
    snapshots = {
        name: train(name, builders[name], outer.steps, config.quality.seconds, device)
        for name in config.quality.implementations
    }
    # Students see real images in their own space, whichever the set is learned in.
    place: dict[str, Any] = {"pixel_space": own_space, "provenance": {"student_pixel_space": space.to_dict()}}
    sets = {START: DistilledSet(*first, **place)}
    for name, taken in snapshots.items():
        sets |= {label(name, copy): DistilledSet(copy.images, copy.targets, **place) for copy in taken}
    set_entries = [entry_of_set(*entry, device) for entry in sets.items()]
    candidate = StudentEntry.of(student.name, student.building(), [TeacherError()], **shape)
    heldout_targets = Targets(cache.features(heldout), targets.transform)[:]
    real = RealData(str(bank.provenance["name"]), bank, heldout, space, device, heldout_targets)
    parts = (set_entries, [candidate], [real], config.student_training, config.quality.seeds, seed)
    scores = {
        record["set"]: {key: record[key] for key in ("mean", "std", "n", "values")}
        for record in Evaluation(*parts, ScoreStore(run.path / "scores"), {}).run(accelerator)
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
