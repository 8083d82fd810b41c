"""Time estimates of whole recipes, stage by stage, from some steps of copies that are thrown away."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import Accelerator

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.distill.distiller import Distiller
from ssdd_hub.distill.estimate import time_distillation
from ssdd_hub.distill.methods import METHODS
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.evaluation.entries import StudentEntry
from ssdd_hub.evaluation.estimate import time_backbone_probes, time_evaluation
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.estimate import Stage, is_worth_it
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.selection.source import Source
from ssdd_hub.selection.start import time_start
from ssdd_hub.sets.report import time_report
from ssdd_hub.targets.compute import StandInCache, label_targets, time_features
from ssdd_hub.targets.labels import LABELS, LabelCache
from ssdd_hub.targets.targets import Targets
from ssdd_hub.teachers.estimate import stand_in, time_training, time_watch
from ssdd_hub.teachers.monitor import Watch
from ssdd_hub.teachers.teacher import Teacher

_LONG = 10  # training steps, at least, of an outer step that is long


def time_distilling(
    config: Any,
    images: ImageBank,
    heldout: ImageBank,
    space: PixelSpace,
    run: RunFolder,
    accelerator: Accelerator,
    build: Callable[[Source, StandInCache | LabelCache, Pairs], Distiller],
) -> Iterator[Stage]:
    """Times what `recipes/distill.py` has left to do; yields nothing of a small or an ended run.

    Args:
        config: The recipe's settings.
        images: The source images.
        heldout: Those that scores are measured on.
        space: In which students see images.
        run: The run, whose checkpoints say what is left.
        accelerator: Device and processes, each of which calls this.
        build: Returns a distiller as the recipe builds it.
    """
    settings, device, training = config.distiller, accelerator.device, config.teacher_training
    labelled, dtype = config.targets.of == LABELS, getattr(torch, settings.precision)
    steps = settings.steps * (_LONG if METHODS.find(config.method.name).long_steps else 1)
    steps += 0 if config.teacher.ready or labelled else training.num_steps(len(images))
    saved = run.checkpoints.newest_step()
    ended = saved == settings.steps and (run.path / "scores.json").exists()
    if ended or not is_worth_it(config, steps):
        return
    teacher: Teacher | None = None
    cache: StandInCache | LabelCache
    heldout_targets: Targets | None = None
    if labelled:
        cache, targets = label_targets(images, config.targets, accelerator, dtype)
    else:
        yield time_training(config.teacher, training, images, run, accelerator)
        teacher = stand_in(config.teacher, images).to(device, dtype)
        cache = StandInCache(teacher, accelerator)
        targets, heldout_targets = cache.targets(images, config.targets), cache.targets(heldout, config.targets)
    source = Source(images, targets, teacher, targets.transform, space, device)
    if saved is None:
        if teacher:
            yield time_features(teacher, images, heldout, config.targets, accelerator)
        yield time_start(config.init, source, settings.num_images, config.selection)
    # Spread over the source, which may be in the order of its classes.
    rows = torch.arange(settings.num_images) * len(images) // settings.num_images
    own = space if settings.pixel_space == "normalised" else PixelSpace.raw(space.channels)
    pairs = Pairs(own.normalise(images.pixels[rows] / 255), targets[rows])
    yield from time_distillation(build(source, cache, pairs), run)
    yield _time_scores(config, images, heldout, source, heldout_targets, accelerator)
    yield time_report(images, settings.num_images)


def _time_scores(
    config: Any,
    images: ImageBank,
    heldout: ImageBank,
    source: Source,
    heldout_targets: Targets | None,
    accelerator: Accelerator,
) -> Stage:
    """Times the first evaluation, by students or by probes of frozen networks."""
    size, seeds = config.distiller.num_images, config.evaluate.seeds
    real = RealData("source", images, heldout, source.pixel_space, accelerator.device, heldout_targets)
    if config.backbone_probe.backbones:
        return time_backbone_probes(config.backbone_probe, size, real, seeds, accelerator)
    shape: dict[str, Any] = {"in_chans": images.num_channels, "image_size": images.image_size}
    shape["num_targets"] = cast(Targets, source.targets).width
    candidate = StudentEntry.of(config.student.name, config.student.building(), [], **shape)
    use = config.student_training
    if config.targets.of == LABELS:
        # A step of either training takes about as long.
        own, further = (each.num_steps(size) for each in (use, config.accuracy))
        use = replace(use, steps=own + further, max_steps=None)
    return time_evaluation(candidate, size, real, use, config.probe, seeds, accelerator)


def time_training_alone(
    config: Any, images: ImageBank, watch: Watch, run: RunFolder, accelerator: Accelerator
) -> Iterator[Stage]:
    """Times what `recipes/train_teacher.py` has left to do; yields nothing of a small or an ended run."""
    training = config.teacher_training
    if (run.path / "teacher").exists() or not is_worth_it(config, training.num_steps(len(images))):
        return
    trained = time_training(config.teacher, training, images, run, accelerator)
    yield trained
    yield time_watch(watch, config.teacher, training, trained)
