"""What a parameterisation is: what is learned and stored, and how it becomes images and targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ssdd_hub.arguments import find_problems
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import InputError, require


@dataclass(frozen=True)
class ParameterisationSettings:
    """What is learned and stored.

    Attributes:
        name: One of `ssdd_hub.list_parameterisations()`.
        args: Settings of the parameterisation.
    """

    name: str = "pixels"
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(*((False, f"parameterisation.args: {problem}") for problem in find_problems(self.args)))


@dataclass(frozen=True)
class LearningRates:
    """First learning rates; the settings of a parameterisation extend them.

    Attributes:
        lr_images: Of what becomes images.
        lr_targets: Of the targets.
    """

    lr_images: float = 1e-4
    lr_targets: float = 1e-4

    def __post_init__(self) -> None:
        rates = {name: getattr(self, name) for name in ("lr_images", "lr_targets")}
        require(*((rate >= 0, f"{name} must be at least 0, got {rate}") for name, rate in rates.items()))


class Parameterisation(nn.Module):
    """What is learned and stored, and how it becomes a set. One file, one subclass, one entry in `registry.py`.

    Its parameters are what is learned; the one called `targets`, where there is one, learns by `lr_targets`, all
    others by `lr_images`. A subclass that only stores other tensors than pixels overrides `start` and `forward`.

    Args:
        settings: Of the type `Settings`.
        **parameters: First values; they are copied.

    Attributes:
        name: By which recipes know it.
        citation: The paper.
        Settings: A frozen dataclass. Fields called `lr_images` and `lr_targets` get the recipe's.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    Settings: ClassVar[type] = LearningRates

    def __init__(self, settings: Any, **parameters: Tensor) -> None:
        super().__init__()
        self.settings = settings
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    @classmethod
    def start(cls, pairs: Pairs, settings: Any) -> Self:
        """Returns the parameters that give some pairs, or come near to them.

        Args:
            pairs: Real images or noise with their targets, on the device and in the type of what is learned.
            settings: Of the type `Settings`.
        """
        return cls(settings, images=pairs.images, targets=pairs.targets)

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns the set, differentiable in the parameters.

        Args:
            rows: Indices `(n,)` of the pairs to render; None for all.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(rows)")

    def __len__(self) -> int:
        """Returns the number of pairs that it renders."""
        with torch.no_grad():
            return len(self().images)

    def groups(self) -> list[dict[str, Any]]:
        """Returns parameters with their first learning rates, as optimisers take them."""
        named = dict(self.named_parameters())
        targets = [named.pop("targets")] if "targets" in named else []
        groups = [(list(named.values()), self.settings.lr_images), (targets, self.settings.lr_targets)]
        return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]

    def grow(self, step: int) -> bool:
        """Adds parameters before a step where it is time for it: True, and the optimiser is built anew."""
        return False

    def num_bytes(self) -> dict[str, int]:
        """Returns the bytes of `images`, `targets` and `decoder` as stored, so that budgets compare."""
        sizes = {name: parameter.numel() * parameter.itemsize for name, parameter in self.named_parameters()}
        targets = sizes.pop("targets", 0)
        return {"images": sum(sizes.values()), "targets": targets, "decoder": 0}

    def columns(self) -> dict[str, Tensor]:
        """Returns what is stored of it, by name; `from_columns` reads it."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor], settings: Any) -> Self:
        """Returns the parameterisation that `columns` described."""
        return cls(settings, **columns)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes over what `state_dict` returned.

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
