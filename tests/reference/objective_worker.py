"""What `test_objective_distributed.py` runs on one process and on two: two steps of every objective."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from reference.objective_cases import NAMES, build, real_views
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssdd_hub.checkpoint import save_tree


def without_batch_statistics(module):
    """Takes batch normalisation out of the heads, which sees one process's images only."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            setattr(module, name, nn.Identity())
        else:
            without_batch_statistics(child)
    return module


def two_steps(name, rank, world):
    """Returns the losses, and the gradients of both steps in the backbone, of one process's part of the batch."""
    objective = without_batch_statistics(build(name, "vit" if name == "mae" else "convnext")).double().train()
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
        gradients.append(torch.cat([part.grad.flatten() for part in objective.backbone.parameters()]))
        optimizer.step()
        losses.append(loss.detach())
    state = torch.cat([value.double().flatten() for value in objective.state_dict().values()])
    return {"losses": torch.stack(losses), "gradients": torch.stack(gradients), "state": state}


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    save_tree(folder / f"process-{rank}.safetensors", {name: two_steps(name, rank, world) for name in NAMES})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
