"""The frozen backbone of a method: the teacher of a run, a student, or a timm model at its own input size."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from ssdd_hub.bounds import Count, Settings, one_of
from ssdd_hub.distill.method import Problem
from ssdd_hub.errors import InputError
from ssdd_hub.models.features import FEATURES
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import seeded
from ssdd_hub.teachers.teacher import Teacher, build_teacher


@dataclass(frozen=True)
class BackboneSettings(Settings, section="method.args"):
    """Settings of a frozen backbone: the network, and the features that are read from it.

    Attributes:
        backbone: `teacher`: that of the run; on class labels `teacher.backbone`, with weights. `student`: the run's
            student with its first weights. Otherwise the name of a timm model, with its weights.
        features: Of a timm model: `pre_logits`, `cls` or `mean`.
        input_size: Height and width that images are resized to for a timm model; by default what it states.
    """

    backbone: str = "teacher"
    features: Annotated[str, one_of(FEATURES)] = "pre_logits"
    input_size: Count | None = None


class TeacherFeatures(nn.Module):
    """A teacher as a network of images in the students' pixel space, differentiable in these."""

    def __init__(self, teacher: Teacher, pixel_space: PixelSpace) -> None:
        super().__init__()
        self.teacher, self.pixel_space = teacher, pixel_space

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images `(n, C, H, W)` to the teacher's features `(n, F)`."""
        return self.teacher.read(self.pixel_space.denormalise(images))

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Returns the features: there is no head."""
        return features


def build_backbone(settings: BackboneSettings, problem: Problem) -> nn.Module:
    """Returns the network in eval mode, on the device and in the type of the problem's engine.

    Raises:
        InputError: The backbone is to be a teacher, and there is none; or it cannot be built.
    """
    return _choose(settings, problem).to(problem.engine.device, problem.engine.dtype).eval()


def _choose(settings: BackboneSettings, problem: Problem) -> nn.Module:
    if settings.backbone == "student":
        with seeded(problem.seed, "backbone"):
            return problem.build_student()
    source = problem.source
    teacher = (problem.frozen or source.teacher) if source and settings.backbone == "teacher" else None
    if source is None or (teacher is None and settings.backbone == "teacher"):
        raise InputError(
            "the method reads the features of a frozen backbone, and this run has no teacher: name a timm model by "
            "--method.args '{backbone: NAME}', or any network by --teacher.backbone NAME --teacher.pretrained true"
        )
    if teacher is None:
        teacher = build_teacher(settings.backbone, features=settings.features, input_size=settings.input_size)
    return TeacherFeatures(teacher, source.pixel_space)
