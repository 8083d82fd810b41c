"""FRePo, RFAD and CLP-DD a second time: slow, in NumPy float64, gradients derived by hand from the papers' formulas.

Networks are those of `krrst_numpy`.
"""

import numpy as np
from reference import krrst_numpy


def through_networks(networks, images, targets, real_images, real_targets, *, phi, penalty, outer):
    """Returns loss, gradients in images and targets, and what else `outer` gives, of `probe` on networks' features.

    `phi` is a pair: the factor of the features, and the constant that is appended to them.
    """
    factor, constant = phi
    passed = [krrst_numpy.forward(network, images) for network in networks]
    ours, real = (
        np.concatenate([factor * part for part in parts] + [np.full((len(parts[0]), 1), constant)], 1)
        for parts in (
            [features for features, _ in passed],
            [krrst_numpy.forward(network, real_images)[0] for network in networks],
        )
    )
    loss, grad_phi, grad_targets, other = probe(ours, targets, real, real_targets, penalty, outer)
    width, grad_images = passed[0][0].shape[1], 0.0
    for number, (network, (_, memory)) in enumerate(zip(networks, passed, strict=True)):
        upstream = factor * grad_phi[:, number * width : (number + 1) * width]
        grad_images = grad_images + krrst_numpy.backward(network, upstream, memory)[0]
    return loss, grad_images, grad_targets, other


def probe(phi_s, targets, phi_r, real_targets, penalty, outer):
    """A ridge regression of `λ = penalty · trace / M`, and its gradients in `phi_s` and `targets`."""
    size, kernel, cross = len(phi_s), phi_s @ phi_s.T, phi_r @ phi_s.T
    matrix = kernel + penalty / size * np.trace(kernel) * np.eye(size)
    dual = np.linalg.solve(matrix, targets)
    loss, upstream, other = outer(cross @ dual, real_targets)
    grad_targets = np.linalg.solve(matrix.T, cross.T @ upstream)
    grad_matrix = -grad_targets @ dual.T
    # The trace in the penalty depends on the images too.
    grad_kernel = grad_matrix + penalty / size * np.trace(grad_matrix) * np.eye(size)
    grad_phi = (grad_kernel + grad_kernel.T) @ phi_s + dual @ upstream.T @ phi_r
    return loss, grad_phi, grad_targets, other


def half_sum(prediction, targets):
    """Half the squared distance of each image, and the mean over images: FRePo."""
    loss, upstream = 0.0, np.zeros_like(prediction)
    for row, (ours, theirs) in enumerate(zip(prediction, targets, strict=True)):
        loss += 0.5 * sum((one - other) ** 2 for one, other in zip(ours, theirs, strict=True)) / len(targets)
        upstream[row] = (ours - theirs) / len(targets)
    return loss, upstream, None


def half_mean(prediction, targets):
    """Half the mean over images and entries: RFAD."""
    loss, upstream, _ = half_sum(prediction, targets)
    return loss / targets.shape[1], upstream / targets.shape[1], None


def mean(prediction, targets):
    """The mean over images and entries."""
    loss, upstream, _ = half_mean(prediction, targets)
    return 2 * loss, 2 * upstream, None


def cross_entropy(scale):
    """Returns the mean cross-entropy of `softmax(scale · prediction)`, with its derivative in `log scale`."""

    def outer(prediction, targets):
        loss, slope, upstream = 0.0, 0.0, np.zeros_like(prediction)
        for row, (ours, theirs) in enumerate(zip(prediction, targets, strict=True)):
            logits, label = scale * ours, int(np.argmax(theirs))
            total = sum(np.exp(logit) for logit in logits)
            loss += (np.log(total) - logits[label]) / len(targets)
            for place, logit in enumerate(logits):
                error = (np.exp(logit) / total - (place == label)) / len(targets)
                upstream[row, place] = scale * error
                slope += error * logit
        return loss, upstream, slope

    return outer


def margin(targets):
    """FRePo's term of the set's own targets `(M, C)`, and its gradient."""
    loss, gradient, (size, classes) = 0.0, np.zeros_like(targets), targets.shape
    for row, entries in enumerate(targets):
        second, first = np.argsort(entries)[-2:]
        gap = entries[first] - entries[second]
        loss -= min(gap, 1 / classes) / size
        if gap < 1 / classes:
            gradient[row, first] -= 1 / size
            gradient[row, second] += 1 / size
    return loss, gradient


class Sgd:
    """SGD with momentum 0.5."""

    def __init__(self, shape):
        self.velocity = np.zeros(shape)

    def update(self, values, gradient, rate):
        self.velocity = 0.5 * self.velocity + gradient
        return values - rate * self.velocity


class Lamb:
    """You et al., ICLR 2020, arXiv 1904.00962, algorithm 2, without weight decay, for one array."""

    def __init__(self, shape):
        self.first, self.second, self.steps = np.zeros(shape), np.zeros(shape), 0

    def update(self, values, gradient, learning_rate):
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        direction = first / (np.sqrt(second) + 1e-6)
        return values - learning_rate * np.linalg.norm(values) / np.linalg.norm(direction) * direction
