"""What the tests of the self-supervised objectives share: tiny networks, tiny heads, and views of real images."""

import random
from functools import cache

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

import ssdd_hub.models  # noqa: F401
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.objectives.registry import OBJECTIVES, build_objective

SIZE = 32
SPACE = PixelSpace((0.5,) * 3, (0.25,) * 3)
HEAD = {"hidden_dim": 48, "output_dim": 24}
DECODER = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4}
# Banks and queues that two batches of 16 fill.
SETTINGS = {
    "dcl": HEAD,
    "dino": {**HEAD, "output_dim": 64},
    "lejepa": {**HEAD, "num_vectors": 64},
    "mae": DECODER,
    "moco": {**HEAD, "bank_size": 32},
    "nnclr": {**HEAD, "prediction_dim": 32, "bank_size": 32},
    "simsiam": {**HEAD, "prediction_dim": 16},
    "fastsiam": {**HEAD, "prediction_dim": 16},
    "swav": {**HEAD, "num_prototypes": 20, "queue_length": 32},
}
# Fewer views than by default, for speed.
VIEW_ARGS = {"mmcr": {"k": 2}, "fastsiam": {"num_views": 3}, "lejepa": {"n_local_views": 1}}
BACKBONES = {
    "resnet": ("ssdd_resnet10", {"channels": (4, 8, 8, 16)}),
    "convnext": ("convnext_atto", {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}),
    "vit": ("test_vit", {"img_size": SIZE, "patch_size": 8, "depth": 2}),
    "vit_average": ("test_vit", {"img_size": SIZE, "patch_size": 8, "depth": 2, "global_pool": "avg"}),
}
NAMES = sorted(OBJECTIVES)
# How the names of batch normalisation's state end.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PAIRS = [(name, kind) for name in NAMES for kind in ("resnet", "convnext", "vit") if name != "mae" or kind == "vit"]


def make_backbone(kind, seed=0, in_chans=3):
    name, args = BACKBONES[kind]
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=0, in_chans=in_chans, **args)


def build(name, kind="resnet", seed=0, in_chans=3, **settings):
    backbone = make_backbone(kind, seed, in_chans)
    return build_objective(name, backbone, image_size=SIZE, **{**SETTINGS.get(name, HEAD), **settings})


def real_images(count, mode="RGB"):
    """Returns handwritten digits, enlarged."""
    digits = load_digits().images[:count]
    pictures = [Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8)) for digit in digits]
    return [picture.resize((SIZE, SIZE)).convert(mode) for picture in pictures]


@cache
def real_views(name, count=16, seed=0):
    """Returns a batch of the method's own views of real images, a tensor `(count, 3, 32, 32)` each."""
    kind = "vit" if name == "mae" else "resnet"
    transform = build(name, kind).build_views(SIZE, SPACE, **VIEW_ARGS.get(name, {}))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    views = [transform(image) for image in real_images(count)]
    return [torch.stack(same) for same in zip(*views, strict=True)]


def train(objective, views, steps, lr=1e-3, first=0):
    """Takes steps on the same views, each with random numbers of its own, and returns the losses."""
    objective.train()
    optimizer = torch.optim.AdamW([part for part in objective.parameters() if part.requires_grad], lr)
    losses = []
    for step in range(first, first + steps):
        torch.manual_seed(step)
        objective.schedule(step, 10, 40)
        loss = objective(views)
        optimizer.zero_grad()
        loss.backward()
        objective.after_backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def settle(objective, views):
    """Fills banks and lets the covariance converge before losses are compared: until then the task gets harder."""
    passes = {"moco": 4, "tico": 20}.get(objective.name, 0)
    objective.train()
    for _ in range(passes):
        objective(views)
