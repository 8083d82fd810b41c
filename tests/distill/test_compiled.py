import copy
import logging

import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from ssdd_hub.distill.engine.compiled import SharedForward, weights_of
from ssdd_hub.distill.engine.folded import FoldedFeatures
from ssdd_hub.models.convnet import ConvNet


@pytest.fixture
def no_compiler(monkeypatch):
    """`torch.compile` as it is where there is no C++ compiler: it fails at the first call; returns the calls."""
    calls = []

    def compile_(function, **settings):
        def fail(*args):
            calls.append(args)
            raise TorchDynamoException("InvalidCxxCompiler: No working C++ compiler\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def test_without_a_compiler_the_network_runs_uncompiled_and_one_warning_tells_so(no_compiler, caplog):
    identity = SharedForward(nn.Identity(), compiled=True)
    with caplog.at_level(logging.WARNING):
        assert [identity({}, torch.tensor(value)).item() for value in (1.0, 2.0)] == [1.0, 2.0]
    assert len(no_compiler) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile cannot be used (InvalidCxxCompiler: No working C++ compiler): the run goes on without it, "
        "slower; on the CPU it needs a C++ compiler"
    ]


def test_an_error_of_the_network_is_not_hidden(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        SharedForward(nn.Linear(2, 2), compiled=True)({}, torch.zeros(1, 3))


def check_compiled(forward):
    """What was compared was compiled code, where there is a compiler."""
    if forward.compiled is None:
        pytest.skip("torch.compile finds no compiler here: its fallback was compared")


def students():
    torch.manual_seed(0)
    images = torch.randn(7, 3, 8, 8, dtype=torch.float64)
    return [ConvNet((4,), "batch", 3, 8, 5).double() for _ in range(2)], images


def test_compiled_training_is_training():
    """Outputs, gradients and batch statistics, of students that the function was not compiled with."""
    (first, second), images = students()
    forward = SharedForward(copy.deepcopy(first).train(), compiled=True)
    for student in (first, second):
        twin = copy.deepcopy(student)
        forward(weights_of(student), images).square().sum().backward()
        twin(images).square().sum().backward()
        for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)
        for name, theirs in twin.state_dict().items():
            torch.testing.assert_close(student.state_dict()[name], theirs, rtol=1e-9, atol=1e-11)
    check_compiled(forward)


def test_compiled_features_are_features():
    (first, second), images = students()
    frozen = FoldedFeatures(first, compiled=True)
    for student in (first, second):
        nn.init.uniform_(student.blocks[0][1].running_var, 0.5, 2.0)
        ours, theirs = (images.clone().requires_grad_() for _ in range(2))
        frozen(frozen.weights(student), ours).square().sum().backward()
        student.eval().features(theirs).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)
    check_compiled(frozen)
