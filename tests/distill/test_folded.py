import copy

import pytest
import torch
from torch import nn

from ssdd_hub.distill.engine.folded import FoldedFeatures
from ssdd_hub.models.build import build_student, list_students
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.features import pre_logits

NAMES = [*list_students(), "test_vit", "test_convnext", "test_resnet", "resnet10t"]


def trained(student, images):
    """A student whose norms have statistics, weights and biases of their own."""
    torch.manual_seed(1)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    student.train()(images)
    return student


def convnet(norm="batch", seed=0):
    torch.manual_seed(seed)
    images = torch.randn(9, 3, 16, 16, dtype=torch.float64)
    return trained(ConvNet((4, 6), norm, 3, 16, 5).double(), images), images


@pytest.mark.parametrize("name", NAMES)
def test_features_and_their_gradient_are_those_of_the_student_in_eval_mode(name):
    torch.manual_seed(0)
    size = 32 if name.startswith("ssdd") else 64
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    student = build_student(name, num_targets=5, in_chans=3, image_size=size).double()
    student = trained(student, images)
    frozen = FoldedFeatures(student)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    expected = pre_logits(copy.deepcopy(student).eval(), theirs)
    features = frozen(frozen.weights(student), ours)
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)
    for images in (features.square().sum(), expected.square().sum()):
        images.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("norm", "folded"), [("batch", 2), ("instance", 0), ("none", 0)])
def test_batch_norms_alone_are_folded(norm, folded):
    student, images = convnet(norm)
    frozen = FoldedFeatures(student)
    assert len(frozen._folds) == folded
    assert len(frozen.weights(student)) == len([*student.parameters(), *student.buffers()]) - 5 * folded
    torch.testing.assert_close(frozen(frozen.weights(student), images), student.eval().features(images))


class _Skip(nn.Sequential):
    def forward(self, images):
        first = self[0](images)
        return self[1](first) + first


def test_a_norm_that_is_not_the_only_reader_of_a_convolution_or_has_no_statistics_stays():
    student, images = convnet()
    student.blocks[0] = _Skip(*student.blocks[0][:2], nn.AvgPool2d(2))
    student.blocks[1][1] = nn.BatchNorm2d(6, track_running_stats=False).double()
    student.blocks[0].forward = lambda images: nn.functional.avg_pool2d(_Skip.forward(student.blocks[0], images), 2)
    assert FoldedFeatures(student)._folds == []


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_convolutions_without_bias_and_norms_without_weights_are_folded_too(bias, affine):
    student, images = convnet()
    student.blocks[0][0] = nn.Conv2d(3, 4, 3, padding=1, bias=bias).double()
    student.blocks[0][1] = nn.BatchNorm2d(4, affine=affine).double()
    student.train()(images)
    frozen = FoldedFeatures(student)
    assert len(frozen._folds) == 2
    torch.testing.assert_close(frozen(frozen.weights(student), images), student.eval().features(images))


def test_one_function_serves_all_students_and_changes_none():
    (first, images), (second, _) = convnet(), convnet(seed=1)
    frozen = FoldedFeatures(first)
    for student in (first, second):
        before = copy.deepcopy(student.state_dict())
        weights = frozen.weights(student.train())
        assert not any(weight.requires_grad for weight in weights.values())
        features = frozen(weights, images)
        assert student.training and all(torch.equal(before[name], now) for name, now in student.state_dict().items())
        torch.testing.assert_close(features, student.eval().features(images))
        with torch.no_grad():
            student.blocks[0][0].weight.mul_(2)
        assert not torch.allclose(features, frozen(frozen.weights(student), images))
