"""Self-supervised dataset distillation for the timm, lightly and Hugging Face ecosystem.

Importing the package registers its networks with timm: `timm.create_model("ssdd_convnet3")` works from then on. What
needs lightly or Accelerate is imported when it is first used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets.distilled import DistilledSet

if TYPE_CHECKING:
    from ssdd_hub.distill.distiller import Distiller
    from ssdd_hub.distill.methods.registry import list_methods
    from ssdd_hub.distill.parameterisations.registry import list_parameterisations
    from ssdd_hub.models.build import build_student, list_students
    from ssdd_hub.models.convnet import ConvNet
    from ssdd_hub.sets.interop import export_tensors, import_tensors
    from ssdd_hub.sets.pretrain import pretrain_student
    from ssdd_hub.sets.views import add_views
    from ssdd_hub.teachers.objectives.registry import build_objective, list_objectives
    from ssdd_hub.teachers.teacher import build_teacher

# A distilled set can be read where timm is not installed.
if find_spec("timm") is not None:
    import ssdd_hub.models  # noqa: F401

__version__ = "0.1.0.dev0"

__all__ = [
    "ConvNet",
    "DistilledSet",
    "Distiller",
    "InputError",
    "PixelSpace",
    "SettingsError",
    "add_views",
    "build_objective",
    "build_student",
    "build_teacher",
    "export_tensors",
    "import_tensors",
    "list_methods",
    "list_objectives",
    "list_parameterisations",
    "list_students",
    "pretrain_student",
]

_LAZY = {
    "ConvNet": "models.convnet",
    "Distiller": "distill.distiller",
    "add_views": "sets.views",
    "build_objective": "teachers.objectives.registry",
    "build_student": "models.build",
    "build_teacher": "teachers.teacher",
    "export_tensors": "sets.interop",
    "import_tensors": "sets.interop",
    "list_methods": "distill.methods.registry",
    "list_objectives": "teachers.objectives.registry",
    "list_parameterisations": "distill.parameterisations.registry",
    "list_students": "models.build",
    "pretrain_student": "sets.pretrain",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"ssdd_hub.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
