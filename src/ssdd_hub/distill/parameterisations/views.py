"""Views: a wrapper that adds fixed crops and flips, or rotations, of each image, with targets of their own.

Source: Yu et al., "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined Augmentation, and
Approximation", ICLR 2025, arXiv 2507.21455: augmentations are predefined, so that the target of each can be known, and
a small network for each predicts what it adds to the target of an image, or to its coefficients in the bases of
targets. No code was released. Quarter turns, the teacher's targets as the first ones of views, and networks that are
fitted once the set is distilled are what others report of it.

That is `kind: rotations`, `first: teacher`, `shift: fitted`. By default views are those of students, shifts by at most
4 pixels and flips, other ones for each image, and one network sees the shift and the flip too. `shift: predicted`
trains the networks with the set, so that what is distilled is what is stored. Methods take views for further images,
in the regression too; whether that of the paper sees them is not known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from ssdd_hub.bounds import Count, Weight, at_least, at_most, one_of
from ssdd_hub.data.augment import PADDING, show_views
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import GIVEN, LearningRates, Parameterisation, Real
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
_SHIFTS = ("stored", "predicted", "fitted")
MOST_TURNS = 3
"""Quarter turns of an image that differ from it."""


@dataclass(frozen=True)
class ViewsSettings(LearningRates):
    """Settings of `views`.

    Attributes:
        of: The parameterisation of the images and their targets.
        of_args: Its settings.
        views: Views `K` of each image, beside the image itself.
        kind: `crops`: drawn crops and flips, other ones for each image. `rotations`: by 90, 180 and 270 degrees
            anticlockwise, the first `views` of these, of all images, which must be square.
        first: First targets of views: `image`, that of their image, or `teacher`, that and what the view of the first
            image changes for the teacher.
        shift: Targets of views: `stored`, each of them; `predicted`: a network says what to add to that of the image;
            `fitted`: each is learned, and when the set is stored, networks are fitted to what to add.
        hidden: Hidden units of the network, of each of rotations.
        lr_shift: First learning rate of its weights; Adam's, constant, where they are fitted.
        fit_steps: Steps of Adam by which networks are fitted, each on all views.
        seed: Of crops and first weights, which are drawn from it again; views take no bytes.
        black: A black pixel in the space of the images, a value for each channel; the recipe's. None for 0.
        real: The recipe's.
    """

    arguments_of: ClassVar[dict[str, str]] = {"of_args": "of"}

    of: str = "pixels"
    of_args: dict[str, Any] = field(default_factory=dict)
    views: Annotated[int, at_least(1), at_most(MOST_VIEWS)] = 3
    kind: Annotated[str, one_of(("crops", "rotations"))] = "crops"
    first: Annotated[str, one_of(("image", "teacher"))] = "image"
    shift: Annotated[str, one_of(_SHIFTS)] = "stored"
    hidden: Annotated[int, at_least(1), at_most(4096)] = 8
    lr_shift: Weight = 1e-3
    fit_steps: Count = 500
    seed: Annotated[int, at_least(0), at_most(2**32 - 1)] = 0
    black: list[float] | None = field(default=None, metadata=GIVEN)
    real: Real | None = field(default=None, metadata=GIVEN)

    def conflicts(self) -> Iterable[Check]:
        """Returns the checks of what is viewed, and of its settings."""
        fits = self.kind == "crops" or self.views <= MOST_TURNS
        yield fits, f"{self.option('views')} must be at most {MOST_TURNS} rotations, got {self.views}"
        try:
            self.inner()
        except InputError as error:
            yield False, str(error)

    def inner(self) -> tuple[type[Parameterisation], Any]:
        """Returns the class that is viewed, and its settings."""
        shared = {"lr_images": self.lr_images, "lr_targets": self.lr_targets, "real": self.real}
        return PLAIN.find(self.of), PLAIN.settings(self.of, self.of_args, shared)


class Views(Parameterisation):
    """The pairs of another parameterisation, and `K` views of each with targets of their own.

    These are the parameter `view_targets`, `(M, K, W)`, or `shift_hidden`, `(hidden, W + 4)`, and `shift_output`,
    `(W, hidden + 1)`, predict them; of rotations `(K hidden, W + 1)` and `(K W, hidden + 1)`. `W` is the width of
    targets as they are stored, `D` unless they have bases.

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
        crops = fixed_views_of(settings, self.size)
        self.register_buffer("crops", crops.to(next(iter(parameters.values())).device), persistent=False)

    @classmethod
    def start(cls, pairs: Pairs, settings: ViewsSettings) -> Self:
        """Starts each view with a target as `first` says, or with networks that are fitted to these."""
        _check(settings, pairs.images.shape[1:])
        kind, inner = settings.inner()
        of, targets = kind.start(pairs, inner), pairs.targets
        views = fixed_views_of(settings, len(targets)).to(targets.device)
        first = of.encoded(_first_targets(pairs, views, settings))
        if settings.shift != "predicted":
            return cls(settings, of, view_targets=first)
        codes = of.encoded(targets)
        weights = draw_network(settings, codes)
        if settings.first == "teacher":
            weights = fit_network(codes, first, views, weights, settings.fit_steps, settings.lr_shift)
        return cls(settings, of, **dict(zip(SHIFT, weights, strict=True)))

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns images and views, each with its target."""
        device = self.crops.device
        # Steps draw their rows on the CPU.
        rows = torch.arange(len(self), device=device) if rows is None else rows.to(device)
        image, view = rows % self.size, rows // self.size
        # Each image is rendered once where all are wanted.
        whole = len(rows) >= len(self)
        images, codes = (part[image] for part in self.of.coded()) if whole else self.of.coded(image)
        stored, is_view = (view - 1).clamp_min(0), view > 0
        seen = _shown(images, self.crops[image, stored], self.settings)
        codes = torch.where(is_view[:, None], self._codes(image, stored, codes), codes)
        return Pairs(torch.where(is_view[:, None, None, None], seen, images), self.of.decoded(codes))

    def __len__(self) -> int:
        """Returns `M (1 + K)`."""
        return self.size * (1 + self.settings.views)

    def as_set(self) -> dict[str, Tensor]:
        """Returns the images with their targets, and the views with theirs."""
        made, count = self.of.as_set(), self.settings.views
        image, view = (torch.arange(many, device=self.crops.device) for many in (self.size, count))
        image = image[:, None]
        found = self._codes(image, view, self.of.coded().targets[:, None].expand(-1, count, -1))
        return {**made, "views": self.crops, "view_targets": self.of.decoded(found).detach()}

    def groups(self) -> list[dict[str, Any]]:
        """Returns what is learned of the images, and what is of the targets of the views."""
        rate = self.settings.lr_shift if self.settings.shift == "predicted" else self.settings.lr_targets
        return [*self.of.groups(), {"params": list(self.parameters(recurse=False)), "lr": rate}]

    def penalty(self, rows: Tensor | None = None, moves_targets: bool = True) -> Tensor | None:
        """Returns that of the images which the rows show."""
        return self.of.penalty(None if rows is None else torch.unique(rows % self.size), moves_targets)

    def grow(self, step: int) -> bool:
        """Adds parameters of the images."""
        return self.of.grow(step)

    def stored(self) -> Parameterisation:
        """Returns itself, or with networks that are fitted to the targets of the views."""
        if self.settings.shift != "fitted":
            return self
        settings, codes = self.settings, self.of.coded().targets.detach()
        weights = draw_network(settings, codes)
        aim = self.view_targets.detach()
        weights = fit_network(codes, aim, self.crops, weights, settings.fit_steps, settings.lr_shift)
        return type(self)(replace(settings, shift="predicted"), self.of, **dict(zip(SHIFT, weights, strict=True)))

    def columns(self) -> dict[str, Tensor]:
        """Returns the columns of the images, and the targets of the views where they are stored."""
        return {**self.of.columns(), **(self._own() if self.settings.shift == "stored" else {})}

    def shared(self) -> dict[str, Tensor]:
        """Returns what the images share, and the network where there is one."""
        return {**self.of.shared(), **(self._own() if self.settings.shift == "predicted" else {})}

    def decoding(self) -> dict[str, Any]:
        """Returns what the images need, and of what the views are drawn; what is black, the pixel space says."""
        names = ("of", "views", "shift", "hidden", "seed", *(("kind",) if self.settings.kind != "crops" else ()))
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
        shown, count = inner.shown_shapes(shapes, args["of_args"]), settings.views
        _check(settings, shown["images"])
        return {**shown, "views": (count, 3), "view_targets": (count, *shown["targets"])}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restores what `state_dict` returned, first of the images, which may have grown."""
        inner = {name.removeprefix("of."): value for name, value in state.items() if name.startswith("of.")}
        self.of.load_state_dict(inner)
        return super().load_state_dict(state, strict, assign)

    def _own(self) -> dict[str, Tensor]:
        return {name: part.detach() for name, part in self.named_parameters(recurse=False)}

    def _codes(self, image: Tensor, view: Tensor, codes: Tensor) -> Tensor:
        """Returns the stored targets of some views `(..., W)`, rounded as they are, given those of their images."""
        if self.settings.shift != "predicted":
            levels = self.levels().get("view_targets")
            return round_to_steps(self.view_targets, levels.scale[0] if levels else 0.0)[image, view]
        return predict(codes, self.crops[image, view], self.shift_hidden, self.shift_output)


def predict(targets: Tensor, views: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    """Returns the targets of views `(..., W)`: those of their images `(..., W)`, and what a network adds to them.

    It has one hidden layer of ReLU units, and the last column of each matrix of weights is the bias. It sees the
    target and the view `(..., 3)`, scaled to be from -1 to 1. Of rotations each has a network of its own, which sees
    the target alone; their weights lie one below the other.
    """
    width = targets.shape[-1]
    if hidden.shape[1] == width + 1:
        shifts = enumerate(zip(hidden.chunk(count := len(output) // width), output.chunk(count), strict=True), 1)
        turns = views[..., 2:] // 2
        return targets + sum((turns == number) * _network(targets, *weights) for number, weights in shifts)
    middle = torch.tensor([PADDING, PADDING, 0.5]).to(targets)
    inputs = torch.cat([targets, (views - middle) / middle], -1)
    return targets + _network(inputs, hidden, output)


def _network(inputs: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    return (inputs @ hidden[:, :-1].T + hidden[:, -1]).relu() @ output[:, :-1].T + output[:, -1]


def draw_network(settings: ViewsSettings, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first weights of networks for targets `(M, W)`, on their device, which add nothing."""
    width = targets.shape[1]
    (rows, inputs), last = _shapes_of(replace(settings, shift="predicted"), 0, width).values()
    drawn = torch.randn(rows, inputs - 1, generator=generator(settings.seed, "shift of targets"))
    return functional.pad(drawn / (inputs - 1) ** 0.5, (0, 1)).to(targets), targets.new_zeros(last)


def fit_network(
    targets: Tensor, aim: Tensor, views: Tensor, weights: tuple[Tensor, Tensor], steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    """Returns weights that make of targets `(M, W)` nearly those of their views, `aim (M, K, W)`.

    Adam takes `steps` steps along the mean square of all differences, on the CPU in float64, so that machines differ
    in the last bits of the type alone.
    """
    leaves = [part.detach().to("cpu", torch.float64, copy=True).requires_grad_() for part in weights]
    given, wanted, seen = targets.cpu().double()[:, None].expand(aim.shape), aim.cpu().double(), views.cpu()
    optimizer = torch.optim.Adam(leaves, rate)
    for _ in range(steps):
        loss = (predict(given, seen, *leaves) - wanted).square().mean()
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = gradient
        optimizer.step()
    hidden, output = (leaf.detach().to(targets) for leaf in leaves)
    return hidden, output


def fixed_views_of(settings: ViewsSettings, count: int) -> Tensor:
    """Returns the views `(count, K, 3)`, int64, of so many images; see `augment.show_views`."""
    if settings.kind == "crops":
        return draw_fixed(count, settings.views, settings.seed)
    turns = torch.tensor([[PADDING, PADDING, 2 * turn] for turn in range(1, settings.views + 1)])
    return turns.repeat(count, 1, 1)


def kind_of_views(views: Tensor) -> str:
    """Returns of which kind the views `(M, K, 3)` of a set are: `rotations` where they are the first of these."""
    size, count, _ = views.shape
    turned = count <= MOST_TURNS and fixed_views_of(ViewsSettings(kind="rotations", views=count), size).equal(views)
    return "rotations" if turned else "crops"


def _first_targets(pairs: Pairs, views: Tensor, settings: ViewsSettings) -> Tensor:
    """Returns the first targets `(M, K, D)` of views."""
    if settings.first == "image":
        return pairs.targets[:, None].expand(-1, views.shape[1], -1)
    if settings.real is None or settings.real.teach is None:
        raise InputError("there is no teacher of the first targets of views: take first image")
    before = settings.real.teach(pairs.images)
    seen = [settings.real.teach(_shown(pairs.images, each, settings)) for each in views.unbind(1)]
    return torch.stack([pairs.targets + (part - before) for part in seen], 1)


def _shown(images: Tensor, views: Tensor, settings: ViewsSettings) -> Tensor:
    black = images.new_tensor(settings.black or [0.0])[:, None, None]
    return show_views(images, views, black, settings.kind == "rotations")


def _check(settings: ViewsSettings, shape: tuple[int, ...]) -> None:
    fits = settings.kind == "crops" or shape[1] == shape[2]
    require((fits, f"views that are rotations are of square images, and these have {shape[1]} x {shape[2]} pixels"))


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
    if settings.shift != "predicted":
        return {"view_targets": (size, settings.views, width)}
    networks, more = (1, 4) if settings.kind == "crops" else (settings.views, 1)
    hidden = (networks * settings.hidden, width + more)
    return {"shift_hidden": hidden, "shift_output": (networks * width, settings.hidden + 1)}


def _of_record(args: Mapping[str, Any]) -> tuple[ViewsSettings, type[Parameterisation]]:
    """Returns settings and what is viewed: one of this package, as a record may be untrusted."""
    given, names = args["of"], [*PLAIN.known]
    require((given in names, f"of must be one of {', '.join(names)}; got {show(given)}"))
    return ViewsSettings(**{name: value for name, value in args.items() if name != "of_args"}), PLAIN.known[given]
