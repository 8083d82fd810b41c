"""Bias of the meta-gradient through a self-supervised inner loss, which is why KRR-ST's inner loss is a regression.

Theorem 1 of KRR-ST (Lee et al., ICLR 2024, arXiv 2310.06511). Synthetic images `X` train a network by `S` steps of
gradient descent, and the outer loss of its last weights is differentiated with respect to `X`: the meta-gradient. If
the inner loss is an average over random augmentations, and each step draws them afresh, the meta-gradient is random.
Its mean is not the meta-gradient of the averaged inner loss, because what follows a draw is not linear in it. No
number of draws removes that bias. A regression on fixed targets draws nothing, so there is nothing to be biased.

Here the augmentations are a finite set, so that the average over all of them, and its meta-gradient, are sums that are
exact but for rounding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from tqdm.auto import tqdm

from krr_st_minimal import with_one
from ssdd_hub import ConvNet, InputError, PixelSpace
from ssdd_hub.bounds import Positive, Rule, Settings, Several, among, at_least, at_most, either
from ssdd_hub.data import ImageBank, crop_flip
from ssdd_hub.data.augment import PADDING
from ssdd_hub.errors import Check
from ssdd_hub.results.charts import new_figure, save_figures
from ssdd_hub.seeds import generator, seeded
from ssdd_hub.targets import TargetTransform
from ssdd_hub.text import show
from studies.inner_losses import LOSSES, InnerLoss, regression

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Weights = dict[str, Tensor]
Record = dict[str, Any]
# Draws that are differentiated together; more gain no time on a CPU.
CHUNK = 16
# Draws that differ by less than this part of the gradient differ by rounding in float64.
ROUNDING = 1e-12
COLOURS = ("#1f6f8b", "#c8553d", "#588b3a", "#8d5a97", "#b8860b", "#444444")


@dataclass(frozen=True)
class GradientBiasSettings(Settings, section="bias"):
    """What is measured. The defaults are our own, for a minute on two cores.

    Attributes:
        losses: Self-supervised inner losses: any of `barlow_twins`, `simclr`, `vicreg` and `spectral`. The regression
            on targets is always measured too, as it is (`mse`) and on augmented images (`mse_augmented`).
        draws: Sampled meta-gradients of each loss.
        num_images: Synthetic images `M`; they are real images, as at the start of a distillation.
        real_images: Real images of the outer loss; a ridge regression is fitted on half of them.
        dim: Width `D` of the embeddings and of the teacher's features.
        widths: Channels of each block of the ConvNet.
        norm: `instance` or `none`; batch statistics would couple the views.
        inner_steps: Steps `S` of gradient descent.
        step: Length of the first step on the average loss, as a part of the length of the weights. It sets the
            learning rate of each loss, so that losses of different scale can be compared.
        shift: An augmentation moves an image by up to so many pixels in both directions, and flips it or not.
        ridge: Penalty of the outer loss's regression, per image.
    """

    losses: list[str] = field(default_factory=lambda: ["barlow_twins", "simclr", "vicreg", "spectral"])
    draws: Annotated[int, at_least(4), at_most(1_000_000)] = 512
    num_images: Several = 10
    real_images: Annotated[int, at_least(4)] = 128
    dim: Annotated[int, at_least(2), at_most(16_384)] = 16
    widths: list[int] = field(default_factory=lambda: [8, 16])
    norm: Annotated[str, either("instance", "none")] = "instance"
    inner_steps: Annotated[int, at_least(1), at_most(1000)] = 3
    step: Positive = 0.05
    shift: Annotated[int, Rule(f"in [1, {PADDING}]", lambda shift: 1 <= shift <= PADDING)] = 1
    ridge: Positive = 0.01

    def conflicts(self) -> Iterator[Check]:
        """Yields that the losses are known."""
        yield among("bias.losses", self.losses, LOSSES)
        fits = all(isinstance(width, int) and 1 <= width <= 16_384 for width in self.widths)
        yield fits, f"bias.widths must be whole numbers from 1 to 16384, got {show(self.widths)}"


@dataclass(frozen=True)
class Bilevel:
    """An inner training by gradient descent on one loss, unrolled, and the outer loss of the weights it ends with.

    Attributes:
        embed: Maps weights and pixels `(n, C, H, W)` in `[0, 1]` to embeddings `(n, D)`.
        weights: The weights that every inner training starts from.
        outer: Maps weights to the outer loss, a scalar.
        loss: The inner loss.
        views: `(V, 3)`, all augmentations as `crop_flip` takes them.
        inner_steps: Steps `S`.
        learning_rate: Of each step.
    """

    embed: Callable[[Weights, Tensor], Tensor]
    weights: Weights
    outer: Callable[[Weights], Tensor]
    loss: InnerLoss
    views: Tensor
    inner_steps: int
    learning_rate: float = 1.0

    def sampled_loss(self, weights: Weights, pixels: Tensor, draw: Tensor) -> Tensor:
        """Returns the inner loss of images `(M, C, H, W)` under one draw `(num_views, M)`."""
        return self.loss.compare(*self._embed_views(weights, pixels, self.views[draw]))

    def expected_loss(self, weights: Weights, pixels: Tensor) -> Tensor:
        """Returns the mean of `sampled_loss` over all draws, exact but for rounding."""
        return self.loss.expected(self._embed_views(weights, pixels, self.views[:, None].expand(-1, len(pixels), -1)))

    def outer_loss(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Returns the outer loss after training on images `(M, C, H, W)`, with a draw for each step.

        Draws are `(S, num_views, M)`; without any, the steps descend on the expected loss.
        """
        weights = self.weights
        for step in range(self.inner_steps):
            if draws is None:
                slopes = grad(self.expected_loss)(weights, pixels)
            else:
                slopes = grad(self.sampled_loss)(weights, pixels, draws[step])
            weights = {name: value - self.learning_rate * slopes[name] for name, value in weights.items()}
        return self.outer(weights)

    def exact_gradient(self, pixels: Tensor) -> Tensor:
        """Returns the meta-gradient of the expected inner loss, `(M, C, H, W)`."""
        return grad(self.outer_loss)(pixels).detach()

    def sampled_gradients(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Returns the meta-gradient under each of the draws `(n, S, num_views, M)`: `(n, M, C, H, W)`."""
        return vmap(grad(self.outer_loss), in_dims=(None, 0))(pixels, draws).detach()

    def scaled(self, step: float, pixels: Tensor) -> "Bilevel":
        """Returns the same with the learning rate that makes the first expected step `step` of the weights' length."""
        slopes = grad(self.expected_loss)(self.weights, pixels)
        return replace(self, learning_rate=step * _length(self.weights) / _length(slopes))

    def _embed_views(self, weights: Weights, pixels: Tensor, views: Tensor) -> Tensor:
        images = crop_flip(pixels.repeat(len(views), 1, 1, 1), views.flatten(0, 1))
        return self.embed(weights, images).view(len(views), len(pixels), -1)


def _length(weights: Weights) -> float:
    return float(torch.cat([value.flatten() for value in weights.values()]).norm())


def all_views(shift: int) -> Tensor:
    """Returns every move by up to `shift` pixels, with and without a flip, as `crop_flip` takes them: `(V, 3)`."""
    offsets = torch.arange(PADDING - shift, PADDING + shift + 1)
    return torch.cartesian_prod(offsets, offsets, torch.arange(2))


def build_problems(source: ImageBank, settings: GradientBiasSettings, seed: int) -> tuple[Tensor, dict[str, Bilevel]]:
    """Returns synthetic images `(M, C, H, W)`, float64, in `[0, 1]`, and the two-level problem of every inner loss.

    The teacher is linear: the first `D` principal components of the real images, whitened. The outer loss is the
    `regression_error` from embeddings of real images, not augmented, to the teacher's features.

    Raises:
        InputError: There are too few images, or too small ones.
    """
    wanted = settings.num_images + settings.real_images
    if len(source) < wanted:
        raise InputError(
            f"bias.num_images and bias.real_images ask for {wanted} images, and there are {len(source)}: lower them"
        )
    order = torch.randperm(len(source), generator=generator(seed, "images of the gradients"))[:wanted]
    pixels, real = torch.split(source.pixels[order].double() / 255, [settings.num_images, settings.real_images])
    with seeded(seed, "first weights"):
        network = ConvNet(settings.widths, settings.norm, source.num_channels, source.image_size, settings.dim)
    space = PixelSpace.of(source.pixels)

    def _embed(weights: Weights, images: Tensor) -> Tensor:
        return functional_call(network, weights, (space.normalise(images),))

    teacher = TargetTransform.fit("whiten", real.flatten(1), settings.dim)
    real_targets = teacher(real.flatten(1))

    def _outer(weights: Weights) -> Tensor:
        return regression_error(_embed(weights, real), real_targets, settings.ridge)

    targets = teacher(pixels.flatten(1))
    losses = {name: LOSSES[name] for name in settings.losses}
    losses |= {"mse_augmented": regression(targets, True), "mse": regression(targets, False)}
    weights = {name: value.detach().double() for name, value in network.named_parameters()}
    views, as_it_is = all_views(settings.shift), torch.tensor([[PADDING, PADDING, 0]])
    problems = {}
    for name, loss in losses.items():
        problem = Bilevel(_embed, weights, _outer, loss, views if loss.augmented else as_it_is, settings.inner_steps)
        problems[name] = problem.scaled(settings.step, pixels)
    return pixels, problems


def regression_error(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Returns the mean squared error of a ridge regression on the second half of the rows, fitted on the first.

    Unlike `krr.outer_loss` it has no detached part, so its gradient is that of its value.
    """
    half, rows = len(features) // 2, with_one(features)
    fitted = rows[:half]
    gram = fitted.T @ fitted + ridge * half * torch.eye(rows.shape[1], dtype=rows.dtype)
    predictions = rows[half:] @ torch.linalg.solve(gram, fitted.T @ targets[:half])
    return functional.mse_loss(predictions, targets[half:])


def sample_gradients(
    problem: Bilevel, pixels: Tensor, count: int, seed: int, name: str, progress: bool = True
) -> Tensor:
    """Returns `count` meta-gradients, each of its own draws in every inner step: `(count, M, C, H, W)`.

    The draws depend on the seed and on the name of the loss.

    Raises:
        InputError: The inner training diverges.
    """
    shape = (count, problem.inner_steps)
    draws = problem.loss.draw(shape, len(problem.views), len(pixels), generator(seed, f"draws of {name}"))
    parts = tqdm(torch.split(draws, CHUNK), desc=name, unit=f"{CHUNK} draws", disable=not progress)
    sampled = torch.cat([problem.sampled_gradients(pixels, part) for part in parts])
    if not sampled.isfinite().all():
        raise InputError(f"the inner training on {name} diverges: lower --bias.step or --bias.inner-steps")
    return sampled


def measure_bias(exact: Tensor, sampled: Tensor) -> Record:
    """Compares the mean of sampled gradients with the exact one. All lengths are parts of that of the exact gradient.

    The length of the measured bias is always above zero, since noise has a length too. So the second half of the draws
    is projected on the direction of the bias in the first half. Without a bias the projections have mean zero whatever
    the direction is, and their mean over its standard error, `z`, is a standard normal number. With a bias, the
    projection is at most as long as the bias.

    Returns:
        `draws`; `exact_norm`, the length of the exact gradient; `error`, the length of mean minus exact; `bias`, the
        same without the part that noise has in its square, and 0 where nothing is left; `std`, the root of the summed
        variances of one draw; `cosine` of the mean and the exact gradient; `projection`, its `standard_error` and its
        95 % `interval`; `z`, None where all draws are the same; `curve`, see `error_curve`.
    """
    flat, differences = exact.flatten(), (sampled - exact).flatten(1)  # (d,), (n, d)
    scale, count = flat.norm().item(), len(sampled)
    mean = differences.mean(0)
    variance = differences.var(0).sum().item()
    pilot, tested = differences[: count // 2].mean(0), differences[count // 2 :]
    projections = tested @ pilot / pilot.norm().clamp_min(1e-300) / scale
    projection, error = projections.mean().item(), (projections.std() / math.sqrt(len(tested))).item()
    return {
        "draws": count,
        "exact_norm": scale,
        "error": mean.norm().item() / scale,
        "bias": math.sqrt(max(0.0, mean.square().sum().item() - variance / count)) / scale,
        "std": math.sqrt(variance) / scale,
        "cosine": torch.cosine_similarity(mean + flat, flat, dim=0).item(),
        "projection": projection,
        "standard_error": error,
        "interval": [projection - 1.96 * error, projection + 1.96 * error],
        "z": projection / error if math.sqrt(variance) > ROUNDING * scale else None,
        "curve": error_curve(exact, sampled),
    }


def error_curve(exact: Tensor, sampled: Tensor) -> list[tuple[int, float]]:
    """Returns how far the mean of `n` draws is from the exact gradient, for `n` = 1, 2, 4 and so on.

    The error is the root mean square, over all disjoint blocks of `n` draws, of the length of their mean minus the
    exact gradient, as a part of its length. Without a bias it falls as `1 / sqrt(n)`; with one it levels off.
    """
    differences, curve = (sampled - exact).flatten(1), []
    for power in range(len(sampled).bit_length()):
        number = 2**power
        blocks = differences[: len(sampled) // number * number].view(-1, number, differences.shape[1]).mean(1)
        error = blocks.square().sum(1).mean().sqrt() / exact.norm()
        curve.append((number, error.item()))
    return curve


def bias_table(records: list[Record]) -> str:
    """Returns `measure_bias` of each inner `loss` as a table of plain text."""
    row = "{:16}{:>6}  {:>7}  {:24}{:>7}  {:>13}  {:>6}"
    lines = [row.format("inner loss", "draws", "bias", "projected, 95 % interval", "z", "std of a draw", "cosine")]
    for record in records:
        low, high = record["interval"]
        spread = "" if record["z"] is None else f" [{low:.3f}, {high:.3f}]"
        z = "none" if record["z"] is None else f"{record['z']:.1f}"
        bias, projection, std = (_short(record[name]) for name in ("bias", "projection", "std"))
        cosine = f"{record['cosine']:.3f}"
        lines.append(row.format(record["loss"], record["draws"], bias, projection + spread, z, std, cosine))
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"


def render_bias(path: Path, records: list[Record]) -> None:
    """Draws the error of the mean over the number of draws, and the projected bias of each loss, as a PNG."""
    figure = new_figure(11.5, 4.8)
    figure.suptitle("Meta-gradient with a sampled inner loss, against that of the expected inner loss")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_curves(left, records)
    _draw_projections(right, records)
    save_figures(path.parent, {path.stem: figure})


def _draw_curves(axis: "Axes", records: list[Record]) -> None:
    """Draws the losses that draw something; the others have an error of rounding, with no place on this axis."""
    for number, record in enumerate(records):
        if record["z"] is None:
            continue
        counts, errors = zip(*record["curve"], strict=True)
        axis.loglog(counts, errors, "o-", color=COLOURS[number % len(COLOURS)], label=record["loss"])
        unbiased = [record["std"] / math.sqrt(count) for count in counts]
        axis.loglog(counts, unbiased, ":", color=COLOURS[number % len(COLOURS)])
    axis.plot([], [], ":", color="black", label="with no bias: std / √n")
    axis.set_xlabel("draws n")
    axis.set_ylabel("error of the mean of n draws\n(parts of the exact gradient)")
    axis.grid(alpha=0.25)
    axis.legend(fontsize="small", ncols=2)


def _draw_projections(axis: "Axes", records: list[Record]) -> None:
    for place, record in enumerate(records):
        low, high = record["interval"]
        middle, colour = record["projection"], COLOURS[place % len(COLOURS)]
        axis.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, capsize=5)
        note = f"z = {record['z']:.1f}" if record["z"] is not None else f"{middle:.0e}, nothing is drawn"
        axis.annotate(note, (middle, place), (0, 9), textcoords="offset points", ha="center", fontsize="small")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(records)), [record["loss"] for record in records])
    axis.set_ylim(len(records) - 0.5, -0.7)
    axis.margins(x=0.15)
    axis.set_xlabel("bias projected on a direction of other draws, 95 % interval\n(parts of the exact gradient)")
