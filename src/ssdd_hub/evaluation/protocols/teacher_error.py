"""The error of a student's outputs to the teacher's targets."""

from typing import Any

from torch.nn import functional

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.base import Measure, Pretrained
from ssdd_hub.evaluation.real_data import RealData


class TeacherError:
    """The mean squared error of the student's outputs to the teacher's targets, over held-out images and `D`.

    What the outer loss of KRR-ST aims at, on images that the distillation has not seen, and by a student trained the
    usual way.
    """

    name = "teacher_error"

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns nothing: there is nothing to set."""
        return {}

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether the teacher's targets of the held-out images are known."""
        return data.heldout_targets is not None

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures the error.

        Raises:
            InputError: The student's outputs are not finite.
        """
        outputs = data.apply(pretrained.student, data.heldout)
        if not outputs.isfinite().all():
            raise InputError("a student diverges when it is pre-trained on the set: lower --use.learning-rate")
        if data.heldout_targets is None:
            raise ValueError("the teacher's targets of the held-out images are required")
        return [Measure("mse", functional.mse_loss(outputs, data.heldout_targets[:].cpu()).item())]
