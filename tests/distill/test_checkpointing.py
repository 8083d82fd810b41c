import copy

import pytest
import torch
from accelerate import Accelerator
from reference.contract_cases import make_pairs
from torch import nn

from ssdd_hub.distill.engine import EngineSettings, build_engine
from ssdd_hub.distill.engine.checkpointing import check_checkpointing
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import InputError
from ssdd_hub.models.build import build_student

STUDENTS = {
    "ssdd_convnet3": (16, {"widths": (4, 5, 6)}, "pre_logits"),
    "ssdd_vgg11": (32, {"widths": (4,) * 8}, "pre_logits"),
    "test_resnet": (32, {}, "flat"),
    "test_vit": (32, {}, "pre_logits"),
    "test_convnext": (32, {}, "mean"),
}


def build(name):
    torch.manual_seed(0)
    size, args, kind = STUDENTS[name]
    student = build_student(name, num_targets=3, in_chans=3, image_size=size, features=kind, **args).double()
    images = torch.randn(5, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return student, Pairs(images, make_pairs(5, 2).targets.double())


def steps(student, pairs, count=2, **settings):
    """Takes steps with momentum, with and after outer gradients; returns losses and the gradients in images."""
    engine = build_engine(EngineSettings(precision="float64", **settings), Accelerator(cpu=True))
    optimizer, found = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9), []
    for _ in range(count):
        found.append(engine.krr_gradients(student, pairs, Pairs(pairs.images + 1, pairs.targets), 1e-3)[1])
        found.append(engine.regression_step(student, optimizer, pairs))
    return found


@pytest.mark.parametrize("kind", ["fast", "eager"])
@pytest.mark.parametrize("name", STUDENTS)
def test_steps_and_statistics_are_those_of_kept_activations(name, kind):
    (kept, pairs), (recomputed, _) = build(name), build(name)
    expected = steps(kept, pairs, kind=kind)
    for ours, theirs in zip(steps(recomputed, pairs, checkpointing=True), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    for (part, ours), theirs in zip(recomputed.state_dict().items(), kept.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=part)


@pytest.mark.parametrize(("checkpointing", "passes"), [(False, 1), (True, 2)])
def test_a_block_is_passed_twice_where_its_activations_are_not_kept(checkpointing, passes):
    student, pairs = build("ssdd_convnet3")
    seen = []
    # Before it, since a second pass stops as soon as it has what the backward pass needs.
    student.blocks[1].register_forward_pre_hook(lambda *_: seen.append(1))
    engine = build_engine(EngineSettings(precision="float64", checkpointing=checkpointing), Accelerator(cpu=True))
    engine.regression_step(student, torch.optim.SGD(student.parameters(), lr=0.1), pairs)
    assert len(seen) == passes
    before = copy.deepcopy(student)
    student(pairs.images).sum().backward()
    assert len(seen) == passes + 1, "it goes on to recompute"
    assert before._checkpointing is False


def test_a_student_that_cannot_recompute_is_refused():
    with pytest.raises(
        InputError, match="Linear has no activation checkpointing: leave out --distiller.checkpointing"
    ):
        check_checkpointing(nn.Linear(2, 2))
