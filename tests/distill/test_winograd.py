import copy

import pytest
import torch
from test_distiller import build_distiller, run
from timm.layers import StdConv2d
from torch import nn
from torch.nn import functional

from ssdd_hub.distill.engine import winograd
from ssdd_hub.distill.engine.folded import FoldedFeatures
from ssdd_hub.distill.engine.winograd import (
    FrozenConvolution,
    convolve,
    filter_gradient,
    is_supported,
    train_by_winograd,
    transform,
)
from ssdd_hub.models.convnet import ConvNet


# Tiles are of four pixels: whole ones, one more, one less, and less than one.
@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """Of two images each time, the last of one."""
    monkeypatch.setattr(winograd, "PART", 2)


SIZES = [(8, 8), (5, 7), (4, 12), (1, 1), (3, 6)]


@pytest.fixture
def narrow(monkeypatch):
    """Convolutions of few channels count as suitable too."""
    monkeypatch.setattr(winograd, "MANY_CHANNELS", 1)


def problem(size, dtype=torch.float64):
    torch.manual_seed(0)
    maps = torch.randn(3, 3, *size, dtype=dtype, requires_grad=True)
    layer = nn.Conv2d(3, 5, 3, padding=1).to(dtype)
    return maps, layer, torch.randn(3, 5, *size, dtype=dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_a_frozen_convolution_and_its_gradient_are_those_of_torch(size, layout):
    maps, layer, gradient = problem(size)
    given = maps.detach().contiguous(memory_format=layout).requires_grad_()
    ours, theirs = FrozenConvolution(layer)(given), layer(maps)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (mine,), (expected,) = torch.autograd.grad(ours, given, gradient), torch.autograd.grad(theirs, maps, gradient)
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_trained_convolution_has_all_gradients(size, bias, narrow):
    maps, layer, gradient = problem(size)
    layer.bias = layer.bias if bias else None
    twin = train_by_winograd(copy.deepcopy(layer))
    assert twin.state_dict().keys() == layer.state_dict().keys()
    ours = torch.autograd.grad(twin(maps), [maps, *twin.parameters()], gradient)
    theirs = torch.autograd.grad(layer(maps), [maps, *layer.parameters()], gradient)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_the_gradients_are_those_of_finite_differences():
    maps, layer, _ = problem((5, 6))
    assert torch.autograd.gradcheck(lambda maps, weight: convolve(maps, *transform(weight)), (maps, layer.weight))
    filters, adjoint = transform(layer.weight.detach())
    assert torch.autograd.gradcheck(lambda given: convolve(given, filters, adjoint), (maps,))


# torch's own checks look at gradients of tensors that keep none.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_the_operators_are_what_torch_compile_takes_them_for():
    maps, layer, gradient = problem((6, 5))
    filters, adjoint = transform(layer.weight.detach())
    torch.library.opcheck(convolve, (maps, filters, adjoint))
    torch.library.opcheck(convolve, (maps, filters.requires_grad_(), adjoint))
    torch.library.opcheck(filter_gradient, (gradient, maps.detach()))


def test_in_float32_the_error_is_of_millionths():
    torch.manual_seed(0)
    maps, weight = torch.randn(4, 128, 16, 16), torch.randn(128, 128, 3, 3)
    exact = functional.conv2d(maps.double(), weight.double(), padding=1)
    error = (convolve(maps, *transform(weight)) - exact).norm() / exact.norm()
    assert error.item() < 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 64, 3, padding=1),
        StdConv2d(128, 128, 3, padding=1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(128, 128, 3, padding=1)),
        nn.Linear(128, 128),
    ],
)
def test_other_layers_do_not_suit(layer):
    assert not is_supported(layer)
    assert is_supported(nn.Conv2d(128, 128, 3, padding=1))


def test_features_of_frozen_students_are_the_same(narrow):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    student, other = (ConvNet((4, 6), "batch", 3, 16, 5).double() for _ in range(2))
    frozen = FoldedFeatures(student, winograd=True)
    assert [type(layer) for layer in frozen.template.modules()].count(FrozenConvolution) == 2
    for module in (student, other):
        module.train()(images)
        torch.testing.assert_close(frozen(frozen.weights(module), images), module.eval().features(images))


def test_a_distillation_is_the_same(narrow):
    ours, theirs = (build_distiller(winograd=flag) for flag in (True, False))
    torch.testing.assert_close(run(ours, 5), run(theirs, 5), rtol=1e-9, atol=0)
    # Rounding tells that they were computed in two ways.
    assert not torch.equal(ours.images, theirs.images)
    for mine, expected in zip(*(each.pool.students[0].module.parameters() for each in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, expected)
