"""Evaluates distilled sets beside references: students, protocols, datasets, seeds; a table, a report, all numbers.

accelerate launch recipes/evaluate.py
accelerate launch recipes/evaluate.py --set runs/a/distilled --set runs/b/distilled --datasets source,cifar10 \
    --references none,random,full --students own,ssdd_vgg11 --protocol probe,finetune,knn,rank --output runs/scores

The first evaluates what `recipes/distill.py` made of the digits. Images, teacher and recipe are those that the first
set states. Started again, also with other settings, nothing is measured twice.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ssdd_hub import InputError
from ssdd_hub.bounds import among
from ssdd_hub.data import DataSettings
from ssdd_hub.errors import require
from ssdd_hub.evaluation import Baselines, EvaluateSettings, Evaluation, ScoreStore, protocols as kinds
from ssdd_hub.evaluation.entries import FULL, NONE, REFERENCES, TEACHER, entry_of_none, first_images
from ssdd_hub.evaluation.estimate import time_pretrainings
from ssdd_hub.evaluation.evaluation import Record
from ssdd_hub.evaluation.forms import Form
from ssdd_hub.evaluation.inputs import stated_settings
from ssdd_hub.evaluation.loading import (
    Loader,
    budgets_of,
    check_references,
    check_students,
    check_views,
    load_sets,
    prepare_references,
)
from ssdd_hub.evaluation.protocols.accuracy import check_labels
from ssdd_hub.evaluation.protocols.backbone_probe import NAME as BACKBONE_PROBE
from ssdd_hub.evaluation.protocols.dd_ranking import DD_RANKING, RANDOM
from ssdd_hub.evaluation.protocols.rank import RANK
from ssdd_hub.models import StudentTrainingSettings
from ssdd_hub.runs import EstimatedSettings, describe_machine, report_errors
from ssdd_hub.runs.begin import begin
from ssdd_hub.runs.folder import folder_name
from ssdd_hub.runs.launch import keeping
from ssdd_hub.runs.trackers import start_trackers, track_scores
from ssdd_hub.seeds import generators_kept
from ssdd_hub.selection import SelectionSettings
from ssdd_hub.selection.methods import OF_REAL
from ssdd_hub.sets import SetPairs
from ssdd_hub.sets.report import save_evaluation
from ssdd_hub.settings import parse_config
from ssdd_hub.teachers import Teacher, TeacherSettings
from ssdd_hub.text import show

DEFAULT = Path(__file__).parent / "configs" / "evaluate.yaml"
EQUAL = ("images", "bytes", "both")
RECIPE = {each.name for each in fields(StudentTrainingSettings)} - {"epochs", "max_steps", "steps", "batch_size"}
PROTOCOLS = (
    *("accuracy", "teacher_error", "probe", "probe_mkdt", "finetune", "knn", "krr", "kd"),
    *(RANK, DD_RANKING, BACKBONE_PROBE),
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that decides an evaluation.

    Settings of `source`, `teacher`, `student_training` and `seed` that are not given are those that the first set
    states of itself.

    Attributes:
        sets: The sets: folders, Hub ids, or folders of `x_syn.pt` and `y_syn.pt`. `--set a --set b` for several.
        foreign: What folders of `x_syn.pt` and `y_syn.pt` do not state: `layout` (krr-st, mkdt or dd-ranking), and the
            pixel space, by `mean` and `std` or by the `dataset` for which that code has them.
        references: What they are compared with: `none` (no pre-training), `random`, `kmeans`, `kmeans-pixels`,
            `kcenter`, `herding`, `high_loss`, `rded` (tiled crops), `gaussian`, `full` (the whole source), and
            `teacher` (its own features).
        at_equal: What selections share with a set: its number of `images`, its `bytes` as stored, or `both` in turn.
        forms: How real images are stored at equal bytes: `png`, `jpeg-QUALITY`, `factor-SIDES` (smaller images),
            `factor-SIDES-jpeg-QUALITY`, or `dct` (that parameterisation, with the settings of the set where it is
            one). At equal numbers of images they are used as they are.
        counts: Images of references at equal numbers; by default as many as each set has.
        budgets: Bytes that references fill at equal bytes, each set beside those of the smallest that holds it; by
            default as many as each set takes.
        datasets: The datasets to measure on: `source`, Hub ids, folders, or names that `dataset_args` explains.
        dataset_args: Settings of such a dataset, by its name: `--dataset-args.cars.name FOLDER`,
            `--dataset-args.cars.label_column label`.
        students: The networks that are pre-trained: timm names, or `own`, what the first set was distilled with.
        student_args: Arguments of a student's timm model, by its name.
        protocols: What scores them: `accuracy` and `backbone_probe` (of sets with labels), `teacher_error`, `probe`,
            `probe_mkdt`, `finetune`, `knn`, `krr`, `kd`, `rank`, `dd_ranking`. By default `teacher_error` and `probe`,
            for targets that are class labels `accuracy` and `probe`.
        evaluate: How much is measured.
        source: The images that the sets were made of; their name is `none` where they are not to be had.
        teacher: The teacher of their targets; its backbone is `none` where it is not to be had.
        student_training: How students are pre-trained, the same for all sets.
        reference_training: Settings of `student_training` that references have otherwise, so that each side has its
            best recipe: `--reference-training.mixup 0.5`. Steps and batches are the same for all.
        accuracy: The training of a network on the set alone.
        probe: The linear probe.
        finetune: Fine-tuning.
        knn: Nearest neighbours.
        krr: Kernel ridge regression.
        kd: Knowledge distillation without target data.
        rank: Ranking of architectures.
        dd_ranking: The two scores of DD-Ranking, of sets with labels.
        backbone_probe: Linear probes on frozen networks that a set with labels trains.
        selection: How references are selected.
        run: How the processes compute.
        cache: Folder of cached teacher features; `features/` of the output folder when not given.
        seed: Seed of everything random.
        output: The folder of the results; `runs/NAME-evaluation` when not given, after the first set.
    """

    SHORT: ClassVar[dict[str, str]] = {"set": "sets", "protocol": "protocols"}
    RENAMED: ClassVar[dict[str, str]] = {
        "use": "student_training",
        "targets": "datasets",
        "target_args": "dataset_args",
    }

    sets: list[str] = field(default_factory=list)
    foreign: dict[str, Any] = field(default_factory=dict)
    references: list[str] = field(default_factory=lambda: ["none", "random"])
    at_equal: str = "images"
    forms: list[str] = field(default_factory=lambda: ["png", "jpeg-50", "factor-2"])
    counts: list[int] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)
    datasets: list[str] = field(default_factory=lambda: ["source"])
    dataset_args: dict[str, Any] = field(default_factory=dict)
    students: list[str] = field(default_factory=lambda: ["own"])
    student_args: dict[str, Any] = field(default_factory=dict)
    protocols: list[str] = field(default_factory=lambda: ["teacher_error", "probe"])
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    source: DataSettings = field(default_factory=lambda: DataSettings(name="none"))
    teacher: TeacherSettings = field(default_factory=lambda: TeacherSettings(backbone="none"))
    student_training: StudentTrainingSettings = field(default_factory=StudentTrainingSettings)
    reference_training: dict[str, Any] = field(default_factory=dict)
    accuracy: kinds.AccuracySettings = field(default_factory=kinds.AccuracySettings)
    probe: kinds.ProbeSettings = field(default_factory=kinds.ProbeSettings)
    finetune: kinds.FinetuneSettings = field(default_factory=kinds.FinetuneSettings)
    knn: kinds.KnnSettings = field(default_factory=kinds.KnnSettings)
    krr: kinds.KrrSettings = field(default_factory=kinds.KrrSettings)
    kd: kinds.KdSettings = field(default_factory=kinds.KdSettings)
    rank: kinds.RankSettings = field(default_factory=kinds.RankSettings)
    dd_ranking: kinds.DdRankingSettings = field(default_factory=kinds.DdRankingSettings)
    backbone_probe: kinds.BackboneProbeSettings = field(default_factory=kinds.BackboneProbeSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    run: EstimatedSettings = field(default_factory=EstimatedSettings)
    cache: str | None = None
    seed: int = 0
    output: str = ""

    def __post_init__(self) -> None:
        # YAML has a word for nothing, which is a reference here.
        references = ["none" if name in ("null", "None") else name for name in self.references]
        object.__setattr__(self, "references", references)
        idle = [*(self.dataset_args.keys() - {*self.datasets}), *(self.student_args.keys() - {*self.students})]
        otherwise = sorted(self.reference_training.keys() - RECIPE)
        sizes = {"counts": self.counts, "budgets": self.budgets}
        empty = {"datasets": "dataset, such as source", "students": "network, such as own", "protocols": "protocol"}
        require(
            (bool(self.sets), "sets must name at least one set: --set FOLDER_OR_HUB_ID"),
            (len(set(self.sets)) == len(self.sets), f"sets must differ from each other, got {self.sets}"),
            among("references", references, REFERENCES),
            among("protocols", self.protocols, PROTOCOLS),
            among("at_equal", self.at_equal, EQUAL),
            *map(Form.check, self.forms),
            *((min(sizes, default=1) > 0, f"{key} must be above 0, got {sizes}") for key, sizes in sizes.items()),
            *((bool(getattr(self, key)), f"{key} must name at least one {what}") for key, what in empty.items()),
            (not idle, f"dataset_args and student_args are for --datasets and --students, which lack {idle}"),
            (
                not otherwise,
                f"reference_training takes {', '.join(sorted(RECIPE))}; got {', '.join(map(show, otherwise))}",
            ),
            (
                (BACKBONE_PROBE in self.protocols) == bool(self.backbone_probe.backbones),
                "the protocol backbone_probe and --backbone-probe.backbones, which names networks, go together",
            ),
            (
                DD_RANKING not in self.protocols or self.at_equal != "bytes",
                "dd_ranking is beside as many random images: leave it out, or give --at-equal images or both",
            ),
            (
                "views" not in (self.student_training.augment, self.reference_training.get("augment"))
                or not {"full", "rank"} & {*references, *self.protocols},
                "the whole source has no stored views: leave out the reference full and the protocol rank, or choose "
                "another --student-training.augment",
            ),
        )
        own = {self.accuracy.augment} & {"own"} and {"accuracy", DD_RANKING} & {*self.protocols}
        views, others = self.student_training.augment == "views", self.use_of_references().augment != "views"
        require(
            (
                not (own and views and others and {*references} - {NONE, TEACHER}),
                "accuracy.augment own is that of the sets, views, and references that are trained by another "
                "reference_training.augment hold none: give --accuracy.augment none, flip, crop-flip or dsa",
            )
        )
        if not self.output:
            place = Path(self.sets[0])
            name = place.parent.name if place.name == "distilled" else place.name
            object.__setattr__(self, "output", f"runs/{folder_name(name)}-evaluation")

    def use_of_references(self) -> StudentTrainingSettings:
        """Returns how students are pre-trained on references."""
        return replace(self.student_training, **self.reference_training)


def builders(config: EvaluateConfig, teacher: Teacher | None) -> dict[str, Callable[[], kinds.EvaluationProtocol]]:
    """Returns what builds each protocol but `rank`, `dd_ranking` and `backbone_probe`, by name."""
    return {
        "accuracy": partial(kinds.Accuracy, config.accuracy, config.student_training),
        "teacher_error": kinds.TeacherError,
        "probe": partial(kinds.LinearProbe, config.probe),
        "probe_mkdt": partial(kinds.MkdtProbe, config.probe),
        "finetune": partial(kinds.FineTuning, config.finetune),
        "knn": partial(kinds.NearestNeighbours, config.knn),
        "krr": partial(kinds.KernelRegression, config.krr, config.knn),
        "kd": partial(kinds.KnowledgeDistillation, config.kd, teacher),
    }


def read_settings() -> tuple[EvaluateConfig, dict[str, Any]]:
    """Returns the settings, and those of them that are given, by dotted name."""
    # The settings for the digits are not those of other sets.
    named = any(word.partition("=")[0] in ("--set", "--sets") for word in sys.argv)
    given = dict[str, Any]()

    def stated(values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the first set states of its making."""
        given.update(values)
        return stated_settings(values["sets"][0], values) if values.get("sets") else {}

    default, place = None if named else DEFAULT, DEFAULT.parent
    return parse_config(EvaluateConfig, default, description=__doc__, stated=stated, folder=place), given


def measure(config: EvaluateConfig, given: Mapping[str, Any]) -> list[Record]:
    """Sets, source, datasets, students, references; scores; table and report; returns the scores."""
    started = time.perf_counter()
    accelerator, run = begin(config, same_settings=False)
    sets = load_sets(config.sets, config.foreign)
    first, counts = next(iter(sets.values())), [len(each.images) for each in sets.values()]
    check_views(sets, config.student_training)
    if {*config.references} & {*OF_REAL}:
        # References have as many views as the first set.
        check_views({next(iter(sets)): first}, config.use_of_references())
    config = replace(config, accuracy=config.accuracy.of_sets({name: each.provenance for name, each in sets.items()}))
    loader = Loader(first, given, config.seed, config.evaluate.max_heldout, accelerator)
    own = loader.source(config.source)
    teacher = loader.teacher(config.teacher) if own else None
    data = loader.datasets(config.datasets, config.dataset_args, own)
    # Architectures are ranked by what the whole source teaches them.
    ranks, robust = RANK in config.protocols, DD_RANKING in config.protocols
    wanted = list(dict.fromkeys([*config.references, *([FULL] if ranks else []), *([RANDOM, FULL] if robust else [])]))
    has_targets = own is not None and (teacher is not None or loader.labelled)
    if not has_targets and {*wanted} - {NONE}:
        raise InputError(
            "references are made of the source images and their teacher: give --source.name, --teacher.backbone "
            "and --teacher.pretrained, or --references none"
        )
    build = builders(config, teacher)
    scoring = [build[name]() for name in config.protocols if name in build]
    variants = kinds.accuracy_variants(config.accuracy, config.student_training, config.dd_ranking)
    if robust:
        scoring = [*{protocol.name: protocol for protocol in [*scoring, *variants.values()]}.values()]
    if BACKBONE_PROBE in config.protocols:
        scoring += kinds.BackboneProbe.of_each(config.backbone_probe)
    if robust or {"accuracy", BACKBONE_PROBE} & {*config.protocols}:
        for name, distilled in sets.items():
            check_labels(name, distilled)
    candidates = loader.candidates(config.students, config.student_args, scoring)
    ranked = loader.variants(config.rank.variants, build[config.rank.by]()) if ranks else []
    sizes = config.counts or counts
    if own:
        check_references(wanted, sizes, own, config.selection, loader.labelled)
    budgets = budgets_of(sets, config.forms, config.budgets) if own and config.at_equal != "images" else {}
    check_students([*candidates, *ranked], config.student_training, min(counts))
    # From here on nothing fails that other settings could repair.
    run.start()
    start_trackers(accelerator, run)

    source = None
    if own and has_targets:
        source, known = loader.targets(own, teacher, Path(config.cache or run.path / "features"))
        data = [known if entry is own else entry for entry in data]
    set_entries = loader.set_entries(sets, source)
    if source:
        use = config.use_of_references()
        pairs = SetPairs(first)
        views = (pairs.num_views, pairs.view_kind) if use.augment == "views" else ()
        references = Baselines(run.path / "references", source, config.selection, config.seed, *views)
        sizes = sizes if config.at_equal != "bytes" else []
        made = prepare_references(references, wanted, sizes, config.evaluate.seeds, accelerator, budgets)
        set_entries += [entry if entry.name in (NONE, TEACHER) else replace(entry, use=use) for entry in made]
        if FULL not in config.references and not ranks:
            # It is there for the accuracy with hard labels alone.
            hard = (variants["hard"].name,)
            set_entries = [replace(each, protocols=hard) if each.name == FULL else each for each in set_entries]
    elif wanted:
        set_entries.append(entry_of_none())
    parts = (set_entries, [*candidates, *ranked], data, config.student_training, config.evaluate.seeds, config.seed)
    store, facts = ScoreStore(run.path / "scores"), {"source": own.name if own else None}
    with keeping("every score so far", run.path / "scores"):
        evaluation = Evaluation(*parts, store, facts)
        if config.run.estimate:
            with generators_kept(accelerator.device):
                stage = time_pretrainings(evaluation, accelerator)
            if stage.steps:
                accelerator.print(f"pre-training {stage.steps} students: about {stage.seconds:.0f} s, then scoring")
        results = evaluation.measure(accelerator)
        records = results.records
        if accelerator.is_main_process:
            records += kinds.robustness_records(records, variants, config.dd_ranking) if robust else []
            records += kinds.rank_records(records, [each.name for each in ranked], config.rank.by, FULL)
            track_scores(accelerator, records)
            machine = describe_machine(accelerator.device, accelerator.num_processes)
            seconds = time.perf_counter() - started
            beside = [entry for entry in set_entries if entry.name.startswith("random")]
            images = {entry.name: first_images(entry) for entry in beside}
            print(save_evaluation(run, config, sets, records, machine, seconds, results.by_class, images))
            files = "report.html, gallery.html, scores.md, scores.json"
            files += ", worth.png" if (run.path / "worth.png").is_file() else ""
            print(f"\nIn {run.path} after {seconds:.0f} s: {files}")
    accelerator.end_training()
    return records


@report_errors
def main() -> None:
    """Reads the settings and measures."""
    measure(*read_settings())


if __name__ == "__main__":
    main()
