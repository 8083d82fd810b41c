"""The common base of our networks: blocks, features, one linear head, and timm's contract.

VGG11, AlexNet and MobileNetV2 are those of KRR-ST's comparison of architectures (Lee et al., ICLR 2024, figure 3
and table 4), layer by layer as in their released code; its fourth, ResNet-10, is `ssdd_resnet10` with
`stem_padding=2`. Weights start from PyTorch's defaults, as they do there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from timm.models import build_model_with_cfg, checkpoint_seq
from torch import Tensor, nn

from ssdd_hub.bounds import among
from ssdd_hub.errors import InputError
from ssdd_hub.models.features import measure_width, read_maps

NORMS = ("batch", "instance", "none")


class StudentNetwork(nn.Module):
    """Blocks of layers, features read from their last map, and one linear head.

    It keeps timm's contract (`forward_features`, `forward_head`, `num_features`, `reset_classifier`, ...). Its state
    dict is in layer order, the head last.

    Args:
        blocks: Maps `(n, C, H, W)` to `(n, width, h, w)`.
        num_features: Features `F` that are read from the map: all its values, unless a subclass pools.
        in_chans: Input channels.
        num_targets: Outputs `D` of the head; 0 leaves the head out.
    """

    def __init__(self, blocks: nn.Module, num_features: int, in_chans: int, num_targets: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.in_chans = in_chans
        self.num_classes = num_targets
        self.num_features = self.head_hidden_size = num_features
        self.head = _head(num_features, num_targets)
        self._checkpointing = False

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to the last feature map `(n, width, h, w)`."""
        maps: Tensor = checkpoint_seq(self.blocks, images) if self._checkpointing else self.blocks(images)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Lets the backward pass recompute the activations of each block, of which only the input is kept."""
        self._checkpointing = enable

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Reads features `(n, F)` from feature maps and, unless `pre_logits`, applies the head: `(n, D)`."""
        features = self._read(maps)
        outputs: Tensor = features if pre_logits else self.head(features)
        return outputs

    def _read(self, maps: Tensor) -> Tensor:
        return maps.flatten(1)

    def features(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to features `(n, F)`."""
        return self.forward_head(self.forward_features(images), pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to `head(features)`, `(n, D)`."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Returns the head, as timm's models do."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a fresh one of `num_classes` outputs; there is no pooling to choose."""
        weight = next(self.blocks.parameters())
        self.num_classes = num_classes
        self.head = _head(self.num_features, num_classes).to(weight.device, weight.dtype)


class OtherFeatures(StudentNetwork):
    """A network of which a head of its own reads other features than its classifier would.

    Args:
        network: A module with timm's `forward_features` and `forward_head`, without a classifier.
        kind: One of `features.STUDENT_FEATURES`.
        in_chans: Input channels.
        image_size: Height and width of the images, on which the width of flattened features depends.
        num_targets: Outputs `D` of the head.
    """

    def __init__(self, network: nn.Module, kind: str, in_chans: int, image_size: int, num_targets: int) -> None:
        super().__init__(network, measure_width(network, in_chans, image_size, kind), in_chans, num_targets)
        self.kind = kind

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` to what the network's last layer before its head gives."""
        maps: Tensor = self.blocks.forward_features(images)  # type: ignore[operator]
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Lets the network recompute activations in the backward pass."""
        self.blocks.set_grad_checkpointing(enable)  # type: ignore[operator]

    def _read(self, maps: Tensor) -> Tensor:
        return read_maps(self.blocks, maps, self.kind)


def check_blocks(widths: Sequence[int], norm: str) -> tuple[tuple[bool, str], ...]:
    """Returns the checks of the arguments of `conv_block`, for `require`."""
    return (
        (len(widths) > 0 and all(width > 0 for width in widths), f"widths must be positive, got {list(widths)}"),
        among("norm", norm, NORMS),
    )


def conv_block(in_chans: int, width: int, norm: str, pool: nn.Module | None, kernel: int = 3) -> nn.Sequential:
    """Returns convolution, norm (one of `NORMS`), ReLU and pooling; the convolution keeps the size."""
    layers: list[nn.Module] = [nn.Conv2d(in_chans, width, kernel, padding=kernel // 2)]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(width))
    elif norm == "instance":
        # This literature's "instance norm"; unlike InstanceNorm2d with its defaults it has a weight and a bias.
        layers.append(nn.GroupNorm(width, width))
    return nn.Sequential(*layers, nn.ReLU(), *([] if pool is None else [pool]))


def _head(num_features: int, num_targets: int) -> nn.Module:
    return nn.Linear(num_features, num_targets) if num_targets else nn.Identity()


def network_cfg(**changes: Any) -> dict[str, Any]:
    """Returns timm's configuration of a network: by default, a student with 512 targets for images of 32 px."""
    return {
        "num_classes": 512,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "blocks.0.0",
        "classifier": "head",
        **changes,
    }


Network = TypeVar("Network", bound=StudentNetwork)


def create_network(build: Callable[..., Network], variant: str, pretrained: bool, **kwargs: Any) -> Network:
    """Lets timm build a network whose `image_size` and `num_targets` timm calls `img_size` and `num_classes`.

    Raises:
        InputError: The images are not square.
        SettingsError: The network refuses an argument.
    """
    model: Network = build_model_with_cfg(partial(_from_timm, build), variant, pretrained, **kwargs)
    return model


def _from_timm(
    build: Callable[..., Network], num_classes: int, img_size: int | tuple[int, int] = 32, **kwargs: Any
) -> Network:
    if not isinstance(img_size, int):
        if len(set(img_size)) != 1:
            raise InputError(f"this student takes square images, got img_size={tuple(img_size)}")
        img_size = img_size[0]
    return build(image_size=img_size, num_targets=num_classes, **kwargs)
