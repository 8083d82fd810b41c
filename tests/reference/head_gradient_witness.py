"""Linear gradient matching a second time: the gradients of an explicit head, which autograd differentiates again."""

import torch
from torch import nn
from torch.nn import functional


def gradients_of_head(features, classes, weight):
    """Returns the gradients of the mean cross-entropy in the weights and biases of a head, as one vector."""
    head = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.zero_()
    loss = functional.cross_entropy(head(features), classes)
    found = torch.autograd.grad(loss, [head.weight, head.bias], create_graph=True)
    return torch.cat([part.flatten() for part in found])


def distance(network, own, real, weight):
    """Returns 1 less the cosine of two gradients; `own` and `real` are images and classes."""
    ours, theirs = (
        gradients_of_head(network.forward_head(network.forward_features(images), pre_logits=True), classes, weight)
        for images, classes in (own, real)
    )
    lengths = ours.square().sum().sqrt() * theirs.square().sum().sqrt()
    return 1 - sum(one * other for one, other in zip(ours, theirs.detach(), strict=True)) / lengths
