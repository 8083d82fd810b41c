"""Linear probes on frozen backbones that a set alone trains: the test of sets that are made for such networks."""

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ssdd_hub.bounds import Count, Positive, Repeats, Settings, one_of
from ssdd_hub.data.augment import AUGMENTATIONS
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import Check
from ssdd_hub.evaluation.protocols.accuracy import OfSetsWithLabels, count_classes, labels_of
from ssdd_hub.evaluation.protocols.base import Measure, Pretrained, measure_accuracy, require_finite
from ssdd_hub.evaluation.protocols.kd import space_of
from ssdd_hub.evaluation.protocols.linear_probe import ProbeSettings, fit_probe
from ssdd_hub.evaluation.real_data import CHUNK, RealData
from ssdd_hub.models.features import in_parts
from ssdd_hub.models.pretraining import Pairs
from ssdd_hub.seeds import generator
from ssdd_hub.teachers.teacher import build_teacher

NAME = "backbone_probe"


@dataclass(frozen=True)
class BackboneProbeSettings(Settings, section="backbone_probe"):
    """Settings of linear probes on frozen backbones, trained on a set.

    Attributes:
        backbones: Networks with weights, each with a probe of its own: timm names, `local-dir:FOLDER` or
            `hf-hub:OWNER/NAME`. In `distill.py` their scores take the place of those of students.
        input_sizes: Height and width that images are resized to for each of them; by default what it states.
        views: Augmented views of each image that a probe learns from. LGM takes a fresh one in each of 1,000 passes.
        max_views: Of all images, at most, but one of each at least.
        augment: How they are augmented: `flip-resize`, as in LGM (arXiv 2511.16674), or another one.
        ridge: Weight of the L2 penalty, which is that of `probe`: its features are centred, and of overall std 1.
    """

    backbones: list[str] = field(default_factory=list)
    input_sizes: list[int] = field(default_factory=list)
    views: Repeats = 50
    max_views: Count = 5000
    augment: Annotated[str, one_of(AUGMENTATIONS)] = "flip-resize"
    ridge: Positive = 1e-3

    def conflicts(self) -> Iterator[Check]:
        """Yields what names and sizes must be."""
        names, sizes = [short_name(each) for each in self.backbones], self.input_sizes
        yield len({*names}) == len(names), f"{self.option('backbones')} must differ in their last parts, got {names}"
        fits = not sizes or len(sizes) == len(names) and min(sizes) > 0
        yield fits, f"{self.option('input_sizes')} must be one above 0 for each of {len(names)} backbones, got {sizes}"

    def num_views(self, size: int) -> int:
        """Returns the views of each image of a set of `size`."""
        return max(1, min(self.views, self.max_views // size))


def short_name(backbone: str) -> str:
    """Returns the last part of a name."""
    return PurePath(backbone.partition(":")[2] or backbone).name


class BackboneProbe(OfSetsWithLabels[BackboneProbeSettings]):
    """Accuracy on held-out images of a logistic regression on a frozen backbone's features of a set's images.

    The student counts for nothing, and the seed draws the views.

    Args:
        settings: The recipe.
        number: Which of its backbones.
    """

    def __init__(self, settings: BackboneProbeSettings, number: int = 0) -> None:
        super().__init__(settings)
        name, sizes = settings.backbones[number], settings.input_sizes
        self.name = f"{NAME} {short_name(name)}"
        self._network = build_teacher(name, input_size=sizes[number] if sizes else None)
        self._identity = self._network.identity()
        self._heldout: WeakKeyDictionary[ImageBank, Tensor] = WeakKeyDictionary()
        self._reading = threading.Lock()

    @classmethod
    def of_each(cls, settings: BackboneProbeSettings) -> "list[BackboneProbe]":
        """Returns the probes of all backbones."""
        return [cls(settings, number) for number in range(len(settings.backbones))]

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns the settings that count, and the identity of the backbone."""
        facts = {**asdict(self.settings), "backbone": self._identity}
        return {name: fact for name, fact in facts.items() if name not in ("backbones", "input_sizes")}

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Fits the regression and measures its accuracy."""
        features, classes = self._learned(pretrained.pairs, pretrained.seed)
        count = count_classes(pretrained.pairs, classes, data)
        probe = ProbeSettings(ridges=[self.settings.ridge])
        (weight, bias), _ = fit_probe(features.to(data.device), classes, count, probe)
        truth = data.labels(data.heldout)[data.known(data.heldout)].to(data.device)
        hits = torch.addmm(bias, self._tested(data), weight.T).argmax(1) == truth
        return [measure_accuracy(hits, truth, data.num_classes)]

    def _learned(self, pairs: Pairs | None, seed: int) -> tuple[Tensor, Tensor]:
        """Returns the features `(n, F)` of views of a set, on the CPU, and their classes."""
        labels = None if pairs is None else labels_of(pairs)
        if pairs is None or labels is None:
            raise ValueError("a probe learns from a set with labels, and this one has none: check applies first")
        space, views = space_of(pairs), self.settings.num_views(len(pairs))
        found = []
        for view in range(views):
            for place, rows in enumerate(torch.split(torch.arange(len(pairs)), CHUNK)):
                images = pairs.batch(rows)[0]
                drawn = generator(seed, "views of a backbone probe", view, place)
                seen = space.denormalise(AUGMENTATIONS[self.settings.augment](images, drawn, False))
                network = self._network.to(images.device)
                found += [network(part).float().cpu() for part in in_parts(seen, network.input_size)]
        return require_finite(torch.cat(found), f"features of {self.name} are not finite"), labels.repeat(views)

    def _tested(self, data: RealData) -> Tensor:
        """Returns the features `(n, F)` of held-out images of known class, computed once."""
        with self._reading:
            if data.heldout not in self._heldout:
                network, space = self._network.to(data.device), data.pixel_space
                known = data.known(data.heldout)
                read = data.apply(
                    lambda images: network(space.denormalise(images)), data.heldout, known, network.input_size
                )
                self._heldout[data.heldout] = read.to(data.device)
            return self._heldout[data.heldout]
