"""All settings of a recipe, put together from those that the parts keep beside themselves; only recipes import it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ssdd_hub.distiller import DistillerSettings
from ssdd_hub.errors import require
from ssdd_hub.evaluate import EvaluateSettings
from ssdd_hub.images import DataSettings
from ssdd_hub.knn import WatchSettings
from ssdd_hub.pool import PoolSettings
from ssdd_hub.pretrain import PretrainSettings
from ssdd_hub.run_folder import LaunchSettings, RunSettings
from ssdd_hub.students import StudentSettings
from ssdd_hub.targets import TargetSettings
from ssdd_hub.teacher import TeacherSettings


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides a distillation run.

    Attributes:
        data: The source images.
        teacher: The network whose features are the targets.
        pretrain: How the teacher is trained, unless it is ready made.
        targets: How its features become targets.
        student: The network that distils and is pre-trained on the result.
        pool: The online students.
        distiller: The outer problem.
        evaluate: What the result is measured by.
        run: Where the run is kept, and how often.
        seed: Seed of everything random.
        output: The run folder; `runs/NAME` when not given, after the last part of `data.name`.
    """

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    run: RunSettings = field(default_factory=RunSettings)
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        require(
            (
                self.distiller.augment or not self.targets.views,
                "targets.views are augmented, so pass --distiller.augment true as well, or --targets.views 0",
            ),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{_folder_name(self.data.name)}")


@dataclass(frozen=True)
class TrainTeacherConfig:
    """Everything that decides the training of a teacher.

    Attributes:
        data: The source images.
        teacher: The network to train.
        pretrain: How it is trained.
        watch: What its progress is measured by.
        run: How the processes compute.
        seed: Seed of everything random.
        output: The run folder; `runs/NAME-OBJECTIVE` when not given, after the last part of `data.name`.
    """

    SHORT: ClassVar[dict[str, str]] = {"objective": "pretrain.objective"}

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    run: LaunchSettings = field(default_factory=LaunchSettings)
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        require(
            (
                not self.teacher.ready,
                "this recipe trains a teacher from fresh weights: leave out --teacher.pretrained and "
                "--teacher.checkpoint; a ready-made one goes straight into recipes/distill.py",
            ),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{_folder_name(self.data.name)}-{self.pretrain.objective}")


@dataclass(frozen=True)
class ComputeTargetsConfig:
    """Everything that decides the features of a dataset.

    Attributes:
        data: The images.
        teacher: The network whose features they are.
        targets: How features are computed and stored; `transform` and `dim` come later, and change nothing here.
        run: How the processes compute.
        seed: Seed of the fixed views, and of a drawn part of the images.
        output: The folder of the features, which `distill.py` takes as `--run.cache`; `runs/NAME-features` when not
            given, after the last part of `data.name`.
    """

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    run: LaunchSettings = field(default_factory=LaunchSettings)
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        require(
            (
                self.run.mixed_precision == "no",
                "features are computed in the precision of the teacher: leave out --run.mixed-precision; "
                "--targets.dtype float16 stores them in half precision",
            ),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{_folder_name(self.data.name)}-features")


def _folder_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip(".-") or "run"
