"""The settings of the recipes that distil and evaluate, put together from those of the parts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ssdd_hub.data.bank import DataSettings
from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.distill.registry import MethodSettings, ParameterisationSettings
from ssdd_hub.errors import require
from ssdd_hub.evaluation.entries import REFERENCES
from ssdd_hub.evaluation.evaluation import EvaluateSettings
from ssdd_hub.evaluation.protocols.finetune import FinetuneSettings
from ssdd_hub.evaluation.protocols.kd import KdSettings
from ssdd_hub.evaluation.protocols.knn import KnnSettings
from ssdd_hub.evaluation.protocols.krr import KrrSettings
from ssdd_hub.evaluation.protocols.linear_probe import ProbeSettings
from ssdd_hub.evaluation.protocols.rank import RankSettings
from ssdd_hub.models.build import StudentSettings
from ssdd_hub.models.pretraining import UseSettings
from ssdd_hub.runs.folder import LaunchSettings, RunSettings, folder_name
from ssdd_hub.selection.methods import SelectionSettings
from ssdd_hub.selection.start import INITS, explain_start
from ssdd_hub.targets.targets import TargetSettings
from ssdd_hub.teachers.teacher import TeacherSettings
from ssdd_hub.teachers.training import PretrainSettings

PROTOCOLS = ("teacher_error", "probe", "probe_mkdt", "finetune", "knn", "krr", "kd", "rank")


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides a distillation run.

    Attributes:
        data: The source images.
        teacher: The network whose features are the targets.
        pretrain: How the teacher is trained, unless it is ready made.
        targets: How its features become targets.
        student: The network that distils and is pre-trained on the result.
        method: What says how good the set is.
        parameterisation: What is learned, and how it becomes images and targets.
        init: What the set starts from: `random`, `kmeans`, `kmeans-pixels`, `kcenter`, `herding`, `high_loss`, which
            choose real images, or `noise`.
        selection: How these are chosen.
        pool: The online students, of methods that have any.
        distiller: The outer problem.
        use: How students are pre-trained on the result.
        evaluate: How much is measured.
        probe: How it is measured what a student knows of the classes.
        run: Where the run is kept, and how often.
        seed: Seed of everything random.
        output: The run folder; `runs/NAME` when not given, after the last part of `data.name`.
    """

    SHORT: ClassVar[dict[str, str]] = {"method": "method.name", "parameterisation": "parameterisation.name"}

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    parameterisation: ParameterisationSettings = field(default_factory=ParameterisationSettings)
    init: str = "random"
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    use: UseSettings = field(default_factory=UseSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    run: RunSettings = field(default_factory=RunSettings)
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        require(
            (self.init in INITS, explain_start(self.init)),
            (
                self.distiller.augment or not self.targets.views,
                "targets.views are augmented, so pass --distiller.augment true as well, or --targets.views 0",
            ),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{folder_name(self.data.name)}")


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that decides an evaluation.

    Settings of `source`, `teacher`, `use` and `seed` that are not given are those that the first set states of itself.

    Attributes:
        sets: The sets: folders, Hub ids, or folders of `x_syn.pt` and `y_syn.pt`. `--set a --set b` for several.
        foreign: What folders of `x_syn.pt` and `y_syn.pt` do not say: `layout` (krr-st, mkdt or dd-ranking), and the
            pixel space, by `mean` and `std` or by the `dataset` for which that code has them.
        references: What they are measured beside: `none` (no pre-training), `random`, `kmeans`, `kmeans-pixels`,
            `kcenter`, `herding`, `high_loss`, `gaussian`, `full` (the whole source), and `teacher` (its own features).
        targets: The datasets to measure on: `source`, Hub ids, folders, or names that `target_args` explains.
        target_args: Settings of a target's data, by its name: `--target-args.cars.name FOLDER`,
            `--target-args.cars.label_column label`.
        students: The networks that are pre-trained: timm names, or `own`, what the first set was distilled with.
        student_args: Arguments of a student's timm model, by its name.
        protocols: What is asked of a student: `teacher_error`, `probe`, `probe_mkdt`, `finetune`, `knn`, `krr`, `kd`,
            `rank`.
        evaluate: How much is measured.
        source: The images that the sets were made of; their name is `none` where they are not to be had.
        teacher: The teacher of their targets; its backbone is `none` where it is not to be had.
        use: How students are pre-trained, the same for all sets.
        probe: The linear probe.
        finetune: Fine-tuning.
        knn: Nearest neighbours.
        krr: Kernel ridge regression.
        kd: Knowledge distillation without target data.
        rank: Ranking of architectures.
        selection: How references are selected.
        run: How the processes compute.
        cache: Folder of cached teacher features; `features/` of the output folder when not given.
        seed: Seed of everything random.
        output: The folder of the results; `runs/NAME-evaluation` when not given, after the first set.
    """

    SHORT: ClassVar[dict[str, str]] = {"set": "sets", "protocol": "protocols"}

    sets: list[str] = field(default_factory=list)
    foreign: dict[str, Any] = field(default_factory=dict)
    references: list[str] = field(default_factory=lambda: ["none", "random"])
    targets: list[str] = field(default_factory=lambda: ["source"])
    target_args: dict[str, Any] = field(default_factory=dict)
    students: list[str] = field(default_factory=lambda: ["own"])
    student_args: dict[str, Any] = field(default_factory=dict)
    protocols: list[str] = field(default_factory=lambda: ["teacher_error", "probe"])
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    source: DataSettings = field(default_factory=lambda: DataSettings(name="none"))
    teacher: TeacherSettings = field(default_factory=lambda: TeacherSettings(backbone="none"))
    use: UseSettings = field(default_factory=UseSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    knn: KnnSettings = field(default_factory=KnnSettings)
    krr: KrrSettings = field(default_factory=KrrSettings)
    kd: KdSettings = field(default_factory=KdSettings)
    rank: RankSettings = field(default_factory=RankSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    run: LaunchSettings = field(default_factory=LaunchSettings)
    cache: str | None = None
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        # YAML has a word for nothing, which is a reference here.
        references = ["none" if name in ("null", "None") else name for name in self.references]
        object.__setattr__(self, "references", references)
        strangers = [name for name in references if name not in REFERENCES]
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        require(
            (bool(self.sets), "sets must name at least one set: --set FOLDER_OR_HUB_ID"),
            (len(set(self.sets)) == len(self.sets), f"sets must differ from each other, got {self.sets}"),
            (
                not strangers,
                f"references must be some of {', '.join(REFERENCES)}; got {', '.join(strangers)}",
            ),
            (not unknown, f"protocols must be some of {', '.join(PROTOCOLS)}; got {', '.join(unknown)}"),
            (
                self.use.augment != "views" or not {"full", "rank"} & {*references, *self.protocols},
                "the whole source has no stored views: leave out the reference full and the protocol rank, or choose "
                "another --use.augment",
            ),
            (bool(self.protocols), f"protocols must name at least one of {', '.join(PROTOCOLS)}"),
            (bool(self.targets), "targets must name at least one dataset, such as source"),
            (bool(self.students), "students must name at least one network, such as own"),
        )
        if not self.output:
            place = Path(self.sets[0])
            name = place.parent.name if place.name == "distilled" else place.name
            object.__setattr__(self, "output", f"runs/{folder_name(name)}-evaluation")
