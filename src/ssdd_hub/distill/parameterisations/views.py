"""Views: a wrapper that adds fixed crops and flips of each image, with targets of their own.

Source: Yu et al., "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025, arXiv 2507.21455: augmentations are predefined, so that the target of each can be known.
There a network for each predicts what it adds to the target of an image. Here they are those of students, shifts by
at most 4 pixels and flips, other ones for each image, and one network, which sees the shift and the flip too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from ssdd_hub.bounds import Weight, at_least, at_most, one_of
from ssdd_hub.data.augment import PADDING, crop_flip
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import LearningRates, Parameterisation
from ssdd_hub.distill.parameterisations.levels import Levels, round_to_steps
from ssdd_hub.distill.parameterisations.plain import PLAIN
from ssdd_hub.errors import Check, InputError, require
from ssdd_hub.seeds import generator
from ssdd_hub.text import show

_OFFSETS = 2 * PADDING + 1
MOST_VIEWS = 2 * _OFFSETS**2 - 1
"""Crops and flips of an image that differ from it."""
_AS_IT_IS = PADDING * 2 * (_OFFSETS + 1)  # the number of the image itself among all of them
_ROWS = 4096  # images whose views are drawn at a time
SHIFT = ("shift_hidden", "shift_output")
"""The weights of the network that predicts targets of views."""
_SHIFTS = ("stored", "predicted")


@dataclass(frozen=True)
class ViewsSettings(LearningRates):
    """Settings of `views`.

    Attributes:
        of: The parameterisation of the images and their targets.
        of_args: Its settings.
        views: Views `K` of each image, beside the image itself.
        shift: Targets of views: `stored`, each of them; `predicted`: a network says what to add to that of the image.
        hidden: Hidden units of the network.
        lr_shift: First learning rate of its weights.
        seed: Of the views, which are drawn from it again and take no bytes.
        black: A black pixel in the space of the images, a value for each channel; the recipe's. None for 0.
    """

    arguments_of: ClassVar[dict[str, str]] = {"of_args": "of"}

    of: str = "pixels"
    of_args: dict[str, Any] = field(default_factory=dict)
    views: Annotated[int, at_least(1), at_most(MOST_VIEWS)] = 3
    shift: Annotated[str, one_of(_SHIFTS)] = "stored"
    hidden: Annotated[int, at_least(1), at_most(4096)] = 8
    lr_shift: Weight = 1e-3
    seed: Annotated[int, at_least(0), at_most(2**32 - 1)] = 0
    black: list[float] | None = None

    def conflicts(self) -> Iterable[Check]:
        """Returns the checks of what is viewed, and of its settings."""
        try:
            self.inner()
        except InputError as error:
            yield False, str(error)

    def inner(self) -> tuple[type[Parameterisation], Any]:
        """Returns the class that is viewed, and its settings."""
        shared = {"lr_images": self.lr_images, "lr_targets": self.lr_targets}
        return PLAIN.find(self.of), PLAIN.settings(self.of, self.of_args, shared)


class Views(Parameterisation):
    """The pairs of another parameterisation, and `K` views of each with targets of their own.

    These are the parameter `view_targets`, `(M, K, D)`, or `shift_hidden`, `(hidden, D + 4)`, and `shift_output`,
    `(D, hidden + 1)`, predict them.

    A method sees `M (1 + K)` pairs: all images, then the first view of each, and so on. A set has `M` images, and
    their views beside them.
    """

    name = "views"
    citation = "Yu et al., ICLR 2025, arXiv 2507.21455"
    Settings = ViewsSettings
    stores = (*Parameterisation.stores, "view_targets")
    settings: ViewsSettings
    crops: Tensor
    view_targets: Tensor
    shift_hidden: Tensor
    shift_output: Tensor

    def __init__(self, settings: ViewsSettings, of: Parameterisation, **parameters: Tensor) -> None:
        super().__init__(settings, **parameters)
        self.of, self.size = of, len(of)
        crops = draw_fixed(self.size, settings.views, settings.seed)
        self.register_buffer("crops", crops.to(next(iter(parameters.values())).device), persistent=False)

    @classmethod
    def start(cls, pairs: Pairs, settings: ViewsSettings) -> Self:
        """Starts each view with the target of its image."""
        kind, inner = settings.inner()
        of, targets, width = kind.start(pairs, inner), pairs.targets, pairs.targets.shape[1]
        if settings.shift == "stored":
            return cls(settings, of, view_targets=targets[:, None].expand(-1, settings.views, -1))
        drawn = torch.randn(settings.hidden, width + 3, generator=generator(settings.seed, "shift of targets"))
        first = functional.pad(drawn / (width + 3) ** 0.5, (0, 1)).to(targets)
        return cls(settings, of, shift_hidden=first, shift_output=targets.new_zeros(width, settings.hidden + 1))

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns images and views, each with its target."""
        rows = rows if rows is not None else torch.arange(len(self), device=self.crops.device)
        image, view = rows % self.size, rows // self.size
        # Each image is rendered once where all are wanted.
        whole = len(rows) >= len(self)
        images, targets = (part[image] for part in self.of()) if whole else self.of(image)
        stored, is_view = (view - 1).clamp_min(0), view > 0
        black = self._black(images)
        seen = crop_flip(images - black, self.crops[image, stored]) + black
        return Pairs(
            torch.where(is_view[:, None, None, None], seen, images),
            torch.where(is_view[:, None], self._targets(image, stored, targets), targets),
        )

    def __len__(self) -> int:
        """Returns `M (1 + K)`."""
        return self.size * (1 + self.settings.views)

    def as_set(self) -> dict[str, Tensor]:
        """Returns the images with their targets, and the views with theirs."""
        made, count = self.of.as_set(), self.settings.views
        image, view = torch.arange(self.size)[:, None], torch.arange(count)
        found = self._targets(image, view, made["targets"][:, None].expand(-1, count, -1))
        return {**made, "views": self.crops, "view_targets": found.detach()}

    def groups(self) -> list[dict[str, Any]]:
        """Returns what is learned of the images, and what is of the targets of the views."""
        rate = self.settings.lr_targets if self.settings.shift == "stored" else self.settings.lr_shift
        return [*self.of.groups(), {"params": list(self.parameters(recurse=False)), "lr": rate}]

    def grow(self, step: int) -> bool:
        """Adds parameters of the images."""
        return self.of.grow(step)

    def columns(self) -> dict[str, Tensor]:
        """Returns the columns of the images, and the targets of the views where they are stored."""
        return {**self.of.columns(), **(self._own() if self.settings.shift == "stored" else {})}

    def shared(self) -> dict[str, Tensor]:
        """Returns what the images share, and the network where there is one."""
        return {**self.of.shared(), **(self._own() if self.settings.shift == "predicted" else {})}

    def decoding(self) -> dict[str, Any]:
        """Returns what the images need, and of what the views are drawn; what is black, the pixel space says."""
        names = ("of", "views", "shift", "hidden", "seed")
        return {**{name: getattr(self.settings, name) for name in names}, "of_args": self.of.decoding()}

    def levels(self) -> dict[str, Levels]:
        """Returns the levels of the images, and for the targets of views those of targets."""
        found = self.of.levels()
        stored = self.settings.shift == "stored" and "targets" in found
        return {**found, **({"view_targets": found["targets"]} if stored else {})}

    @classmethod
    def shared_of(cls, args: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the names of what the images share, and of the weights of the network where there is one."""
        settings, inner = _of_record(args)
        return (*inner.shared_of(args["of_args"]), *(SHIFT if settings.shift == "predicted" else ()))

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor], args: Mapping[str, Any]) -> Self:
        """Returns the parameterisation that `columns` and `decoding` described, but for what is black."""
        settings, inner = _of_record(args)
        shapes = _shapes_of(settings, *columns["targets"].shape)
        own = {name: columns[name] for name in shapes}
        for name, tensor in own.items():
            if tensor.shape != shapes[name]:
                raise ValueError(f"{name} must be {shapes[name]}, got {tuple(tensor.shape)}")
        others = {name: tensor for name, tensor in columns.items() if name not in own}
        if "view_targets" in others:
            raise ValueError("view_targets are predicted, and must not be stored")
        return cls(settings, inner.from_columns(others, args["of_args"]), **own)

    @classmethod
    def shown_shapes(
        cls, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of images, targets and views."""
        settings, inner = _of_record(args)
        count, (width,) = settings.views, shapes["targets"]
        return {**inner.shown_shapes(shapes, args["of_args"]), "views": (count, 3), "view_targets": (count, width)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restores what `state_dict` returned, first of the images, which may have grown."""
        inner = {name.removeprefix("of."): value for name, value in state.items() if name.startswith("of.")}
        self.of.load_state_dict(inner)
        return super().load_state_dict(state, strict, assign)

    def _own(self) -> dict[str, Tensor]:
        return {name: part.detach() for name, part in self.named_parameters(recurse=False)}

    def _targets(self, image: Tensor, view: Tensor, targets: Tensor) -> Tensor:
        """Returns the targets of some views `(..., D)`, rounded as they are stored, given those of their images."""
        if self.settings.shift == "stored":
            levels = self.of.levels().get("targets")
            return round_to_steps(self.view_targets, levels.scale[0] if levels else 0.0)[image, view]
        return predict(targets, self.crops[image, view], self.shift_hidden, self.shift_output)

    def _black(self, images: Tensor) -> Tensor:
        return images.new_tensor(self.settings.black or [0.0])[:, None, None]


def predict(targets: Tensor, views: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    """Returns the targets of views `(..., D)`: those of their images `(..., D)`, and what a network adds to them.

    It has one hidden layer of ReLU units, and the last column of each matrix of weights is the bias. It sees the
    target and the view `(..., 3)`, scaled to be from -1 to 1.
    """
    middle = torch.tensor([PADDING, PADDING, 0.5]).to(targets)
    inputs = torch.cat([targets, (views - middle) / middle], -1)
    units = (inputs @ hidden[:, :-1].T + hidden[:, -1]).relu()
    return targets + units @ output[:, :-1].T + output[:, -1]


def draw_fixed(count: int, views: int, seed: int) -> Tensor:
    """Draws views `(count, views, 3)`, int64, like `augment.draw_views`; those of an image differ, also from it.

    NumPy keeps the numbers of `RandomState` for good, so a seed stands for its views wherever they are drawn again. Of
    more images, the first have the same views.
    """
    source, drawn = np.random.RandomState(seed), list[Tensor]()
    for start in range(0, count, _ROWS):
        keys = source.random_sample((min(_ROWS, count - start), MOST_VIEWS))
        drawn.append(torch.from_numpy(keys.argsort(1, kind="stable")[:, :views].copy()))
    numbers = torch.cat(drawn)
    numbers += numbers >= _AS_IT_IS
    return torch.stack([numbers // (2 * _OFFSETS), numbers // 2 % _OFFSETS, numbers % 2], 2)


def _shapes_of(settings: ViewsSettings, size: int, width: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what is learned of the targets of views, for targets `(size, width)`."""
    if settings.shift == "stored":
        return {"view_targets": (size, settings.views, width)}
    return {"shift_hidden": (settings.hidden, width + 4), "shift_output": (width, settings.hidden + 1)}


def _of_record(args: Mapping[str, Any]) -> tuple[ViewsSettings, type[Parameterisation]]:
    """Returns settings and what is viewed: one of this package, as a record may be untrusted."""
    given, names = args["of"], [*PLAIN.known]
    require((given in names, f"of must be one of {', '.join(names)}; got {show(given)}"))
    return ViewsSettings(**{name: value for name, value in args.items() if name != "of_args"}), PLAIN.known[given]
