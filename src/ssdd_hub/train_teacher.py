"""From settings to a trained and saved teacher; the recipes that need one share it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from ssdd_hub.backbones import create_backbone, input_args, measure_width
from ssdd_hub.images import ImageBank
from ssdd_hub.inputs import Inputs, deciding_facts, describe_bank
from ssdd_hub.knn import Watch
from ssdd_hub.machine import describe_machine
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.pretrain import Pretraining, PretrainSettings
from ssdd_hub.run_folder import RunFolder
from ssdd_hub.streams import seeded
from ssdd_hub.teacher import Teacher, TeacherSettings, build_teacher
from ssdd_hub.teacher_report import knn_records


def new_backbone(name: str, in_chans: int, image_size: int, seed: int, **model_args: Any) -> nn.Module:
    """Builds an untrained timm backbone for images of a size; its first weights are a function of the seed.

    Raises:
        InputError: timm does not know the name or an argument.
    """
    with seeded(seed, "backbone"):
        return create_backbone(name, pretrained=False, **{**input_args(name, in_chans, image_size), **model_args})


def train_teacher(
    settings: TeacherSettings,
    pretrain: PretrainSettings,
    source: ImageBank,
    pixel_space: PixelSpace,
    run: RunFolder,
    *,
    seed: int,
    accelerator: Accelerator,
    watch: Watch | None = None,
    provenance: Mapping[str, Any],
    inputs: Inputs | None = None,
) -> Teacher:
    """Trains a teacher on all processes, unless the run already has one, and loads it from `teacher/` of the run.

    Args:
        settings: Which backbone.
        pretrain: How it is trained.
        source: The source images, whose licence the teacher inherits.
        pixel_space: The space that it sees them in.
        run: Keeps checkpoints, log and the teacher; it starts once the settings have proved usable.
        seed: Seed of everything random.
        accelerator: Names the device, the processes and the precision.
        watch: Scores the backbone on the way.
        provenance: What is recorded beside the weights.
        inputs: What the run computes from, for `RunFolder.start`; the source images by default.

    Raises:
        InputError: The backbone or the objective cannot be built, the run was begun with other inputs, or the training
            diverges.
    """
    folder = run.path / "teacher"
    backbone = new_backbone(settings.backbone, source.num_channels, source.image_size, seed, **settings.model_args)
    # A backbone without features of this kind is refused before it is trained.
    measure_width(backbone, source.num_channels, source.image_size, settings.features)
    training = Pretraining(backbone, source.pixels, pixel_space, pretrain, seed=seed, accelerator=accelerator)
    inputs = inputs or {"source": describe_bank(source)}
    # Every process must decide alike, or some would train alone.
    if broadcast_object_list([folder.exists()])[0]:
        teacher = _load(folder, settings)
        run.start({**inputs, "teacher": deciding_facts(teacher.describe())})
        accelerator.init_trackers("ssdd_hub")
        return teacher
    run.start(inputs)
    accelerator.init_trackers("ssdd_hub")
    training.run(run.teacher_checkpoints, run.log, watch, accelerator.is_main_process)
    if accelerator.is_main_process:
        name = str(provenance["source"]["name"])
        about = {"source": name, "target": name, "student": settings.backbone}
        facts = {
            **provenance,
            "objective": training.objective.describe(),
            "scores": knn_records(run.log.read(), about),
            "hardware": describe_machine(accelerator.device, accelerator.num_processes),
        }
        title = f"{settings.backbone} trained with {pretrain.objective} on {name}"
        licence, kind = source.source["license"], settings.features
        trained = Teacher(backbone, pixel_space, source.image_size, title, licence, features=kind)
        trained.save(folder, provenance=facts)
    accelerator.wait_for_everyone()
    teacher = _load(folder, settings)
    run.pin({"teacher": deciding_facts(teacher.describe())})
    return teacher


def _load(folder: Path, settings: TeacherSettings) -> Teacher:
    return build_teacher(f"local-dir:{folder}", features=settings.features)
