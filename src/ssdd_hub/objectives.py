"""Self-supervised objectives: lightly's losses, heads and views behind one small interface.

An objective is a module that owns the backbone, its heads and whatever else its loss needs, so that one state dict
holds all of it. Adding one is a class here, an entry in `OBJECTIVES` and a case in `tests/test_objectives.py`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from lightly.transforms import BYOLTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from PIL import Image
from torch import Tensor, nn

from ssdd_hub.backbones import pre_logits
from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace

Views = Callable[[Image.Image], list[Tensor]]


class Objective(Protocol):
    """What an objective offers besides being an `nn.Module`.

    Attributes:
        citation: The paper.
        backbone: The network that becomes the teacher.
    """

    citation: str
    backbone: nn.Module

    def __call__(self, views: list[Tensor]) -> Tensor:
        """Returns the loss, a scalar, of a batch: one tensor `(B, C, H, W)` per view."""

    def build_views(self, image_size: int, pixel_space: PixelSpace, **view_args: Any) -> Views:
        """Returns the transform of one PIL image to its views, each `(C, H, W)` in `pixel_space`."""

    def describe(self) -> dict[str, Any]:
        """Returns name, citation and settings, for provenance and cards."""


class BarlowTwins(nn.Module):
    """Barlow Twins: the cross-correlation of two views' projections is driven to the identity.

    Loss and head are lightly's; lightly has no Barlow Twins transform, and its benchmarks use BYOL's.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        lambda_param: Weight of the redundancy term.
    """

    citation = (
        "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021, arXiv 2103.03230"
    )

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: int = 2048,
        output_dim: int = 2048,
        lambda_param: float = 5e-3,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = BarlowTwinsProjectionHead(feature_dim, hidden_dim, output_dim)
        self.loss = BarlowTwinsLoss(lambda_param)
        self.settings = {"hidden_dim": hidden_dim, "output_dim": output_dim, "lambda_param": lambda_param}

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`; `B` must be at least 2."""
        first, second = (self.head(pre_logits(self.backbone, view)) for view in views)
        loss: Tensor = self.loss(first, second)
        return loss

    def build_views(self, image_size: int, pixel_space: PixelSpace, **view_args: Any) -> Views:
        """Returns lightly's BYOL transform; blur is off unless asked for, as lightly advises for small images.

        Args:
            image_size: Height and width of the views.
            pixel_space: The space that the backbone is trained in.
            **view_args: Arguments of lightly's `BYOLView1Transform`, such as `min_scale` or `hf_prob`.

        Raises:
            InputError: lightly does not know an argument.
        """
        normalize = {"mean": list(pixel_space.mean), "std": list(pixel_space.std)}
        arguments = {"gaussian_blur": 0.0, **view_args, "input_size": image_size, "normalize": normalize}
        try:
            transform = BYOLTransform(BYOLView1Transform(**arguments), BYOLView2Transform(**arguments))
        except TypeError as error:
            raise InputError(
                f"pretrain.view_args {view_args} do not fit lightly's BYOLView1Transform: {error}"
            ) from error
        views: Views = transform
        return views

    def describe(self) -> dict[str, Any]:
        """Returns name, citation and settings."""
        return {"name": "barlow_twins", "citation": self.citation, **self.settings}


OBJECTIVES: dict[str, Any] = {"barlow_twins": BarlowTwins}


def list_objectives() -> list[str]:
    """Returns the names that `build_objective` knows."""
    return sorted(OBJECTIVES)


def build_objective(name: str, backbone: nn.Module, *, in_chans: int = 3, image_size: int = 32, **args: Any) -> Any:
    """Wraps a backbone in a self-supervised objective.

    Args:
        name: One of `list_objectives()`.
        backbone: A module with timm's `forward_features` and `forward_head`.
        in_chans: Channels of the images, for measuring the width of the features.
        image_size: Height and width of the images, for the same.
        **args: Settings of the objective.

    Returns:
        An `nn.Module` that is an `Objective`.

    Raises:
        InputError: The name or a setting is unknown.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r} is unknown: use one of {', '.join(list_objectives())}")
    try:
        return OBJECTIVES[name](backbone, measure_width(backbone, in_chans, image_size), **args)
    except TypeError as error:
        raise InputError(f"objective {name!r} does not take these settings {args}: {error}") from error


@torch.no_grad()
def measure_width(backbone: nn.Module, in_chans: int, image_size: int) -> int:
    """Returns the width of a backbone's pre-logits, by a dry forward pass in eval mode."""
    training = backbone.training
    images = next(backbone.parameters()).new_zeros(1, in_chans, image_size, image_size)
    width = pre_logits(backbone.eval(), images).shape[1]
    backbone.train(training)
    return width
