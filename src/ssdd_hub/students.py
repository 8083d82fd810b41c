"""Students under the name that code outside this package uses: `ssdd_hub.students.ConvNet`."""

from ssdd_hub.models.build import RESERVED_ARGS, StudentSettings, build_student, list_students
from ssdd_hub.models.convnet import ConvNet, ssdd_convnet3, ssdd_convnet4, ssdd_convnet5

__all__ = ["RESERVED_ARGS", "ConvNet", "StudentSettings", "build_student", "list_students"]
__all__ += ["ssdd_convnet3", "ssdd_convnet4", "ssdd_convnet5"]
