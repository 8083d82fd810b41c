"""Pre-training on a set: a student that does not fit is refused before anything is trained."""

import pytest
import torch
from torch import nn

from ssdd_hub import DistilledSet, InputError, PixelSpace, build_student, pretrain_student

FITS = {"num_targets": 5, "in_chans": 3, "image_size": 16, "widths": [4, 6]}


class Paired(nn.Linear):
    """Gives two tensors."""

    def forward(self, images):
        return super().forward(images.flatten(1)), images


@pytest.fixture
def distilled():
    drawn = torch.Generator().manual_seed(3)
    images, targets = torch.randn(6, 3, 16, 16, generator=drawn), torch.randn(6, 5, generator=drawn)
    return DistilledSet(images, targets, PixelSpace.raw(3), provenance={"use": {"epochs": 2, "learning_rate": 0.01}})


@pytest.mark.parametrize(
    ("student", "said"),
    [
        # One output would be compared with all five targets, and torch would only warn.
        (lambda: build_student("ssdd_convnet3", **{**FITS, "num_targets": 1}), r"5 outputs .*got shape \(1, 1\)"),
        (lambda: build_student("ssdd_convnet3", **{**FITS, "num_targets": 7}), r"got shape \(1, 7\): build it with"),
        (lambda: nn.Conv2d(3, 5, 1), r"got shape \(1, 5, 16, 16\)"),
        (lambda: Paired(768, 5), "got a tuple"),
        (lambda: build_student("ssdd_convnet3", **{**FITS, "in_chans": 1}), r"take the set's images \(3, 16, 16\)"),
        (lambda: build_student("ssdd_convnet3", **{**FITS, "image_size": 32}), "image_size=16"),
    ],
)
def test_a_student_that_does_not_fit_is_refused_and_left_as_it_was(distilled, student, said):
    built = student()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    with pytest.raises(InputError, match=said):
        pretrain_student(built, distilled, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())


def test_the_bar_can_be_left_out_and_changes_nothing(distilled, capsys):
    students = []
    for progress in (True, False):
        torch.manual_seed(0)
        students.append(pretrain_student(build_student("ssdd_convnet3", **FITS), distilled, progress=progress))
        assert ("pre-training" in capsys.readouterr().err) == progress
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
