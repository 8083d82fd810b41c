"""Measures in what time a set is worth a given quality to its user: ours, and the plain implementation.

accelerate launch recipes/time_to_quality.py
accelerate launch recipes/time_to_quality.py --quality.goal 0.25 --quality.budget 10 --output runs/quick

Contenders train one after another from the same random images. A clock runs from the building of each, through its
warm-up and compilation, to its last step, or until the budget is over; copies of the set are kept on the way. After
that, students are pre-trained on each copy, and their error to the teacher is measured on held-out images. Quality is
reached where it is by a given share below that of random images with their targets. A contender that is not there when
its time is over is extrapolated, and the result says so. The plain implementation is KRR-ST as it is written down
first: eager float32 in PyTorch's default layout, the teacher run on every batch. A contender with a schedule of other
steps, or other settings, is one more entry of `contenders`.

The teacher's features of all images, which make the transform of the targets, are computed before any clock runs.
"""

import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from ssdd_hub import build_student
from ssdd_hub.configs.studies import TimeToQualityConfig
from ssdd_hub.data.bank import ImageBank, draw_heldout, load_images
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.launch import build_accelerator, report_errors
from ssdd_hub.runs.machine import describe_machine, describe_versions
from ssdd_hub.seeds import generator
from ssdd_hub.selection.source import Source
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.settings import parse_config, to_dict, to_yaml
from ssdd_hub.studies.quality_contenders import Start
from ssdd_hub.studies.time_to_quality import Meter, TimeToQuality
from ssdd_hub.studies.time_to_quality_report import quality_table, render_quality
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import build_teacher

DEFAULT = Path(__file__).parent / "configs" / "time_to_quality.yaml"


def prepare(
    config: TimeToQualityConfig, bank: ImageBank, heldout: ImageBank, run: RunFolder, accelerator: Accelerator
) -> tuple[Start, Meter, float]:
    """Returns the start of all contenders, what measures them, and the seconds that the features took."""
    seed, device, wanted = config.seed, accelerator.device, config.distiller.num_images
    if wanted > len(bank):
        raise InputError(f"{wanted} images are distilled from {len(bank)}: lower --distiller.num-images")
    teacher = build_teacher(config.teacher.backbone, **config.teacher.building())
    teacher(torch.zeros(1, bank.num_channels, bank.image_size, bank.image_size))
    shape = {"in_chans": bank.num_channels, "image_size": bank.image_size, **config.student.model_args}
    build_student(config.student.name, num_targets=1, **shape)
    run.start()

    folder = Path(config.cache) if config.cache else run.path / "features"
    cache = FeatureCache(teacher.to(device), accelerator, folder, **config.targets.computing())
    started = time.perf_counter()
    features = cache.features(bank)
    seconds = time.perf_counter() - started
    transform = TargetTransform.fit(config.targets.transform, features, config.targets.dim)
    targets, heldout_targets = Targets(features, transform), Targets(cache.features(heldout), transform)[:]
    space = PixelSpace.of(bank.pixels)
    first_space = space if config.distiller.pixel_space == "normalised" else PixelSpace.raw(space.channels)
    chosen = torch.randperm(len(bank), generator=generator(seed, "first images"))[:wanted]
    student = partial(build_student, config.student.name, num_targets=targets.width, **shape)
    source = Source(bank, targets, teacher, transform, space, device)
    images = first_space.normalise(bank.pixels[chosen].float() / 255)
    start = Start(images, targets[chosen], source, cache, student, accelerator, seed)
    real = RealData(str(bank.source["name"]), bank, heldout, space, device, heldout_targets)
    return start, Meter(student, real, first_space, config.use, config.quality.seeds, seed), seconds


@report_errors
def main() -> None:
    """Images, teacher, targets; the contenders in turn; table and picture."""
    started = time.perf_counter()
    config = parse_config(TimeToQualityConfig, DEFAULT, description=__doc__)
    accelerator = build_accelerator(config.run, Path(config.output))
    if accelerator.num_processes > 1:
        raise InputError(f"one process is required, got {accelerator.num_processes}: launch with --num_processes 1")
    run = RunFolder(Path(config.output), to_dict(config))
    print(to_yaml(config))

    bank, heldout = load_images(config.data, config.seed)
    heldout = draw_heldout(heldout, config.quality.max_heldout, config.seed)
    start, meter, features_seconds = prepare(config, bank, heldout, run, accelerator)
    entrants = config.entrants
    for name in entrants:
        # Times differ from run to run, so that nothing goes on where it stopped.
        run.log.rewind(name, -1)
    race = TimeToQuality(config.quality, meter.points, accelerator.device, lambda point: run.log.write([point]))
    for name, contender in entrants.items():
        race.run(name, partial(start.build, contender), contender.distiller.steps, start.memory(contender))
        record = race.result()
        for entry in record["contenders"]:
            entry["settings"] = to_dict(entrants[entry["contender"]])
        machine, seconds = describe_machine(accelerator.device, 1), time.perf_counter() - started
        facts = {"machine": machine, "versions": describe_versions(), "command": describe_command()}
        facts |= {"features_seconds": features_seconds, "seconds": seconds, "settings": to_dict(config)}
        # After each of them: the next may take hours.
        run.write_json("time_to_quality.json", {**record, **facts})
        render_quality(run.path / "time_to_quality.png", record)
    print(quality_table(record))
    print(
        f"before that, {features_seconds:.1f} s for the teacher's features of {len(bank)} images, or for reading them"
    )
    print(f"\nIn {run.path} after {seconds:.0f} s: time_to_quality.json, time_to_quality.png, log.jsonl")
    accelerator.end_training()


if __name__ == "__main__":
    main()
