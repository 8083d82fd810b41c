"""The optimisers that train a teacher: timm's, with learning rates proportional to the batch size."""

from typing import Any, NamedTuple

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn


class Recipe(NamedTuple):
    """An optimiser's name in timm, its arguments, its default learning rate for one image a step, and weight decay."""

    timm_name: str
    arguments: dict[str, Any]
    rate: float
    decay: float


# The first is that of lightly's CIFAR-10 benchmark, the second that of DINO and MAE with the rate of the former, the
# third that of lightly's ImageNet benchmark of Barlow Twins.
OPTIMIZERS = {
    "sgd": Recipe("momentum", {"momentum": 0.9}, 0.06 / 128, 5e-4),
    "adamw": Recipe("adamw", {"betas": (0.9, 0.95)}, 5e-4 / 256, 0.05),
    "lars": Recipe("lars", {"momentum": 0.9}, 0.2 / 256, 1.5e-6),
}


def build_optimizer(
    objective: nn.Module,
    kind: str,
    batch_size: int,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """Returns an optimiser `kind` of `OPTIMIZERS` for an objective's trainable parameters; None takes its defaults.

    SGD decays all of them, as lightly's benchmark does; the others leave out norms, biases and what the backbone lists
    in timm's `no_weight_decay`.
    """
    name, arguments, rate, decay = OPTIMIZERS[kind]
    rate = rate * batch_size if learning_rate is None else learning_rate
    decay = decay if weight_decay is None else weight_decay
    all_decay = kind == "sgd"
    listed: set[str] = getattr(objective.backbone, "no_weight_decay", set)()
    exempt = () if all_decay else [f"backbone.{parameter}" for parameter in listed]
    groups = param_groups_weight_decay(objective, decay, not all_decay, exempt)
    filled = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer = create_optimizer_v2(filled, name, lr=rate, weight_decay=decay, **arguments)
    return optimizer
