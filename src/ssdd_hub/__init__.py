"""Self-supervised dataset distillation for the timm, lightly and Hugging Face ecosystem.

Importing the package registers its networks with timm: `timm.create_model("ssdd_convnet3")` works from then on. What
needs lightly or Accelerate is imported when it is first used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ssdd_hub.distilled import DistilledSet
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.pixel_space import PixelSpace

if TYPE_CHECKING:
    from ssdd_hub.distiller import Distiller
    from ssdd_hub.interop import export_tensors, import_tensors
    from ssdd_hub.objectives import build_objective, list_objectives
    from ssdd_hub.set_views import add_views
    from ssdd_hub.students import ConvNet, build_student, list_students
    from ssdd_hub.teacher import build_teacher
    from ssdd_hub.use import pretrain_student

# A distilled set can be read where timm is not installed.
if find_spec("timm") is not None:
    import ssdd_hub.backbones
    import ssdd_hub.students  # noqa: F401

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
    "list_objectives",
    "list_students",
    "pretrain_student",
]

_LAZY = {
    "ConvNet": "students",
    "Distiller": "distiller",
    "add_views": "set_views",
    "build_objective": "objectives",
    "build_student": "students",
    "build_teacher": "teacher",
    "export_tensors": "interop",
    "import_tensors": "interop",
    "list_objectives": "objectives",
    "list_students": "students",
    "pretrain_student": "use",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"ssdd_hub.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
