"""Computes a teacher's features of a whole dataset, in one pass, whatever its size.

accelerate launch recipes/compute_targets.py --data.name FOLDER --data.streaming --teacher.backbone NAME \
--teacher.pretrained --output DIR

With --data.streaming the images are read once and in their order, so the dataset may be larger than memory, or stay on
the Hub. Without it they are those that distill.py reads, and distill.py --run.cache DIR then finds their features,
where these settings are the same: all of --data and --teacher, --seed, --targets.dtype, --targets.shard-size and
--targets.views, with --distiller.precision float32. Features of the images as they are always come first, since
distill.py fits its transform on them. Started again, a pass goes on where it stopped.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ssdd_hub import InputError
from ssdd_hub.data import DataSettings, ImageBank, ImageStream, load_images
from ssdd_hub.errors import require
from ssdd_hub.files import atomic_path
from ssdd_hub.runs import UntrackedSettings, build_accelerator, report_errors
from ssdd_hub.runs.folder import folder_name
from ssdd_hub.settings import parse_config, to_yaml
from ssdd_hub.targets import FeatureCache, TargetSettings
from ssdd_hub.targets.labels import LABELS
from ssdd_hub.teachers import TeacherSettings
from ssdd_hub.teachers.loading import load_teacher

DEFAULT = Path(__file__).parent / "configs" / "compute_targets.yaml"


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
    run: UntrackedSettings = field(default_factory=UntrackedSettings)
    seed: int = 0
    output: str = ""

    def __post_init__(self) -> None:
        require(
            (self.targets.of != LABELS, "class labels are no features of a teacher: leave out --targets.of"),
            (
                self.run.mixed_precision == "no",
                "features are computed in the precision of the teacher: leave out --run.mixed-precision, also of "
                "the launcher; "
                "--targets.dtype float16 stores them in half precision",
            ),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{folder_name(self.data.name)}-features")


@report_errors
def main() -> None:
    """Images, teacher, features."""
    started = time.perf_counter()
    config = parse_config(ComputeTargetsConfig, DEFAULT, description=__doc__)
    accelerator = build_accelerator(config.run, Path(config.output))
    if not config.teacher.ready:
        raise InputError(
            "features need a ready-made teacher: pass --teacher.pretrained with a --teacher.backbone of timm, or with "
            "local-dir:FOLDER of a teacher that recipes/train_teacher.py has trained"
        )

    images: ImageBank | ImageStream
    if config.data.streaming:
        images = ImageStream(config.data, accelerator.is_main_process)
    else:
        images, _ = load_images(config.data, config.seed, accelerator.is_main_process)
    # What does not fit is found here, before anything is written.
    teacher = load_teacher(config.teacher, images).to(accelerator.device)
    stored = Path(config.output) / "compute_targets.yaml"
    if accelerator.is_main_process:
        with atomic_path(stored) as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
    accelerator.print(f"settings: {stored}")
    cache = FeatureCache(teacher, accelerator, Path(config.output), **config.targets.computing())
    for view in (None, *range(config.targets.views)):
        features = cache.features(images, view, config.seed)
        name = "images as they are" if view is None else f"view {view}"
        accelerator.print(f"{name}: {features}, {len(features.index.skipped)} skipped, in {features.folder}")
    accelerator.print(f"teacher {teacher.name}, licence {teacher.license}")
    accelerator.print(f"{time.perf_counter() - started:.0f} s on {accelerator.num_processes} process(es)")
    accelerator.end_training()


if __name__ == "__main__":
    main()
