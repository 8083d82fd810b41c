"""The evaluation that MKDT's released code does of a set, written in plain torch from its description alone.

20 epochs of SGD (batches of 256, the last one smaller, momentum 0.9, weight decay 1e-4) on the squared error to the
targets; then a linear layer on flattened features by 20 calls of L-BFGS, with 1e-3 times the squares of its weights.
"""

import torch
from torch import nn


def build_network(widths, num_targets, image_size=32):
    layers, before = [], 3
    for width in widths:
        norm = nn.GroupNorm(width, width)  # an instance norm with scale and shift
        layers += [nn.Conv2d(before, width, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2)]
        before, image_size = width, image_size // 2
    return nn.Sequential(*layers, nn.Flatten()), nn.Linear(before * image_size**2, num_targets)


def pretrain(body, head, images, targets, rate, orders, batch=256):
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=1e-4)
    for order in orders:
        for rows in order.split(batch):
            loss = ((head(body(images[rows])) - targets[rows]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy_of_layer(features, labels, test, truth, num_classes, calls=20):
    layer = nn.Linear(features.shape[1], num_classes)
    optimizer = torch.optim.LBFGS(layer.parameters())

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(features), labels) + 1e-3 * (layer.weight**2).sum()
        loss.backward()
        return loss

    for _ in range(calls):
        optimizer.step(closure)
    return (layer(test).argmax(1) == truth).double().mean().item()


def evaluate(folder, weights, widths, train, labels, test, truth, num_classes, orders):
    """Scores the `images_1000.pt` and `labels_1000.pt` of a folder, from given first weights, in layer order.

    Real images, `(n, 3, 32, 32)`, are normalised; `train` are the labelled ones. `orders` holds the shuffled rows of
    the set for each of the epochs.
    """
    images, targets = (torch.load(folder / f"{name}_1000.pt", weights_only=True) for name in ("images", "labels"))
    body, head = build_network(widths, targets.shape[1], images.shape[-1])
    with torch.no_grad():
        for own, given in zip([*body.parameters(), *head.parameters()], weights, strict=True):
            own.copy_(given)
    pretrain(body, head, images, targets, 0.1, orders)
    with torch.no_grad():
        features, scored = (torch.cat([body(part) for part in bank.split(500)]) for bank in (train, test))
    return accuracy_of_layer(features, labels, scored, truth, num_classes)
