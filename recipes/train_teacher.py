"""Trains a teacher without labels: any of our objectives, on any timm backbone, watched by nearest neighbours.

accelerate launch recipes/train_teacher.py
accelerate launch recipes/train_teacher.py --objective vicreg --teacher.backbone resnet50 --data.name FOLDER_OR_HUB_ID

The first runs on scikit-learn's embedded digits. The teacher is saved in timm's own layout, for
`timm.create_model("local-dir:runs/.../teacher", pretrained=True)` and for
`recipes/distill.py --teacher.backbone local-dir:runs/.../teacher --teacher.pretrained`.
Started again, a run goes on where it stopped.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from ssdd_hub import PixelSpace
from ssdd_hub.data import DataSettings, load_images
from ssdd_hub.errors import require
from ssdd_hub.estimates import time_training_alone
from ssdd_hub.evaluation import RealData
from ssdd_hub.evaluation.protocols.base import Pretrained
from ssdd_hub.evaluation.protocols.linear_probe import LinearProbe, ProbeSettings
from ssdd_hub.runs import EstimatedSettings, describe_machine, describe_versions, report_errors
from ssdd_hub.runs.begin import begin
from ssdd_hub.runs.estimate import as_sized, estimate, minutes_checks
from ssdd_hub.runs.folder import folder_name
from ssdd_hub.runs.inputs import describe_images
from ssdd_hub.runs.launch import keeping
from ssdd_hub.sets import describe_training
from ssdd_hub.settings import parse_config, to_dict
from ssdd_hub.teachers import Teacher, TeacherSettings, TeacherTrainingSettings, Watch, WatchSettings, train_teacher
from ssdd_hub.teachers.monitor import accuracy_record, knn_records, render_training

DEFAULT = Path(__file__).parent / "configs" / "teacher.yaml"


@dataclass(frozen=True)
class TrainTeacherConfig:
    """Everything that decides the training of a teacher.

    Attributes:
        data: The source images.
        teacher: The network to train.
        teacher_training: How it is trained.
        watch: What its progress is measured by.
        run: How the processes compute.
        seed: Seed of everything random.
        minutes: How long the run should take: chooses the steps, by an estimate; 10 times those of the settings at
            most.
        output: The run folder; `runs/NAME-OBJECTIVE` when not given, after the last part of `data.name`.
    """

    SHORT: ClassVar[dict[str, str]] = {"objective": "teacher_training.objective"}
    RENAMED: ClassVar[dict[str, str]] = {"pretrain": "teacher_training"}

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    teacher_training: TeacherTrainingSettings = field(default_factory=TeacherTrainingSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    run: EstimatedSettings = field(default_factory=EstimatedSettings)
    seed: int = 0
    minutes: float | None = None
    output: str = ""

    def __post_init__(self) -> None:
        require(
            *minutes_checks(self.minutes, self.run.estimate),
            (
                not self.teacher.ready,
                "this recipe trains a teacher from fresh weights: leave out --teacher.pretrained and "
                "--teacher.checkpoint; a ready-made one goes straight into recipes/distill.py",
            ),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{folder_name(self.data.name)}-{self.teacher_training.objective}")


def make_teacher(config: TrainTeacherConfig) -> Teacher:
    """Images, training, teacher, scores; returns the teacher."""
    started, config = time.perf_counter(), as_sized(config)
    accelerator, run = begin(config)
    source, heldout = load_images(config.data, config.seed, accelerator.is_main_process)
    space = PixelSpace.of(source.pixels)
    watch = Watch(source, heldout, space, config.watch, config.seed)
    stages = partial(time_training_alone, config, source, watch, run, accelerator)
    config, estimated = estimate(config, run, accelerator, started, stages)
    provenance = describe_training(to_dict(config), source.provenance)
    teacher = train_teacher(
        config.teacher,
        config.teacher_training,
        source,
        space,
        run,
        seed=config.seed,
        accelerator=accelerator,
        watch=watch,
        provenance=provenance,
        # Labels too: the log holds the scores of the neighbours.
        inputs=describe_images(source, heldout, labels=True),
    )
    # With the scores on the way.
    estimated.done("teacher")
    with keeping("the teacher", run.path / "teacher"):
        if accelerator.is_main_process:
            log, name = run.log.read(), provenance["source"]["name"]
            about = {"source": name, "target": name, "student": config.teacher.backbone}
            records = knn_records(log, about)
            data = RealData(name, source, heldout, space, accelerator.device)
            if config.watch.probe and data.labelled:
                probe = LinearProbe(ProbeSettings(labels=[config.watch.probe], draws=1))
                backbone = teacher.backbone.to(data.device)
                measure = probe(Pretrained(backbone, lambda: backbone, None, config.seed), data)[0]
                records.append(accuracy_record(about, "teacher", "probe", measure.value, config.watch.probe))
            machine = describe_machine(accelerator.device, accelerator.num_processes)
            facts = {"machine": machine, "versions": describe_versions(), "command": provenance["command"]}
            run.write_json("scores.json", {"records": records, **facts})
            render_training(run.path / "pictures" / "training.png", log)
            for record in records:
                print(f"{record['protocol']} accuracy, {record['set']}: {100 * record['mean']:.1f} %")
            print(f"\n{estimated.finish('report')}")
            print(
                f"In {run.path} after {estimated.total()}, at most {machine['peak_memory_gib']} GiB: "
                f"teacher/ ({teacher.feature_dim} features), scores.json, pictures/training.png"
            )
    accelerator.end_training()
    return teacher


@report_errors
def main() -> None:
    """Reads the settings and makes the teacher."""
    make_teacher(parse_config(TrainTeacherConfig, DEFAULT, description=__doc__))


if __name__ == "__main__":
    main()
