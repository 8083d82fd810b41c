import pytest
import torch
from torch import nn

from ssdd_hub.teachers.optimizers import build_optimizer


class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(2, 2)
        self.copy = nn.Linear(2, 2).requires_grad_(False)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.ones(1, 2, 2))
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)

    def no_weight_decay(self):
        return {"position"}


def decays(objective, optimizer):
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    groups = optimizer.param_groups
    return {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}


WEIGHTS = {"backbone.linear.weight", "head.weight"}


@pytest.mark.parametrize(("kind", "decay"), [("sgd", 5e-4), ("adamw", 0.05), ("lars", 1.5e-6)])
def test_what_is_trained_and_what_decays(kind, decay):
    objective = Objective()
    found = decays(objective, build_optimizer(objective, kind, 128))
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    # As in lightly's benchmark, SGD decays everything; the others leave out norms, biases and what the backbone lists.
    decaying = trained if kind == "sgd" else WEIGHTS
    assert found == {name: decay if name in decaying else 0.0 for name in trained}


@pytest.mark.parametrize(
    ("kind", "batch", "rate"), [("sgd", 128, 0.06), ("sgd", 512, 0.24), ("adamw", 256, 5e-4), ("lars", 512, 0.4)]
)
def test_the_learning_rate_follows_the_batch_unless_it_is_given(kind, batch, rate):
    groups = build_optimizer(Objective(), kind, batch).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([rate] * len(groups))
    given = build_optimizer(Objective(), kind, batch, learning_rate=0.3, weight_decay=0.2)
    assert {group["lr"] for group in given.param_groups} == {0.3}
    assert 0.2 in {group["weight_decay"] for group in given.param_groups}


def test_sgd_is_torchs_with_plain_momentum():
    torch.manual_seed(0)
    objective, twin = Objective(), Objective()
    twin.load_state_dict(objective.state_dict())
    ours = build_optimizer(objective, "sgd", 128)
    plain = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], 0.06, momentum=0.9, weight_decay=5e-4)
    for module, optimizer in ((objective, ours), (twin, plain)):
        for _ in range(3):
            optimizer.zero_grad()
            loss = module.head(module.backbone.norm(module.backbone.linear(module.backbone.position))).square().sum()
            loss.backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters(), twin.parameters(), strict=True))


def test_a_backbone_need_not_list_anything():
    objective = Objective()
    objective.backbone = nn.Linear(2, 2)
    found = decays(objective, build_optimizer(objective, "adamw", 128))
    assert found["backbone.weight"] == 0.05 and found["backbone.bias"] == 0.0
