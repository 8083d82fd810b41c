"""Selection of real images by one of several methods, and noise as an alternative."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ssdd_hub.arguments import argument_checks
from ssdd_hub.bounds import Count, Fraction, Natural, Positive, Settings, Weight, among, at_least, at_most
from ssdd_hub.errors import Check, InputError, require
from ssdd_hub.models.build import RESERVED_ARGS, build_student
from ssdd_hub.models.features import pre_logits
from ssdd_hub.models.pretraining import StudentTrainingSettings, check_batches, fit_student
from ssdd_hub.seeds import derive_seed, generator, seeded
from ssdd_hub.selection.coresets import Points, herding, kcenter, kmeans
from ssdd_hub.selection.source import Source, SourcePairs
from ssdd_hub.teachers.teacher import build_teacher


@dataclass(frozen=True)
class SelectionSettings(Settings, section="selection"):
    """How images are selected; defaults of k-means are scikit-learn's, those of experts MKDT's unless stated.

    Attributes:
        max_images: Candidates, drawn by seed; `random`, the training of experts and `balance` use all images. None for
            all.
        balance: Clusters of the targets of which a distilled set starts from as many real images each: those of
            methods whose `num_groups` is the same. None for any number of each.
        tile_factor: Crops along a side of an image of `rded`: 2 x 2 crops make one.
        tile_crops: Crops of each image of which `rded` takes the best.
        kmeans_exact: Up to this many images, k-means takes all of them in every iteration; of more, a batch.
        kmeans_iterations: Passes of k-means over the images at most.
        kmeans_batch_size: Images of a batch.
        expert: The network of `high_loss`, and of core sets and `rded` where targets are class labels, which are made
            of the features of one, or judge crops by it: a timm model name.
        expert_args: Further arguments of that model; the default is MKDT's ConvNet.
        backbone: For core sets of class labels in the features of a frozen network instead: the name of a timm model,
            with its weights. `herding` of one image a class is then the one nearest to the centroid.
        backbone_size: Height and width that images are resized to for it; by default what it states.
        experts: Trained networks whose errors are averaged. MKDT has 100.
        expert_steps: Steps that each is trained. MKDT has 20 passes, 3,900 steps for 50,000 images.
        expert_batch_size: Images per step; all of them where there are fewer.
        expert_learning_rate: SGD's, constant.
        expert_momentum: SGD's.
        expert_weight_decay: SGD's.
    """

    max_images: Count | None = None
    balance: Count | None = None
    tile_factor: Annotated[int, at_least(1), at_most(16)] = 2
    tile_crops: Annotated[int, at_least(1), at_most(100)] = 5
    kmeans_exact: Natural = 10_000
    kmeans_iterations: Count = 100
    kmeans_batch_size: Count = 1024
    expert: str = "ssdd_convnet3"
    expert_args: dict[str, Any] = field(default_factory=lambda: {"widths": [128, 128, 128], "norm": "instance"})
    backbone: str | None = None
    backbone_size: Count | None = None
    experts: Count = 1
    expert_steps: Count = 1000
    expert_batch_size: Count = 256
    expert_learning_rate: Annotated[Positive, at_most(10**4)] = 0.1
    expert_momentum: Fraction = 0.9
    expert_weight_decay: Weight = 1e-4

    def conflicts(self) -> Iterator[Check]:
        """Yields the rules for arguments of the expert."""
        by = "the data and other settings decide"
        yield from argument_checks("selection.expert_args", self.expert_args, RESERVED_ARGS, by)

    def training(self, size: int) -> StudentTrainingSettings:
        """Returns how an expert is trained on `size` images: for `expert_steps` steps."""
        return StudentTrainingSettings(
            epochs=math.ceil(self.expert_steps * min(self.expert_batch_size, size) / size),
            max_steps=self.expert_steps,
            batch_size=self.expert_batch_size,
            learning_rate=self.expert_learning_rate,
            momentum=self.expert_momentum,
            weight_decay=self.expert_weight_decay,
        )


Choice = Callable[[Source, Tensor, int, int, SelectionSettings], Tensor]
GAUSSIAN, HIGH_LOSS, RDED = "gaussian", "high_loss", "rded"
# What gives all images an order, which those of a class have too.
_ORDERS = ("random", HIGH_LOSS)


def choose_rows(method: str, source: Source, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    """Chooses `count` source images by a method of `CHOICES`; returns their indices in order of choice, none twice.

    Where the targets are class labels, images of all classes are chosen in turn, equally many as far as there are any.
    """
    require(among("the selection of real images", method, CHOICES))
    size = len(source.bank)
    candidates = torch.arange(size) if method == "random" else draw_candidates(source, seed, settings)
    if count > len(candidates):
        which = "there are only" if len(candidates) == size else "selection.max_images leaves only"
        raise InputError(f"{count} images are to be selected, and {which} {len(candidates)}: select fewer")
    choose = CHOICES[method] if source.classes is None else _by_class(method)
    return candidates[choose(source, candidates, count, seed, settings)]


def draw_candidates(source: Source, seed: int, settings: SelectionSettings) -> Tensor:
    """Returns the indices of the images that may be chosen, in order: all, or `max_images` by seed."""
    size, most = len(source.bank), settings.max_images
    if most is None or most >= size:
        return torch.arange(size)
    return _draw(size, most, seed, "selection/images").sort().values


def needs_expert(method: str, labelled: bool) -> bool:
    """Whether a selection trains experts; core sets and crops of class labels do."""
    return method == HIGH_LOSS or (labelled and method in ("kmeans", "kcenter", "herding", RDED))


def real_images(method: str, count: int, settings: SelectionSettings) -> int:
    """Returns how many real images a selection of `count` images takes."""
    return count * settings.tile_factor**2 if method == RDED else count


def draw_classes(source: Source, count: int) -> Tensor:
    """Returns classes `(count,)` that the source has images of, in turn."""
    present = torch.bincount(_classes(source)).nonzero()[:, 0]
    return present[torch.arange(count) % len(present)]


def targets_of(source: Source, classes: Tensor) -> Tensor:
    """Returns the targets `(n, C)`, float32, of classes `(n,)`."""
    return source.transform(one_hot(classes, len(source.transform.mean)).float())


def _classes(source: Source) -> Tensor:
    if source.classes is None:
        raise ValueError("the targets are a teacher's, and not of classes")
    return source.classes


def _by_class(method: str) -> Choice:
    """Returns a selection that chooses within each class."""

    def choose(source: Source, candidates: Tensor, count: int, seed: int, settings: SelectionSettings) -> Tensor:
        classes, choice = _classes(source)[candidates], CHOICES[method]
        if method in _ORDERS:
            order = choice(source, candidates, len(candidates), seed, settings)
        else:
            order = torch.arange(len(candidates))
        rows = [order[classes[order] == number] for number in torch.bincount(classes).nonzero()[:, 0]]
        sizes = torch.tensor(list(map(len, rows)))
        # The images of one rank in each class come before those of the next.
        ranks = torch.cat([torch.arange(size) for size in sizes.tolist()]).argsort(stable=True)[:count]
        counts = torch.bincount(torch.arange(len(rows)).repeat_interleave(sizes)[ranks], minlength=len(rows)).tolist()
        if method not in _ORDERS:
            if needs_expert(method, labelled=True):
                source = replace(source, targets=_expert_features(source, seed, settings))
            parts = zip(rows, counts, strict=True)
            rows = [own[choice(source, candidates[own], n, seed, settings)] if n else own[:0] for own, n in parts]
        chosen = [own[:n] for own, n in zip(rows, counts, strict=True)]
        return torch.cat(chosen)[torch.cat([torch.arange(n) for n in counts]).argsort(stable=True)]

    return choose


def _draw(size: int, count: int, seed: int, purpose: str) -> Tensor:
    return torch.randperm(size, generator=generator(seed, purpose))[:count]


def _targets(source: Source, candidates: Tensor) -> Points:
    return Points(candidates, lambda rows: source.targets[rows].cpu())


def _random(source: Source, candidates: Tensor, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    return _draw(len(candidates), count, seed, "selection/random")


def _kmeans(source: Source, candidates: Tensor, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    return _kmeans_of(_targets(source, candidates), count, seed, settings)


def _kmeans_pixels(source: Source, candidates: Tensor, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    return _kmeans_of(Points(candidates, source.images), count, seed, settings)


def _kmeans_of(points: Points, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    effort = (settings.kmeans_exact, settings.kmeans_iterations, settings.kmeans_batch_size)
    return kmeans(points, count, seed, *effort)


def _kcenter(source: Source, candidates: Tensor, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    return kcenter(_targets(source, candidates), count, seed)


def _herding(source: Source, candidates: Tensor, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    return herding(_targets(source, candidates), count)


def _high_loss(source: Source, candidates: Tensor, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    """Chooses the images with the greatest errors of experts trained on all images, the greatest first.

    The initialisation of MKDT (Joshi et al., ICLR 2025, arXiv 2410.02116, as in their released code): an image's error
    is the mean square over `D` at the end of the training, averaged over the experts.
    """
    pairs = SourcePairs(source.bank, source.targets, source.pixel_space, source.device)
    losses = torch.zeros(len(candidates), dtype=torch.float64)
    for expert in range(settings.experts):
        student = train_expert(source, pairs, seed, settings, expert)
        with torch.no_grad():
            batches = (pairs.batch(rows) for rows in torch.split(candidates, 512))
            errors = [(student(images) - targets).square().mean(1).double().cpu() for images, targets in batches]
        losses += torch.cat(errors)
    if not losses.isfinite().all():
        raise InputError("an expert of high_loss diverges: lower --selection.expert-learning-rate")
    return losses.argsort(descending=True, stable=True)[:count]


def train_expert(source: Source, pairs: SourcePairs, seed: int, settings: SelectionSettings, number: int) -> nn.Module:
    """Returns an expert, trained on all images of a source and their targets, which are `pairs`."""
    shape: dict[str, Any] = {"in_chans": source.bank.num_channels, "image_size": source.bank.image_size}
    with seeded(seed, "selection/expert", number):
        width = source.targets[:1].shape[1]
        student = build_student(settings.expert, num_targets=width, **shape, **settings.expert_args)
    steps = derive_seed(seed, "selection/steps of an expert", number)
    return fit_student(student.to(source.device), pairs, settings.training(len(pairs)), steps)


def _expert_features(source: Source, seed: int, settings: SelectionSettings) -> Tensor:
    """Returns features `(N, F)`, on the CPU, of a frozen network or of one trained to tell the source's classes."""
    if settings.backbone:
        network = build_teacher(settings.backbone, input_size=settings.backbone_size).to(source.device)
        parts = torch.split(source.bank.pixels, 512)
        return torch.cat([network(part.to(source.device, torch.float32) / 255).cpu() for part in parts])
    pairs = SourcePairs(source.bank, source.targets, source.pixel_space, source.device)
    expert, parts = train_expert(source, pairs, seed, settings, 0), torch.split(torch.arange(len(pairs)), 512)
    with torch.no_grad():
        return torch.cat([pre_logits(expert, pairs.batch(rows)[0]).cpu() for rows in parts])


def check_experts(settings: SelectionSettings, size: int, **shape: Any) -> None:
    """Refuses an expert that cannot be trained in its batches of `size` images, before any work.

    `shape` holds `in_chans` and `image_size`.
    """
    expert = build_student(settings.expert, num_targets=1, **shape, **settings.expert_args)
    check_batches(expert, {"--selection.expert-batch-size": min(settings.expert_batch_size, size)}, **shape)


def draw_noise(source: Source, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws images `(count, C, H, W)` from N(0, 1) in the students' pixel space; computes their targets `(count, D)`.

    The teacher's input is exactly these pixels, also those outside `[0, 1]`. Without a teacher, noise stands for the
    classes in turn.
    """
    shape = (count, *source.bank.pixels.shape[1:])
    images = torch.randn(shape, generator=generator(seed, "selection/gaussian"))
    if source.teacher is None:
        return images, targets_of(source, draw_classes(source, count))
    return images, predict_targets(source, source.pixel_space.denormalise(images))


def predict_targets(source: Source, pixels: Tensor) -> Tensor:
    """Returns the teacher's targets `(n, D)`, float32, of images that need not be of the source, `(n, C, H, W)`."""
    if source.teacher is None:
        raise ValueError("class labels of other images than the source's are not known")
    weights, teacher = next(source.teacher.parameters()), source.teacher
    features = torch.cat([teacher(part.to(weights)).cpu().float() for part in torch.split(pixels, 256)])
    return source.transform(features)


CHOICES: dict[str, Choice] = {
    "random": _random,
    "kmeans": _kmeans,
    "kmeans-pixels": _kmeans_pixels,
    "kcenter": _kcenter,
    "herding": _herding,
    HIGH_LOSS: _high_loss,
}
"""Selections of real images: at random, core sets of targets or of normalised pixels, the greatest errors."""
OF_REAL = (*CHOICES, RDED)
"""These, and tiled crops of real images."""
SELECTIONS = (*OF_REAL, GAUSSIAN)
"""All selections: those of real images, and noise instead."""
