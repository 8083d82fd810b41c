"""Evaluates distilled sets beside references: students, protocols, datasets, seeds; a table, a report, all numbers.

accelerate launch recipes/evaluate.py
accelerate launch recipes/evaluate.py --set runs/a/distilled --set runs/b/distilled --targets source,cifar10 \
    --references none,random,full --students own,ssdd_vgg11 --protocol probe,finetune,knn,rank --output runs/scores

The first evaluates what `recipes/distill.py` made of the digits. Images, teacher and recipe are those that the first
set states. Started again, also with other settings, nothing is measured twice.
"""

import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ssdd_hub import DistilledSet
from ssdd_hub.configs.recipes import EvaluateConfig
from ssdd_hub.data.bank import draw_heldout, load_images
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.entries import FULL, NONE, Candidate, Contender, References, none_contender, set_contender
from ssdd_hub.evaluation.evaluation import Evaluation, Record
from ssdd_hub.evaluation.inputs import (
    ABSENT,
    check_alike,
    check_asked_images,
    check_stated_images,
    check_stated_teacher,
    has_targets_of,
    load_set,
    load_target,
    name_sets,
    stated_settings,
)
from ssdd_hub.evaluation.protocols.base import EvaluationProtocol
from ssdd_hub.evaluation.protocols.finetune import FineTuning
from ssdd_hub.evaluation.protocols.kd import KnowledgeDistillation
from ssdd_hub.evaluation.protocols.knn import NearestNeighbours
from ssdd_hub.evaluation.protocols.krr import KernelRegression
from ssdd_hub.evaluation.protocols.linear_probe import LinearProbe, MkdtProbe
from ssdd_hub.evaluation.protocols.rank import RANK, rank_records
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.evaluation.store import CellStore
from ssdd_hub.results.compare import compare, markdown_table
from ssdd_hub.results.page import render_evaluation
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.launch import build_accelerator, report_errors
from ssdd_hub.runs.machine import describe_machine, describe_versions
from ssdd_hub.selection.source import Source
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.sets.preview import MOST_IMAGES, write_preview
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.settings import parse_config, to_dict, to_yaml
from ssdd_hub.statements import stated_student
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher, build_teacher

DEFAULT = Path(__file__).parent / "configs" / "evaluate.yaml"


def load_source(
    config: EvaluateConfig, first: DistilledSet, accelerator: Accelerator, given: Collection[str]
) -> tuple[RealData | None, Teacher | None]:
    """Loads the images and the teacher that the sets were made of, as far as they are to be had.

    Where these are not given but stated by the first set, they must be the same still.
    """
    if config.source.name == ABSENT:
        return None, None
    check_asked_images(first, config.source)
    bank, heldout = load_images(config.source, config.seed, accelerator.is_main_process)
    if (bank.num_channels, bank.image_size) != (first.images.shape[1], first.images.shape[3]):
        raise InputError(f"the source images are {tuple(bank.pixels.shape[1:])}, those of the set {first}")
    if "source.name" not in given:
        check_stated_images(first, config.source, config.seed, bank, heldout)
    heldout = draw_heldout(heldout, config.evaluate.max_heldout, config.seed)
    data = RealData(Path(config.source.name).name, bank, heldout, first.student_pixel_space, accelerator.device)
    if config.teacher.backbone == ABSENT:
        return data, None
    teacher = build_teacher(config.teacher.backbone, **config.teacher.building())
    check_stated_teacher(first, teacher, given)
    return data, teacher.to(accelerator.device)


def load_targets(
    config: EvaluateConfig, first: DistilledSet, own: RealData | None, accelerator: Accelerator
) -> list[RealData]:
    """Loads what is measured on; the source images come first."""
    strangers = [*(config.target_args.keys() - {*config.targets}), *(config.student_args.keys() - {*config.students})]
    if strangers:
        raise InputError(f"target_args and student_args are for --targets and --students, which lack {strangers}")
    most, seed, device = config.evaluate.max_heldout, config.seed, accelerator.device
    named = [name for name in config.targets if name != "source"]
    data = [load_target(name, config.target_args.get(name, {}), first, most, seed, device) for name in named]
    data = [*([own] if own is not None and "source" in config.targets else []), *data]
    if not data:
        raise InputError("there is nothing to measure on: give --source.name, or --targets that are datasets")
    return data


def compute_targets(
    config: EvaluateConfig,
    first: DistilledSet,
    own: RealData,
    teacher: Teacher,
    run: RunFolder,
    accelerator: Accelerator,
) -> tuple[Source, RealData]:
    """Computes the teacher's targets of the source images, for the references and for the error to the teacher."""
    cache = FeatureCache(teacher, accelerator, Path(config.cache) if config.cache else run.path / "features")
    features, heldout_features = cache.features(own.train), cache.features(own.heldout)
    transform = first.target_transform or TargetTransform.fit("none", features)
    source = Source(own.train, Targets(features, transform), teacher, transform, own.pixel_space, accelerator.device)
    return source, replace(own, heldout_targets=Targets(heldout_features, transform)[:])


def wanted_references(config: EvaluateConfig) -> list[str]:
    """Returns the references, with the whole source where architectures are ranked."""
    return list(dict.fromkeys([*config.references, *([FULL] if RANK in config.protocols else [])]))


def prepare_contenders(
    config: EvaluateConfig,
    sets: Mapping[str, DistilledSet],
    source: Source | None,
    run: RunFolder,
    accelerator: Accelerator,
) -> list[Contender]:
    """Lists the sets and the references, and makes the selections among these that are not there yet."""
    transform = next(iter(sets.values())).target_transform
    found = [
        set_contender(name, s, accelerator.device, source is not None and has_targets_of(s, source.teacher, transform))
        for name, s in sets.items()
    ]
    wanted = wanted_references(config)
    if source is None:
        return [*found, *([none_contender()] if wanted else [])]
    views = SetPairs(next(iter(sets.values()))).num_views if config.use.augment == "views" else 0
    references = References(run.path / "references", source, config.selection, config.seed, views)
    counts = [len(s.images) for s in sets.values()]
    if accelerator.is_main_process:
        references.prepare(wanted, counts, config.evaluate.seeds)
    accelerator.wait_for_everyone()
    return [*found, *references.contenders(wanted, counts)]


def prepare_candidates(
    config: EvaluateConfig, first: DistilledSet, protocols: Mapping[str, EvaluationProtocol]
) -> list[Candidate]:
    """Lists the students, and the architectures to be ranked, which are asked one protocol only."""
    own = stated_student(first.provenance) or {"name": "ssdd_convnet3", "model_args": {}}
    named = {name: (name, config.student_args.get(name, {})) for name in config.students}
    if "own" in named:
        title = f"own {own['name']}" if own["name"] in named else own["name"]
        named = {title: (own["name"], own["model_args"]), **named}
        del named["own"]
    shape = {"num_targets": first.targets.shape[1], "in_chans": first.images.shape[1]}
    shape |= {"image_size": first.images.shape[3]}
    asked = [protocols[name] for name in config.protocols if name != RANK]
    found = [Candidate.of(name, args, asked, title, **shape) for title, (name, args) in named.items()]
    for variant in config.rank.variants if RANK in config.protocols else []:
        args = {key: value for key, value in variant.items() if key != "name"}
        title = f"{variant['name']} {' '.join(f'{key}={value}' for key, value in args.items())}"
        found.append(Candidate.of(variant["name"], args, [protocols[config.rank.by]], title, **shape))
    return found


def prepare_protocols(config: EvaluateConfig, teacher: Teacher | None) -> dict[str, EvaluationProtocol]:
    """Returns the protocols that are asked for, and the one that ranks, by name."""
    build: dict[str, Callable[[], EvaluationProtocol]] = {
        "teacher_error": TeacherError,
        "probe": lambda: LinearProbe(config.probe),
        "probe_mkdt": lambda: MkdtProbe(config.probe),
        "finetune": lambda: FineTuning(config.finetune),
        "knn": lambda: NearestNeighbours(config.knn),
        "krr": lambda: KernelRegression(config.krr, config.knn),
        "kd": lambda: KnowledgeDistillation(config.kd, teacher),
    }
    wanted = dict.fromkeys([*config.protocols, *([config.rank.by] if RANK in config.protocols else [])])
    return {name: build[name]() for name in wanted if name != RANK}


def save_results(
    run: RunFolder,
    config: EvaluateConfig,
    sets: Mapping[str, DistilledSet],
    records: list[Record],
    accelerator: Accelerator,
    seconds: float,
) -> None:
    """Writes all numbers, the table and the report, and prints the table."""
    machine = describe_machine(accelerator.device, accelerator.num_processes)
    about = {"machine": machine, "versions": describe_versions(), "command": describe_command()}
    baselines = [name for name in ("random", "kmeans") if name in config.references]
    comparisons = [row for name in baselines for row in compare(records, name)]
    table = markdown_table(records, baselines)
    run.write_json("scores.json", {"records": records, "comparisons": comparisons, **about})
    (run.path / "scores.md").write_text(table, encoding="utf-8")
    facts = {
        "sets": ", ".join(config.sets),
        "seconds of this command": f"{seconds:.0f}",
        "machine": f"{machine['cpus']} CPUs, {machine['device']}, {accelerator.num_processes} process(es)",
        "command": about["command"],
    }
    previews = {name: run.path / "pictures" / f"set-{number}.png" for number, name in enumerate(sets, 1)}
    for name, path in previews.items():
        # Drawn here: the file of a folder from elsewhere may show anything.
        write_preview(path, sets[name].pixel_space.denormalise(sets[name].images[:MOST_IMAGES]))
    render_evaluation(run.path, records, comparisons, facts, to_yaml(config), previews)
    print(table)
    print(f"\nIn {run.path} after {seconds:.0f} s: report.html, scores.md, scores.json")


def of_first_set(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the first set states of its making, for settings that are not given."""
    return stated_settings(given["sets"][0], given) if given.get("sets") else {}


@report_errors
def main() -> None:
    """Sets, source, targets, references, students; cells; table and report."""
    started = time.perf_counter()
    # The settings for the digits are not those of other sets.
    named = any(word.partition("=")[0] in ("--set", "--sets") for word in sys.argv)
    given = dict[str, Any]()

    def stated(values: Mapping[str, Any]) -> dict[str, Any]:
        given.update(values)
        return of_first_set(values)

    config = parse_config(EvaluateConfig, None if named else DEFAULT, description=__doc__, stated=stated)
    accelerator = build_accelerator(config.run, Path(config.output))
    run = RunFolder(Path(config.output), to_dict(config), accelerator.is_main_process, same_settings=False)
    accelerator.wait_for_everyone()
    accelerator.print(to_yaml(config))

    loaded = [load_set(place, config.foreign) for place in config.sets]
    sets = dict(zip(name_sets(config.sets), loaded, strict=True))
    check_alike(sets)
    first = loaded[0]
    own, teacher = load_source(config, first, accelerator, given)
    data = load_targets(config, first, own, accelerator)
    if teacher is None and set(wanted_references(config)) - {NONE}:
        raise InputError(
            "references are made of the source images and their teacher: give --source.name, --teacher.backbone "
            "and --teacher.pretrained, or --references none"
        )
    candidates = prepare_candidates(config, first, prepare_protocols(config, teacher))
    # Nothing is left that a mend of the settings could change.
    run.start()
    source = None
    if own is not None and teacher is not None:
        source, known = compute_targets(config, first, own, teacher, run, accelerator)
        data = [known if entry is own else entry for entry in data]
    contenders = prepare_contenders(config, sets, source, run, accelerator)

    evaluation = Evaluation(
        contenders,
        candidates,
        data,
        config.use,
        seeds=config.evaluate.seeds,
        seed=config.seed,
        store=CellStore(run.path / "cells"),
        facts={"source": own.name if own else None},
    )
    records = evaluation.run(accelerator)
    if accelerator.is_main_process:
        ranked = [candidate.name for candidate in candidates[-len(config.rank.variants) :]]
        records += rank_records(records, ranked, config.rank.by, FULL) if RANK in config.protocols else []
        save_results(run, config, sets, records, accelerator, time.perf_counter() - started)


if __name__ == "__main__":
    main()
