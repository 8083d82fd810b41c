"""The error of a student's outputs to the teacher's targets."""

from typing import Any

from torch.nn import functional

from ssdd_hub.evaluation.protocols.base import Measure, Pretrained, require_finite
from ssdd_hub.evaluation.real_data import RealData


class TeacherError:
    """Mean squared error of a student's outputs to the teacher's targets, over held-out images and `D`.

    The outer loss of KRR-ST, on images that the distillation has not seen, of a student trained in the usual way.
    """

    name = "teacher_error"

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns nothing: there are no settings."""
        return {}

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether the teacher's targets of the held-out images are known."""
        return data.heldout_targets is not None

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures the error."""
        if data.heldout_targets is None:
            raise ValueError("the teacher's targets of the held-out images are required")
        outputs = require_finite(data.apply(pretrained.student, data.heldout))
        return [Measure("mse", functional.mse_loss(outputs, data.heldout_targets[:].cpu()).item())]
