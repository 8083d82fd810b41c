"""Networks, registered with timm as `ssdd_*` when this is imported, and their training by regression."""

from ssdd_hub.models.base import StudentNetwork
from ssdd_hub.models.build import StudentBuilder, StudentSettings, build_student, list_students
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.features import create_backbone, measure_width, pre_logits, read_features, read_pixel_space
from ssdd_hub.models.mobilenetv2 import MobileNetV2
from ssdd_hub.models.pretraining import Pairs, StudentTrainingSettings, fit_student
from ssdd_hub.models.resnet import SmallImageResNet
from ssdd_hub.models.vgg import PlainNet

__all__ = [
    "ConvNet",
    "MobileNetV2",
    "Pairs",
    "PlainNet",
    "SmallImageResNet",
    "StudentBuilder",
    "StudentNetwork",
    "StudentSettings",
    "StudentTrainingSettings",
    "build_student",
    "create_backbone",
    "fit_student",
    "list_students",
    "measure_width",
    "pre_logits",
    "read_features",
    "read_pixel_space",
]
