"""Interface of the parameterisations: what is learned and stored, and how it becomes images and targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ssdd_hub.bounds import Settings, Weight
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.levels import Levels
from ssdd_hub.errors import Check, InputError


class Real(NamedTuple):
    """Real pairs and the teacher, from which a parameterisation may start.

    Pairs are in the space, on the device and in the type of the first pairs.

    Attributes:
        draw: Returns at most so many real pairs, always the same.
        teach: Returns the teacher's targets `(n, D)` of images `(n, C, H, W)`; None where there is no teacher.
    """

    draw: Callable[[int], Pairs]
    teach: Callable[[Tensor], Tensor] | None = None


GIVEN = {"given": True}
"""The metadata of a setting that recipes give, and users cannot."""


@dataclass(frozen=True)
class LearningRates(Settings, section="parameterisation.args"):
    """First learning rates; the settings of a parameterisation extend them.

    Attributes:
        lr_images: Of the images.
        lr_targets: Of the targets.
    """

    lr_images: Weight = 1e-4
    lr_targets: Weight = 1e-4


class Parameterisation(nn.Module):
    """What is learned and stored, and how it becomes a set. One file, one subclass, one entry in `registry.py`.

    Its parameters are what is learned; the one called `targets`, where there is one, learns by `lr_targets`, all
    others by `lr_images`. A subclass that only stores other tensors than pixels overrides `start` and `forward`.

    Args:
        settings: Of the type `Settings`.
        **parameters: First values; they are copied.

    Attributes:
        name: Its name in recipes.
        citation: The paper.
        stores: Tensors of a stored set that `from_columns` may take; all others pass the decoder unchanged.
        Settings: A frozen dataclass. Fields called `lr_images` and `lr_targets` get the recipe's.
        shared_names: The parameters that are one for all pairs, and have no row for each.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    stores: ClassVar[tuple[str, ...]] = ("images", "coefficients", "targets")
    Settings: ClassVar[type] = LearningRates
    shared_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Any, **parameters: Tensor) -> None:
        super().__init__()
        self.settings = settings
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    @classmethod
    def start(cls, pairs: Pairs, settings: Any) -> Self:
        """Returns the parameters that render some pairs, exactly or nearly.

        Args:
            pairs: Real images or noise with their targets, on the device and in the type of what is learned.
            settings: Of the type `Settings`.
        """
        return cls(settings, images=pairs.images, targets=pairs.targets)

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns the pairs at indices `(n,)`, all for None; differentiable in the parameters."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(rows)")

    def coded(self, rows: Tensor | None = None) -> Pairs:
        """Returns the same with targets as they are stored, `(n, W)`; see `decoded`."""
        pairs: Pairs = self(rows)
        return pairs

    def decoded(self, codes: Tensor) -> Tensor:
        """Returns the targets `(..., D)` that stored ones `(..., W)` stand for."""
        return codes

    def encoded(self, targets: Tensor) -> Tensor:
        """Returns, at the start, stored targets `(..., W)` that nearly stand for some `(..., D)`."""
        return targets

    def __len__(self) -> int:
        """Returns the number of pairs that it renders."""
        with torch.no_grad():
            return len(self().images)

    def as_set(self) -> dict[str, Tensor]:
        """Returns the tensors of the set that it stands for, by name and without a graph."""
        pairs: Pairs = self().detached()
        return pairs._asdict()

    def groups(self) -> list[dict[str, Any]]:
        """Returns parameters with their first learning rates, as optimisers take them."""
        named = dict(self.named_parameters())
        targets = [named.pop("targets")] if "targets" in named else []
        groups = [(list(named.values()), self.settings.lr_images), (targets, self.settings.lr_targets)]
        return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]

    def penalty(self, rows: Tensor | None = None, moves_targets: bool = True) -> Tensor | None:
        """Returns what is added to the loss of the pairs at indices `(n,)`, all for None: a scalar; None for nothing.

        It is of the parameters alone, the same on all processes, and differentiable in those of the images, and of the
        targets where the method moves these.
        """
        return None

    def grow(self, step: int) -> bool:
        """Adds parameters before a step where it is time for it: True, and the optimiser is built anew."""
        return False

    def steps_check(self, steps: int) -> Check:
        """Returns whether so many outer steps, which are not 0, add all that `grow` is to add."""
        return True, ""

    def stored(self) -> "Parameterisation":
        """Returns the parameterisation that is stored: this one; of a wrapper what it wraps, of the same images."""
        return self

    def columns(self) -> dict[str, Tensor]:
        """Returns the stored tensors by name, a row for each pair; `from_columns` reads them."""
        return {name: part.detach() for name, part in self.named_parameters() if name not in self.shared_names}

    def shared(self) -> dict[str, Tensor]:
        """Returns the stored tensors that are one for all pairs, by name; `from_columns` reads them too."""
        return {name: part.detach() for name, part in self.named_parameters() if name in self.shared_names}

    def decoding(self) -> dict[str, Any]:
        """Returns what else `from_columns` needs, as JSON."""
        return {}

    def levels(self) -> dict[str, Levels]:
        """Returns the levels of those stored tensors that have them: of images by channel, 256 at most."""
        return {}

    @classmethod
    def shared_of(cls, args: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the names of `shared`, given what `decoding` returned."""
        return cls.shared_names

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor], args: Mapping[str, Any]) -> Self:
        """Returns the parameterisation that `columns` and `decoding` described, with other learning rates."""
        return cls(cls.Settings(**args), **columns)

    @classmethod
    def shown_shape(cls, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the shape `(C, H, W)` of an image.

        Args:
            shapes: Those of a row of each of `columns`, and of each of `shared`.
            args: What `decoding` returned.
        """
        return shapes["images"]

    @classmethod
    def shown_shapes(
        cls, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of a row of each tensor of `as_set`; see `shown_shape`."""
        return {"images": cls.shown_shape(shapes, args), "targets": shapes["targets"]}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restores what `state_dict` returned.

        Raises:
            InputError: The state belongs to a set of another size.
        """
        there, here = (
            {name: tuple(value.shape) for name, value in each.items()} for each in (state, self.state_dict())
        )
        if there != here:
            raise InputError(
                f"the checkpoint holds {_listed(there)}, this run {_listed(here)}: choose another --output or restore "
                "the settings"
            )
        return super().load_state_dict(state, strict, assign)


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return " and ".join(f"{name} {shape}" for name, shape in shapes.items())
