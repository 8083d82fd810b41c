"""Losses of matching methods a second time: slow, for one group, from the papers' formulas.

DM and IDM with gradients by hand in NumPy; DC and IDC as a loss in NumPy, and once more in plain PyTorch for autograd
to differentiate twice. Networks are those of `krrst_numpy`, in eval mode.
"""

import numpy as np
import torch
from reference import krrst_numpy
from torch.nn import functional

# DM, IDM


def dm(network, own, real, target_weight):
    """Returns the squared distance of mean features and targets, and its gradients in images and targets."""
    features, memory = krrst_numpy.forward(network, own[0])
    wanted = krrst_numpy.forward(network, real[0])[0]
    loss, of_features, of_targets = 0.0, np.zeros_like(features), np.zeros_like(own[1])
    for column in range(features.shape[1]):
        apart = features[:, column].mean() - wanted[:, column].mean()
        loss += apart**2
        of_features[:, column] = 2 * apart / len(features)
    for column in range(own[1].shape[1]):
        apart = own[1][:, column].mean() - real[1][:, column].mean()
        loss += target_weight * apart**2
        of_targets[:, column] = target_weight * 2 * apart / len(own[1])
    return loss, krrst_numpy.backward(network, of_features, memory)[0], of_targets


def idm(network, own, real, target_weight, weight, group=None):
    """Returns DM's plus the weighted loss of the head on the set, by class where there is a `group`."""
    loss, of_images, of_targets = dm(network, own, real, target_weight)
    features, memory = krrst_numpy.forward(network, own[0])
    task, of_features, _, _, learned = task_loss(network, features, own[1], group)
    return (
        loss + weight * task,
        of_images + weight * krrst_numpy.backward(network, of_features, memory)[0],
        of_targets + weight * learned,
    )


def task_loss(network, features, targets, group):
    """Returns the loss of the head, and its gradients in features, weight, bias and targets."""
    outputs = features @ network["head_weight"].T + network["head_bias"]
    loss, upstream, learned = 0.0, np.zeros_like(outputs), np.zeros_like(targets)
    for row in range(len(outputs)):
        if group is None:
            for column in range(outputs.shape[1]):
                residual = outputs[row, column] - targets[row, column]
                loss += residual**2 / outputs.size
                upstream[row, column] = 2 * residual / outputs.size
                learned[row, column] = -2 * residual / outputs.size
        else:
            shares = np.exp(outputs[row]) / np.exp(outputs[row]).sum()
            loss -= np.log(shares[group]) / len(outputs)
            upstream[row] = (shares - np.eye(len(shares))[group]) / len(outputs)
    return loss, upstream @ network["head_weight"], upstream.T @ features, upstream.sum(0), learned


# DC, IDC


def weight_gradients(network, pairs, group):
    """Returns the gradients of the task's loss in the convolutions, in order, and in the head's weight."""
    features, memory = krrst_numpy.forward(network, pairs[0])
    _, upstream, of_head, _, _ = task_loss(network, features, pairs[1], group)
    return [grad["weight"] for grad in krrst_numpy.backward(network, upstream, memory)[1]] + [of_head]


def dc(network, own, real, group=None):
    """Returns the sum over layers and their outputs of 1 less the cosine of the gradients."""
    loss = 0.0
    for found, wanted in zip(*(weight_gradients(network, pairs, group) for pairs in (own, real)), strict=True):
        for ours, theirs in zip(found, wanted, strict=True):
            lengths = np.sqrt((ours**2).sum()) * np.sqrt((theirs**2).sum())
            loss += 1 - (ours * theirs).sum() / (lengths + 1e-6)
    return loss


def idc(network, own, real, group=None):
    """Returns the sum of squares of the differences of the convolutions' gradients."""
    loss = 0.0
    for found, wanted in zip(*(weight_gradients(network, pairs, group)[:-1] for pairs in (own, real)), strict=True):
        loss += ((found - wanted) ** 2).sum()
    return loss


def differentiated(network, own, real, group=None, cosine=True):
    """Returns the loss of `dc`, or of `idc`, and its gradients in images and targets, by autograd of plain code."""
    weights = [torch.tensor(block["weight"], requires_grad=True) for block in network["blocks"]]
    head = torch.tensor(network["head_weight"], requires_grad=True)
    matched = [*weights, *([head] if cosine else [])]

    def gradients(images, targets):
        maps = images
        for weight, block in zip(weights, network["blocks"], strict=True):
            values = {
                name: torch.tensor(block[name])[:, None, None] for name in ("bias", "gain", "shift", "mean", "var")
            }
            maps = functional.conv2d(maps, weight, padding=1) + values["bias"]
            maps = (maps - values["mean"]) / (values["var"] + krrst_numpy.EPSILON).sqrt()
            maps = functional.avg_pool2d((maps * values["gain"] + values["shift"]).relu(), 2)
        outputs = maps.flatten(1) @ head.T + torch.tensor(network["head_bias"])
        if group is None:
            loss = ((outputs - targets) ** 2).mean()
        else:
            loss = -(outputs[:, group] - outputs.exp().sum(1).log()).mean()
        return torch.autograd.grad(loss, matched, create_graph=True)

    leaves = [torch.tensor(part, requires_grad=True) for part in own]
    found, wanted = gradients(*leaves), [part.detach() for part in gradients(*map(torch.tensor, real))]
    loss = torch.zeros((), dtype=torch.float64)
    for ours, theirs in zip(found, wanted, strict=True):
        if not cosine:
            loss = loss + ((ours - theirs) ** 2).sum()
            continue
        for one, other in zip(ours.flatten(1), theirs.flatten(1), strict=True):
            loss = loss + 1 - one @ other / (one.norm() * other.norm() + 1e-6)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return loss.item(), *(grad.numpy() for grad in grads)
