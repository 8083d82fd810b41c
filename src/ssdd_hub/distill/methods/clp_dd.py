"""CLP-DD: closed-form linear probe on a frozen backbone, fitted on the set and scored on real images.

Source: Peng et al., "Closed-Form Linear-Probe Dataset Distillation for Pre-trained Vision Models", arXiv 2605.07194.
Its abstract states the ridge regression in the space of images, the frozen features, the cross-entropy with a
temperature, and that the mean squared error (`loss: squared_error`) does much worse. No code was found, and no values
of penalty and temperature: those here, the constant in the kernel, and that the penalty is relative to the trace, are
ours. Its images are augmented; here `distiller.augment` does it for the real ones alone.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from ssdd_hub.bounds import Count, Positive, one_of
from ssdd_hub.distill.krr import squared_error
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.classes import CrossEntropy, require_classes
from ssdd_hub.distill.methods.kernel import KernelMethod, KernelSettings
from ssdd_hub.errors import InputError
from ssdd_hub.models.features import FEATURES
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import seeded
from ssdd_hub.teachers.teacher import Teacher, build_teacher


@dataclass(frozen=True)
class ClpDdSettings(KernelSettings):
    """Settings of CLP-DD.

    Attributes:
        backbone: `teacher`: that of the run, which runs on class labels do not have. `student`: the run's student with
            its first weights. Otherwise the name of a timm model, with its weights.
        features: Of a timm model: `pre_logits`, `cls` or `mean`.
        input_size: Height and width that images are resized to for a timm model; by default what it states.
        penalty: Regularisation relative to `trace(K_ss) / M`.
        loss: `cross_entropy`, for class labels, or `squared_error`.
        temperature: Predictions are divided by it before the softmax.
    """

    backbone: str = "teacher"
    features: Annotated[str, one_of(FEATURES)] = "pre_logits"
    input_size: Count | None = None
    penalty: Positive = 1e-3
    loss: Annotated[str, one_of(("cross_entropy", "squared_error"))] = "cross_entropy"
    temperature: Positive = 0.1


class ClpDd(KernelMethod):
    """Fits a ridge regression from frozen features to targets on the set; the loss is that of its predictions."""

    name = "clp_dd"
    citation = "Peng et al., 2026, arXiv 2605.07194"
    Settings = ClpDdSettings
    settings: ClpDdSettings

    def __init__(self, settings: ClpDdSettings, problem: Problem) -> None:
        cross_entropy = settings.loss == "cross_entropy"
        super().__init__(settings, problem, CrossEntropy(1 / settings.temperature) if cross_entropy else squared_error)
        if cross_entropy:
            require_classes(problem, "the cross-entropy of clp_dd", "--method.args '{loss: squared_error}'")
        self._backbone = _build_backbone(settings, problem).to(problem.engine.device, problem.engine.dtype).eval()

    def network(self, step: int) -> nn.Module:
        """Returns the backbone."""
        return self._backbone

    def judge(self) -> nn.Module:
        """Returns the backbone."""
        return self._backbone


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


def _build_backbone(settings: ClpDdSettings, problem: Problem) -> nn.Module:
    if settings.backbone == "student":
        with seeded(problem.seed, "backbone"):
            return problem.build_student()
    source = problem.source
    teacher = source.teacher if source and settings.backbone == "teacher" else None
    if source is None or (teacher is None and settings.backbone == "teacher"):
        raise InputError(
            "clp_dd reads the features of a frozen backbone, and this run has no teacher: name a timm model by "
            "--method.args '{backbone: NAME}'"
        )
    if teacher is None:
        teacher = build_teacher(settings.backbone, features=settings.features, input_size=settings.input_size)
    return TeacherFeatures(teacher, source.pixel_space)
