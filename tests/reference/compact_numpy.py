"""Levels with their gradients and principal components a second time: slow, in loops of Python and NumPy float64."""

import numpy as np


def round_with_gradients(values, scale, offset, most, upstream):
    """LSQ's equations 1 to 3 and 5, with the offset of LSQ+: rounded values, and gradients in values, scale, offset.

    Arguments and results are lists of numbers and numbers; `upstream` is the gradient in each rounded value.
    """
    rounded, in_values, in_scale, in_offset = [], [], 0.0, 0.0
    for value, gradient in zip(values, upstream, strict=True):
        place = (value - offset) / scale
        if place <= 0:
            number, inside = 0, False
        elif place >= most:
            number, inside = most, False
        else:
            number, inside = round(place), True
        rounded.append(number * scale + offset)
        in_values.append(gradient if inside else 0.0)
        in_scale += gradient * (number - place if inside else number)
        in_offset += 0.0 if inside else gradient
    return rounded, in_values, in_scale, in_offset


def bits_with_gradients(values, step):
    """The bits of a row of numbers of steps by the entropies of their columns, and the gradients in the values.

    `values` is a list of rows. The entropy of each column is a sum over the whole numbers of both signs with the
    probabilities `p(0) = 1 / (1 + m)` and `p(n) = p(-n) = r ** abs(n) / (1 + m) / 2`, where `r = m / (1 + m)` and `m`
    is the mean magnitude; the gradient is by central differences in `m`, times what a value changes of `m`.
    """
    numbers = [[round(value / step) for value in row] for row in values]
    bits, gradients = 0.0, np.zeros((len(values), len(values[0])))
    for column in range(len(values[0])):
        mean = sum(abs(row[column]) for row in numbers) / len(numbers)
        bits += _entropy(mean)
        slope = (_entropy(mean + 1e-5) - _entropy(mean - 1e-5)) / 2e-5 if mean else 0.0
        for place, row in enumerate(numbers):
            gradients[place, column] = slope * np.sign(row[column]) / step / len(numbers)
    return bits, gradients


def _entropy(mean):
    if mean == 0:
        return 0.0
    ratio = mean / (1 + mean)
    halves = [ratio**number / (1 + mean) / 2 for number in range(1, 4000)]
    return -np.log2(1 / (1 + mean)) / (1 + mean) - 2 * sum(part * np.log2(part) for part in halves if part > 0)


def best_approximation(images, count):
    """The images as their mean plus the `count` principal directions of largest variance, from the covariance."""
    flat = images.reshape(len(images), -1)
    mean = flat.mean(0)
    _, directions = np.linalg.eigh((flat - mean).T @ (flat - mean))
    result = np.zeros_like(flat)
    for row, image in enumerate(flat):
        result[row] = mean
        for direction in directions.T[::-1][:count]:
            result[row] += ((image - mean) @ direction) * direction
    return result.reshape(images.shape)


def gradients_of_sums(coefficients, bases, upstream):
    """The gradients in coefficients `(M, K)` and bases `(K, P)` of images that are sums, given those in images."""
    in_coefficients, in_bases = np.zeros_like(coefficients), np.zeros_like(bases)
    for image, row in enumerate(upstream):
        for base in range(len(bases)):
            in_coefficients[image, base] = sum(row * bases[base])
            in_bases[base] += row * coefficients[image, base]
    return in_coefficients, in_bases


def network(row, hidden, output):
    """What a network of one hidden layer adds to a target: lists of numbers; biases are the last column."""
    units = [max(0.0, sum(w * x for w, x in zip(line[:-1], row, strict=True)) + line[-1]) for line in hidden]
    return units, [sum(w * u for w, u in zip(line[:-1], units, strict=True)) + line[-1] for line in output]


def fit_by_adam(targets, aims, hidden, output, rate, steps, count):
    """The weights of a network after Adam's steps along the squares of `aims - targets - network(targets)` by `count`.

    Kingma and Ba, arXiv 1412.6980, algorithm 1, with their constants; arrays of NumPy, float64.
    """
    weights = [hidden.copy(), output.copy()]
    moments = [[np.zeros_like(part), np.zeros_like(part)] for part in weights]
    for step in range(1, steps + 1):
        gradients = [np.zeros_like(part) for part in weights]
        for target, aim in zip(targets, aims, strict=True):
            units, added = network(target, *weights)
            for d, (have, want) in enumerate(zip(target + np.array(added), aim, strict=True)):
                back = 2 * (have - want) / count
                gradients[1][d] += back * np.array([*units, 1.0])
                for unit, active in enumerate(units):
                    if active > 0:
                        gradients[0][unit] += back * weights[1][d][unit] * np.array([*target, 1.0])
        for part, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
            first[:] = 0.9 * first + 0.1 * gradient
            second[:] = 0.999 * second + 0.001 * gradient**2
            part -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weights
