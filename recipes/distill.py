"""Distils an image dataset: images, teacher, targets, distilled set, first evaluation, report.

accelerate launch recipes/distill.py
accelerate launch recipes/distill.py --config recipes/configs/cifar100.yaml --output runs/cifar100
accelerate launch recipes/distill.py --method krr_st --parameterisation pixels --init kmeans

The first runs on scikit-learn's embedded digits and needs nothing else. Started again, a run goes on where it stopped.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from ssdd_hub import DistilledSet, Distiller, build_student
from ssdd_hub.configs.recipes import DistillConfig
from ssdd_hub.data.bank import ImageBank, draw_heldout, load_images
from ssdd_hub.distill.batches import Batches, build_batches
from ssdd_hub.distill.engine.build import build_engine
from ssdd_hub.distill.loop import distil
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.registry import METHODS, build_method
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.registry import PARAMETERISATIONS, build_parameterisation
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.entries import Candidate, References, set_contender
from ssdd_hub.evaluation.evaluation import COST, Evaluation, Record
from ssdd_hub.evaluation.protocols.linear_probe import LinearProbe
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.evaluation.store import CellStore
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.results.page import render_pictures, render_report
from ssdd_hub.results.tables import score_table
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.inputs import Inputs, deciding_facts, describe_images
from ssdd_hub.runs.launch import build_accelerator, report_errors
from ssdd_hub.runs.machine import describe_machine, describe_versions
from ssdd_hub.selection.methods import SelectionSettings
from ssdd_hub.selection.source import Source
from ssdd_hub.selection.start import NOISE, start_from
from ssdd_hub.sets.provenance import describe_run, describe_training
from ssdd_hub.settings import parse_config, to_dict, to_yaml
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher, build_teacher
from ssdd_hub.teachers.training import train_teacher

DEFAULT = Path(__file__).parent / "configs" / "digits.yaml"


def prepare_images(config: DistillConfig, accelerator: Accelerator) -> tuple[ImageBank, ImageBank, Inputs]:
    """Loads source and held-out images, and describes them all; refuses what could only fail after hours of work."""
    wanted, batch_size = config.distiller.num_images, config.distiller.batch_size
    METHODS.settings(config.method.name, config.method.args, shared_settings(config))
    PARAMETERISATIONS.settings(config.parameterisation.name, config.parameterisation.args, shared_settings(config))
    if batch_size < accelerator.num_processes:
        raise InputError(f"--distiller.batch-size {batch_size} is less than one image for each process: raise it")
    source, heldout = load_images(config.data, config.seed, accelerator.is_main_process)
    if wanted > len(source) and config.init != NOISE:
        raise InputError(
            f"{wanted} distilled images start as as many source images, and there are {len(source)}: lower "
            "--distiller.num-images, or use more images"
        )
    build_student(config.student.name, num_targets=1, **student_args(config, source))
    drawn = draw_heldout(heldout, config.evaluate.max_heldout, config.seed)
    return source, drawn, describe_images(source, heldout)


def student_args(config: DistillConfig, source: ImageBank) -> dict[str, object]:
    """Returns what every student of this run is built with, but for the width of its head."""
    return {"in_chans": source.num_channels, "image_size": source.image_size, **config.student.model_args}


def shared_settings(config: DistillConfig) -> dict[str, object]:
    """Returns the settings that methods and parameterisations take over where they have some of the same name."""
    return {**config.distiller.shared(), "pool": config.pool}


def prepare_teacher(
    config: DistillConfig,
    source: ImageBank,
    space: PixelSpace,
    inputs: Inputs,
    run: RunFolder,
    accelerator: Accelerator,
) -> Teacher:
    """Loads the teacher that is named, or trains one on the source images."""
    settings = config.teacher
    if settings.ready:
        teacher = build_teacher(settings.backbone, **settings.building())
        teacher(torch.zeros(1, source.num_channels, source.image_size, source.image_size))
        run.start({**inputs, "teacher": deciding_facts(teacher.describe())})
        accelerator.init_trackers("ssdd_hub")
        return teacher
    return train_teacher(
        settings,
        config.pretrain,
        source,
        space,
        run,
        seed=config.seed,
        accelerator=accelerator,
        provenance=describe_training(to_dict(config), source.source),
        inputs=inputs,
    )


def prepare_distiller(
    config: DistillConfig,
    first: Pairs,
    source: Source,
    batches: Batches,
    build: Callable[[], nn.Module],
    accelerator: Accelerator,
) -> Distiller:
    """Puts parameterisation, method and engine together."""
    settings, shared = config.distiller, shared_settings(config)
    engine = build_engine(settings.computing(), accelerator)
    problem = Problem(
        engine.prefetch(batches, settings.steps),
        build,
        engine,
        settings.batch_size,
        config.seed,
        source,
        accelerator.process_index,
        accelerator.num_processes,
    )
    # Every process chose them, and what was trained for that may differ in its last bits.
    first = Pairs(*(broadcast(part.contiguous()) for part in first.to(engine.device, engine.dtype)))
    synthetic = build_parameterisation(config.parameterisation.name, first, config.parameterisation.args, shared)
    method = build_method(config.method.name, problem, config.method.args, shared)
    return Distiller(synthetic, method, settings, accelerator)


def first_evaluation(
    config: DistillConfig,
    distilled: DistilledSet,
    real: RealData,
    source: Source,
    run: RunFolder,
    accelerator: Accelerator,
) -> list[Record]:
    """Scores the set beside random real images and no pre-training; `recipes/evaluate.py` asks much more."""
    name, args = config.student.name, config.student.model_args
    shape = {"num_targets": distilled.targets.shape[1], "in_chans": source.bank.num_channels}
    shape |= {"image_size": source.bank.image_size}
    references = References(run.path / "references", source, SelectionSettings(), config.seed)
    counts, seeds = [len(distilled.images)], config.evaluate.seeds
    if accelerator.is_main_process:
        references.prepare(["random"], counts, seeds, progress=False)
    accelerator.wait_for_everyone()
    evaluation = Evaluation(
        [
            set_contender("distilled", distilled, accelerator.device),
            *references.contenders(["random", "none"], counts),
        ],
        [Candidate.of(name, args, [TeacherError(), LinearProbe(config.probe)], **shape)],
        [real],
        config.use,
        seeds=seeds,
        seed=config.seed,
        store=CellStore(run.path / "cells"),
        facts={"source": real.name},
    )
    return evaluation.run(accelerator)


def save_results(
    run: RunFolder, distilled: DistilledSet, before: Tensor, records: list[Record], facts: dict[str, str]
) -> None:
    """Writes the distilled set, the pictures and the report."""
    distilled.save(run.path / "distilled")
    log = run.log.read()
    pictures = render_pictures(
        run.path / "pictures",
        before=before,
        after=distilled.pixel_space.denormalise(distilled.images),
        log=log,
        scores=records,
    )
    title = f"{distilled.provenance['source']['name']}: {len(before)} distilled images"
    config = (run.path / "config.yaml").read_text(encoding="utf-8")
    render_report(run.path / "report.html", title=title, pictures=pictures, scores=records, config=config, facts=facts)


@report_errors
def main() -> None:
    """Images, teacher, targets, distillation, evaluation, report."""
    started = time.perf_counter()
    config = parse_config(DistillConfig, DEFAULT, description=__doc__)
    settings, dtype = config.distiller, getattr(torch, config.distiller.precision)
    accelerator = build_accelerator(config.run, Path(config.output))
    run = RunFolder(Path(config.output), to_dict(config), accelerator.is_main_process, defaults=DistillConfig())
    # Nothing may appear in the folder while another process still looks at it.
    accelerator.wait_for_everyone()
    accelerator.print(to_yaml(config))

    source, heldout, inputs = prepare_images(config, accelerator)
    space = PixelSpace.of(source.pixels)
    teacher = prepare_teacher(config, source, space, inputs, run, accelerator).to(accelerator.device, dtype)

    folder = Path(config.run.cache) if config.run.cache else run.path / "features"
    cache = FeatureCache(teacher, accelerator, folder, **config.targets.computing())
    features, heldout_features = cache.features(source), cache.features(heldout)
    transform = TargetTransform.fit(config.targets.transform, features, config.targets.dim)
    targets = Targets(features, transform, dtype)

    origin = Source(source, targets, teacher, transform, space, accelerator.device)
    before, first = start_from(config.init, origin, settings.num_images, config.seed, config.selection, dtype)
    set_space = space if settings.pixel_space == "normalised" else PixelSpace.raw(space.channels)
    build = partial(build_student, config.student.name, num_targets=targets.width, **student_args(config, source))
    batches = build_batches(
        source,
        cache,
        targets,
        space,
        batch_size=settings.batch_size,
        seed=config.seed,
        augment=settings.augment,
        views=config.targets.views,
    )
    pairs = Pairs(set_space.normalise(before), first)
    distiller = prepare_distiller(config, pairs, origin, batches, build, accelerator)
    seconds = distil(distiller, run, config.run, progress=accelerator.is_main_process)

    images, learned = (tensor.detach().float().cpu() for tensor in (distiller.images, distiller.targets))
    provenance = describe_run(to_dict(config), source.source, teacher, transform, space)
    provenance["method"] = config.method.name.replace("_", "-")
    provenance |= {"target_features": features.describe(), "use": config.use.describe(), "seconds": seconds}
    provenance["heldout"] = inputs["heldout"]
    recorded = None if transform.kind == "none" else transform
    distilled = DistilledSet(images, learned, set_space, provenance=provenance, target_transform=recorded)
    origin = replace(origin, targets=Targets(features, transform), teacher=teacher.float())
    seen = Targets(heldout_features, transform)[:]
    real = RealData(provenance["source"]["name"], source, heldout, space, accelerator.device, seen)
    records = first_evaluation(config, distilled, real, origin, run, accelerator)
    if accelerator.is_main_process:
        machine = describe_machine(accelerator.device, accelerator.num_processes)
        distilled.provenance |= {"scores": records, "hardware": machine}
        run.write_json(
            "scores.json",
            {
                "records": records,
                "machine": machine,
                "versions": describe_versions(),
                "command": provenance["command"],
            },
        )
        facts = {
            "source": f"{len(source)} images of {provenance['source']['name']}, {source.image_size} px",
            "teacher": teacher.name,
            "targets": f"{targets.width} dimensions, transform {transform.kind}, {features}",
            "distillation": f"{settings.steps} outer steps, {seconds:.0f} s",
            "whole run": f"{time.perf_counter() - started:.0f} s",
            "machine": f"{machine['cpus']} CPUs, {machine['device']}, {accelerator.num_processes} process(es)",
        }
        save_results(run, distilled, before, records, facts)
        print(score_table([record for record in records if record["protocol"] != COST]))
        print(
            f"\nIn {run.path} after {time.perf_counter() - started:.0f} s, at most {machine['peak_memory_gib']} GiB: "
            "report.html, scores.json, distilled/"
        )
    accelerator.end_training()


if __name__ == "__main__":
    main()
