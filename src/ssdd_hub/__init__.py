"""Self-supervised dataset distillation for the timm, lightly and Hugging Face ecosystem.

`import ssdd_hub` registers its networks with timm, now or when timm is imported: `timm.create_model("ssdd_convnet3")`
works from then on. Everything else is imported when it is first used.
"""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names
from ssdd_hub.timm_registration import register_with_timm

if TYPE_CHECKING:
    from ssdd_hub.calls import distill as distill, evaluate as evaluate, train_teacher as train_teacher
    from ssdd_hub.distill.distiller import Distiller as Distiller
    from ssdd_hub.distill.methods.registry import list_methods as list_methods
    from ssdd_hub.distill.parameterisations.registry import list_parameterisations as list_parameterisations
    from ssdd_hub.errors import InputError as InputError, SettingsError as SettingsError
    from ssdd_hub.models.build import build_student as build_student, list_students as list_students
    from ssdd_hub.models.convnet import ConvNet as ConvNet
    from ssdd_hub.pixel_space import PixelSpace as PixelSpace
    from ssdd_hub.sets.distilled import DistilledSet as DistilledSet
    from ssdd_hub.sets.interop import export_tensors as export_tensors, import_tensors as import_tensors
    from ssdd_hub.sets.pretrain import pretrain_student as pretrain_student
    from ssdd_hub.sets.views import add_views as add_views
    from ssdd_hub.teachers.objectives.registry import (
        build_objective as build_objective,
        list_objectives as list_objectives,
    )
    from ssdd_hub.teachers.teacher import build_teacher as build_teacher
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        ": distill",
        "calls: evaluate train_teacher",
        "distill.distiller: Distiller",
        "distill.methods.registry: list_methods",
        "distill.parameterisations.registry: list_parameterisations",
        "errors: InputError SettingsError",
        "models.build: build_student list_students",
        "models.convnet: ConvNet",
        "pixel_space: PixelSpace",
        "sets.distilled: DistilledSet",
        "sets.interop: export_tensors import_tensors",
        "sets.pretrain: pretrain_student",
        "sets.views: add_views",
        "teachers.objectives.registry: build_objective list_objectives",
        "teachers.teacher: build_teacher",
    )

__version__ = "0.1.0.dev0"

register_with_timm()
