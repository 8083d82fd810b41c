"""What `test_objective_distributed.py` runs on one process and on two: two steps of every objective."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from reference.objective_cases import NAMES, STATISTICS, build, real_views
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssdd_hub.runs.checkpoints import save_tree

# As they are used: with batch normalisation, and with the norm after pooling that MAE leaves out.
WHOLE = {name: "vit_average" if name == "mae" else "resnet" for name in NAMES}


def without_batch_statistics(module):
    """Takes batch normalisation out of the heads, which sees one process's images only."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            setattr(module, name, nn.Identity())
        else:
            without_batch_statistics(child)
    return module


def two_steps(name, rank, world):
    """Takes two steps where no image's projection depends on its batch, so that one process gets what two get."""
    return train(without_batch_statistics(build(name, "vit" if name == "mae" else "convnext")), rank, world)


def train(objective, rank, world):
    """Returns the losses and the backbone's gradients of two steps on a process's part of the batch, and the state."""
    objective, name = objective.double().train(), objective.name
    views = [view.double().chunk(world)[rank] for view in real_views(name)]
    model = DistributedDataParallel(objective) if world > 1 else objective
    optimizer = torch.optim.SGD([part for part in objective.parameters() if part.requires_grad], lr=0.01)
    losses, gradients = [], []
    for step in range(2):
        torch.manual_seed(step)
        objective.schedule(step, 1, 10)
        loss = model(views)
        optimizer.zero_grad()
        loss.backward()
        objective.after_backward()
        parts = [part.grad.flatten() for part in objective.backbone.parameters() if part.requires_grad]
        gradients.append(torch.cat(parts))
        optimizer.step()
        losses.append(loss.detach())
    # Each process has statistics of its own until the next step, when those of the first go round.
    state = {name: value for name, value in objective.state_dict().items() if not name.endswith(STATISTICS)}
    state = torch.cat([value.double().flatten() for value in state.values()])
    return {"losses": torch.stack(losses), "gradients": torch.stack(gradients), "state": state}


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    results = {
        "plain": {name: two_steps(name, rank, world) for name in NAMES},
        "whole": {name: train(build(name, kind), rank, world) for name, kind in WHOLE.items()},
    }
    save_tree(folder / f"process-{rank}.safetensors", results)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
