"""KRR-ST a second time: slow, in NumPy float64, each gradient derived by hand from the formulas of the paper.

It shares nothing with the package but the meaning of the weights. A network is a dictionary: `blocks`, a list of
dictionaries with `weight (O, I, 3, 3)`, `bias`, `gain`, `shift`, `mean` and `var (O,)`, and `head_weight (D, F)` and
`head_bias (D,)`.
"""

import numpy as np

EPSILON = 1e-5  # of the batch normalisation
LEARNT = ("weight", "bias", "gain", "shift")


# The network


def to_network(student):
    """Copies the weights of a ConvNet with batch normalisation, by their order."""
    arrays = [tensor.detach().clone().numpy() for tensor in student.state_dict().values()]
    names = ("weight", "bias", "gain", "shift", "mean", "var", "count")
    blocks = [dict(zip(names, arrays[start : start + 7], strict=True)) for start in range(0, len(arrays) - 2, 7)]
    return {"blocks": blocks, "head_weight": arrays[-2], "head_bias": arrays[-1]}


def windows(maps):
    """The 3x3 neighbourhoods of all pixels, `(n, I, h, w, 3, 3)`, with zeros around the maps."""
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))


def conv3x3(maps, weight, bias):
    """Correlation with zero padding of 1."""
    return np.einsum("nihwrc,oirc->nohw", windows(maps), weight, optimize=True) + bias[:, None, None]


def conv3x3_backward(upstream, maps, weight):
    """Returns the gradients in maps, weight and bias."""
    mirrored = weight[:, :, ::-1, ::-1].swapaxes(0, 1)
    grad_weight = np.einsum("nohw,nihwrc->oirc", upstream, windows(maps), optimize=True)
    return conv3x3(upstream, mirrored, np.zeros(len(mirrored))), grad_weight, upstream.sum((0, 2, 3))


def pool2x2(maps):
    """Averages squares of four pixels; an odd last row or column is left out."""
    count, channels, height, width = maps.shape
    even = maps[:, :, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))


def pool2x2_backward(upstream, shape):
    grad = np.zeros(shape)
    spread = upstream.repeat(2, 2).repeat(2, 3) / 4
    grad[:, :, : spread.shape[2], : spread.shape[3]] = spread
    return grad


def forward(network, images, train=False):
    """Returns features `(n, F)` and what `backward` needs; in train mode the running statistics move."""
    maps, tape = images, []
    for block in network["blocks"]:
        before = maps
        maps = conv3x3(before, block["weight"], block["bias"])
        mean, var = block["mean"], block["var"]
        if train:
            mean, var = maps.mean((0, 2, 3)), maps.var((0, 2, 3))
            count = maps.size // maps.shape[1]
            block["mean"] = 0.9 * block["mean"] + 0.1 * mean
            block["var"] = 0.9 * block["var"] + 0.1 * var * count / (count - 1)
        scale = 1 / np.sqrt(var + EPSILON)
        normal = (maps - mean[:, None, None]) * scale[:, None, None]
        maps = normal * block["gain"][:, None, None] + block["shift"][:, None, None]
        tape.append((before, normal, scale, maps > 0))
        maps = pool2x2(np.maximum(maps, 0))
    return maps.reshape(len(maps), -1), (tape, maps.shape, train)


def backward(network, upstream, memory):
    """Returns the gradients in the images and in what each block learns, from one in the features `(n, F)`."""
    tape, shape, train = memory
    upstream, grads = upstream.reshape(shape), []
    for block, (before, normal, scale, positive) in zip(reversed(network["blocks"]), reversed(tape), strict=True):
        upstream = pool2x2_backward(upstream, positive.shape) * positive
        gain, shift = (upstream * normal).sum((0, 2, 3)), upstream.sum((0, 2, 3))
        upstream = upstream * block["gain"][:, None, None]
        if train:
            # The batch's mean and variance depend on the maps as well.
            upstream = upstream - upstream.mean((0, 2, 3), keepdims=True)
            upstream = upstream - normal * (upstream * normal).mean((0, 2, 3), keepdims=True)
        upstream, weight, bias = conv3x3_backward(upstream * scale[:, None, None], before, block["weight"])
        grads.insert(0, {"weight": weight, "bias": bias, "gain": gain, "shift": shift})
    return upstream, grads


# The outer problem


def with_constant(features):
    return np.concatenate([features, np.ones((len(features), 1))], 1)


def outer_problem(distilled_features, targets, real_features, real_targets, ridge, trace_detached=True):
    """Returns the loss and its gradients in the four arrays, by their names.

    The trace that scales the ridge counts as a constant, unless `trace_detached` is False.
    """
    phi_s, phi_r = with_constant(distilled_features), with_constant(real_features)
    k_ss, k_rs = phi_s @ phi_s.T, phi_r @ phi_s.T
    matrix = k_ss + ridge * np.trace(k_ss) * np.eye(len(k_ss))
    dual = np.linalg.solve(matrix, targets)
    residual = k_rs @ dual - real_targets
    grad_prediction = 2 * residual / residual.size
    # The prediction is K_rs A^-1 Y, and d(A^-1) = -A^-1 dA A^-1.
    grad_targets = np.linalg.solve(matrix.T, k_rs.T @ grad_prediction)
    grad_matrix = -grad_targets @ dual.T
    grad_k_rs = grad_prediction @ dual.T
    grad_k_ss = grad_matrix.copy()
    if not trace_detached:
        grad_k_ss += ridge * np.trace(grad_matrix) * np.eye(len(k_ss))
    grad_phi_s = (grad_k_ss + grad_k_ss.T) @ phi_s + grad_k_rs.T @ phi_r
    grads = {
        "distilled_features": grad_phi_s[:, :-1],
        "targets": grad_targets,
        "real_features": (grad_k_rs @ phi_s)[:, :-1],
        "real_targets": -grad_prediction,
    }
    return (residual**2).mean(), grads


def image_gradient(network, images, targets, real_images, real_targets, ridge):
    """Returns loss, gradient in the images and gradient in the targets, through a network in eval mode."""
    features, memory = forward(network, images)
    real_features = forward(network, real_images)[0]
    loss, grads = outer_problem(features, targets, real_features, real_targets, ridge)
    return loss, backward(network, grads["distilled_features"], memory)[0], grads["targets"]


def central_differences(function, point, step=1e-5):
    """Returns the gradient of a scalar function, entry by entry."""
    gradient = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        up, down = point.copy(), point.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


# The optimisers


class AdamW:
    """Adam without weight decay, for one array; Loshchilov and Hutter, arXiv 1711.05101, algorithm 2."""

    def __init__(self, shape):
        self.first, self.second, self.steps = np.zeros(shape), np.zeros(shape), 0

    def update(self, values, gradient, learning_rate):
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return values - learning_rate * first / (np.sqrt(second) + 1e-8)


class SGD:
    """Momentum in the form `v = momentum * v + g`, `w -= lr * v`, with `g` including the weight decay."""

    def __init__(self, learning_rate=0.1, momentum=0.9, weight_decay=1e-3):
        self.settings = (learning_rate, momentum, weight_decay)
        self.velocity = {}

    def update(self, name, values, gradient):
        learning_rate, momentum, weight_decay = self.settings
        gradient = gradient + weight_decay * values
        self.velocity[name] = momentum * self.velocity.get(name, 0.0) + gradient
        return values - learning_rate * self.velocity[name]


def head_gradients(features, head_weight, head_bias, targets):
    """Returns the mean squared error of a linear head, and its gradients in features, weight and bias."""
    residual = features @ head_weight.T + head_bias - targets
    upstream = 2 * residual / residual.size
    return (residual**2).mean(), upstream @ head_weight, upstream.T @ features, upstream.sum(0)


def inner_step(network, optimizer, images, targets):
    """One full-batch SGD step of a network in train mode; returns the loss before it."""
    features, memory = forward(network, images, train=True)
    loss, upstream, weight, bias = head_gradients(features, network["head_weight"], network["head_bias"], targets)
    _, grads = backward(network, upstream, memory)
    for index, (block, grad) in enumerate(zip(network["blocks"], grads, strict=True)):
        for name in LEARNT:
            block[name] = optimizer.update((index, name), block[name], grad[name])
    network["head_weight"] = optimizer.update("head_weight", network["head_weight"], weight)
    network["head_bias"] = optimizer.update("head_bias", network["head_bias"], bias)
    return loss


# The whole


def distil(network, images, targets, batches, *, steps, lr_images, lr_targets, final_lr, ridge, inner_steps=1):
    """Runs an outer step per batch with one student, changed in place and never renewed, of `steps` of a linear decay.

    Yields loss, inner loss, images and targets of each.
    """
    of_images, of_targets, of_student = AdamW(images.shape), AdamW(targets.shape), SGD()
    for step, (real_images, real_targets) in enumerate(batches):
        share = (1 - step / steps) + final_lr * step / steps
        loss, grad_images, grad_targets = image_gradient(network, images, targets, real_images, real_targets, ridge)
        images = of_images.update(images, grad_images, lr_images * share)
        targets = of_targets.update(targets, grad_targets, lr_targets * share)
        for _ in range(inner_steps):
            inner_loss = inner_step(network, of_student, images, targets)
        yield loss, inner_loss, images, targets
