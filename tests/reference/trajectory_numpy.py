"""Trajectory matching a second time: slow, in NumPy float64, from the formulas of MTT, MKDT and TESLA.

It shares nothing with the package but the order of weights. The network is a ConvNet with instance norm: blocks of
conv3x3, norm of each map of each image, ReLU and 2x2 average pooling, and a linear head; its weights are one vector,
of each block `weight (O, I, 3, 3)`, `bias`, `gain` and `shift (O,)`, then those of the head. All of it takes complex
numbers and is analytic but for signs: `f(x + ih)` has the derivative of `f` in its imaginary part, exact but for
rounding, which is how gradients in images, targets and step size are found.
"""

import numpy as np

EPSILON = 1e-5  # of the norm
SMALL = 1e-40  # imaginary steps


def unpack(vector, widths, channels, features, outputs):
    """Returns the arrays of a vector of weights: of each block four, then two of the head."""
    shapes = []
    for before, width in zip([channels, *widths], widths, strict=False):
        shapes += [(width, before, 3, 3), (width,), (width,), (width,)]
    shapes += [(outputs, features), (outputs,)]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    assert ends[-1] == len(vector)
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)]


def windows(maps):
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))  # (n, I, h, w, 3, 3)


def error_and_slope(arrays, images, targets, error):
    """Returns the loss of the network on images and targets, and its gradient in the weights, as one vector."""
    maps, tape = images, []
    *blocks, head_weight, head_bias = arrays
    for weight, bias, gain, shift in zip(*(blocks[start::4] for start in range(4)), strict=True):
        before = maps
        maps = np.einsum("nihwrc,oirc->nohw", windows(before), weight) + bias[:, None, None]
        centred = maps - maps.mean((2, 3), keepdims=True)
        scale = 1 / np.sqrt((centred**2).mean((2, 3), keepdims=True) + EPSILON)
        normal = centred * scale
        maps = normal * gain[:, None, None] + shift[:, None, None]
        positive = maps.real > 0
        tape.append((before, weight, gain, scale, normal, positive))
        maps = maps * positive
        count, width, height, _ = maps.shape
        maps = maps.reshape(count, width, height // 2, 2, height // 2, 2).mean((3, 5))
    features = maps.reshape(len(maps), -1)
    loss, upstream = error(features @ head_weight.T + head_bias, targets)
    found = [upstream.T @ features, upstream.sum(0)]
    upstream = (upstream @ head_weight).reshape(maps.shape)
    for before, weight, gain, scale, normal, positive in reversed(tape):
        upstream = upstream.repeat(2, 2).repeat(2, 3) / 4 * positive
        of_gain, of_shift = (upstream * normal).sum((0, 2, 3)), upstream.sum((0, 2, 3))
        upstream = upstream * gain[:, None, None]
        upstream = upstream - upstream.mean((2, 3), keepdims=True)
        upstream = (upstream - normal * (upstream * normal).mean((2, 3), keepdims=True)) * scale
        of_weight = np.einsum("nohw,nihwrc->oirc", upstream, windows(before))
        found = [of_weight, upstream.sum((0, 2, 3)), of_gain, of_shift, *found]
        upstream = np.einsum("nohwrc,oirc->nihw", windows(upstream), weight[:, :, ::-1, ::-1])
    return loss, np.concatenate([part.reshape(-1) for part in found])


# Losses of outputs `(n, D)`: each returns its value and its gradient in the outputs


def squares(outputs, targets):
    """The mean squared error."""
    return ((outputs - targets) ** 2).mean(), 2 * (outputs - targets) / outputs.size


def softmax(values):
    powers = np.exp(values - values.real.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def soft_labels(scale):
    """The mean cross-entropy with the softmax of `scale` times the targets."""

    def error(outputs, targets):
        wanted, given = softmax(scale * targets), softmax(outputs)
        return -(wanted * np.log(given)).sum(1).mean(), (given - wanted) / len(outputs)

    return error


def hard_labels(outputs, targets):
    """The mean cross-entropy with the class of the largest target."""
    wanted = np.eye(outputs.shape[1])[targets.real.argmax(1)]
    given = softmax(outputs)
    return -(wanted * np.log(given)).sum(1).mean(), (given - wanted) / len(outputs)


# The outer loss


def walk(start, slope, images, targets, batches, rate):
    """Returns the weights after steps of gradient descent, and those before each; `slope` is that of the weights."""
    weights, before = start, []
    for rows in batches:
        before.append(weights)
        weights = weights - rate * slope(weights, images[rows], targets[rows])
    return weights, before


def distance(start, goal, slope, images, targets, batches, rate):
    """Returns the squared distance of the walk's end to the goal, relative to the start's."""
    end, _ = walk(start, slope, images, targets, batches, rate)
    return ((end - goal) ** 2).sum() / ((start - goal) ** 2).sum()


def derivatives(function, values):
    """Returns the gradient of an analytic function in an array, by complex steps, one entry after another."""
    found = np.zeros(values.shape)
    for place in np.ndindex(values.shape):
        moved = values.astype(complex)
        moved[place] += 1j * SMALL
        found[place] = function(moved).imag / SMALL
    return found


def exact_gradients(start, goal, slope, images, targets, batches, rate):
    """Returns the gradients of `distance` in images, targets and rate."""
    given = (start, goal, slope)
    return (
        derivatives(lambda moved: distance(*given, moved, targets, batches, rate), images),
        derivatives(lambda moved: distance(*given, images, moved, batches, rate), targets),
        derivatives(lambda moved: distance(*given, images, targets, batches, moved[()]), np.array(rate)),
    )


def constant_memory_gradients(start, goal, slope, images, targets, batches, rate):
    """Returns TESLA's: 2 (rate (goal - start) + rate^2 G) dg_i / |start - goal|^2, with G the sum of all slopes g_i.

    The weights at which each slope is taken are constants.
    """
    _, before = walk(start, slope, images, targets, batches, rate)
    total = sum(slope(weights, images[rows], targets[rows]) for weights, rows in zip(before, batches, strict=True))
    length = ((start - goal) ** 2).sum()
    factor = 2 * (rate * (goal - start) + rate**2 * total) / length
    of_images, of_targets = np.zeros(images.shape), np.zeros(targets.shape)
    for weights, rows in zip(before, batches, strict=True):
        of_images[rows] += derivatives(
            lambda moved, at=weights, of=targets[rows]: (slope(at, moved, of) * factor).sum(), images[rows]
        )
        of_targets[rows] += derivatives(
            lambda moved, at=weights, of=images[rows]: (slope(at, of, moved) * factor).sum(), targets[rows]
        )
    of_rate = -2 * ((start - rate * total - goal) * total).sum() / length
    return of_images, of_targets, of_rate


# Experts


def train(weights, slope, batches, rate, momentum, decay):
    """Returns the weights after SGD on batches of images and targets, and the momentum."""
    speed = np.zeros(len(weights))
    for images, targets in batches:
        speed = momentum * speed + slope(weights, images, targets) + decay * weights
        weights = weights - rate * speed
    return weights
