"""A teacher, which is a frozen timm model: its training, folder, card and provenance."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.teachers.monitor import Watch as Watch, WatchSettings as WatchSettings
    from ssdd_hub.teachers.teacher import (
        Teacher as Teacher,
        TeacherSettings as TeacherSettings,
        build_teacher as build_teacher,
    )
    from ssdd_hub.teachers.training import (
        Pretraining as Pretraining,
        TeacherTrainingSettings as TeacherTrainingSettings,
        train_teacher as train_teacher,
    )
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "monitor: Watch WatchSettings",
        "teacher: Teacher TeacherSettings build_teacher",
        "training: TeacherTrainingSettings Pretraining train_teacher",
    )
