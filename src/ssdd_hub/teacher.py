"""A teacher: a timm model, frozen, read as a map from pixels to features."""

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.backbones import pre_logits
from ssdd_hub.errors import InputError, require
from ssdd_hub.objectives import measure_width
from ssdd_hub.pixel_space import PixelSpace

# What data and other settings decide of a teacher.
DECIDED = ("name", "pretrained", "num_classes", "image_size", "seed")


@dataclass(frozen=True)
class TeacherSettings:
    """Which network is the teacher.

    Attributes:
        backbone: A timm name, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        pretrained: Load its weights, ready made. Otherwise it is trained on the source images by `pretrain`.
        model_args: Further arguments of the timm model, such as `channels` of `ssdd_resnet10`.
    """

    backbone: str = "ssdd_resnet18"
    pretrained: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = ", ".join(name for name in DECIDED if name in self.model_args)
        stored = self.backbone.startswith(("local-dir:", "hf-hub:", "hf_hub:"))
        require(
            (
                self.pretrained or not stored,
                f"teacher.backbone {self.backbone!r} names stored weights, so pass --teacher.pretrained true as well",
            ),
            (not taken, f"teacher.model_args must leave out {taken}, which other settings decide"),
        )


class Teacher(nn.Module):
    """A frozen backbone in eval mode, with the pixel space and size that it expects.

    Args:
        backbone: A module with timm's `forward_features` and `forward_head`.
        pixel_space: The space that the backbone was trained in.
        input_size: Height and width that it expects; other images are resized (bicubic).
        name: For provenance.
        license: Licence of the weights, which whatever is derived from them inherits.

    Attributes:
        feature_dim: Width `D` of the features, measured by a dry forward pass.
    """

    def __init__(
        self, backbone: nn.Module, pixel_space: PixelSpace, input_size: int, name: str, license: str = "unknown"
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.pixel_space = pixel_space
        self.input_size = input_size
        self.name = name
        self.license = license
        self.feature_dim = measure_width(backbone, pixel_space.channels, input_size)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode, whatever is asked: batch statistics would make features depend on their batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels in `[0, 1]` to features.

        Args:
            pixels: `(n, C, H, W)`, floating point. Grey images are repeated for a teacher of three channels.

        Returns:
            `(n, D)`, in the dtype of the backbone.

        Raises:
            InputError: The images have colours and the teacher takes grey ones.
        """
        channels = self.pixel_space.channels
        if pixels.shape[1] == 1 and channels > 1:
            pixels = pixels.expand(-1, channels, -1, -1)
        if pixels.shape[1] != channels:
            raise InputError(
                f"the teacher {self.name} takes images of {channels} channel(s), got {pixels.shape[1]}: pass "
                "--data.mode grey, or choose another teacher"
            )
        if pixels.shape[-1] != self.input_size:
            size = (self.input_size, self.input_size)
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        return pre_logits(self.backbone, self.pixel_space.normalise(pixels))

    def weights_sha256(self) -> str:
        """Returns the hash of names, types, shapes and values of all weights and buffers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns what provenance records of a teacher."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256(),
            "license": self.license,
            "feature_dim": self.feature_dim,
            "features": "timm pre-logits",
            "input_size": self.input_size,
            "pixel_space": self.pixel_space.to_dict(),
        }

    def save(self, folder: Path) -> None:
        """Writes the backbone in timm's own layout (safetensors), for `timm.create_model("local-dir:FOLDER")`.

        The folder appears at once and whole, by renaming; one that is there is kept.
        """
        if folder.exists():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        data_config = {
            "mean": self.pixel_space.mean,
            "std": self.pixel_space.std,
            "input_size": (self.pixel_space.channels, self.input_size, self.input_size),
        }
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            # One level down, because the temporary folder itself is closed to other users.
            new = Path(scratch, "new")
            save_for_hf(self.backbone, new, safe_serialization=True, data_config=data_config)
            new.rename(folder)


def build_teacher(name_or_module: str | nn.Module, *, pretrained: bool = True, **model_args: Any) -> Teacher:
    """Makes a teacher of a timm model, by name or as a module.

    Mean, std, input size and licence are read from the model's `pretrained_cfg`.

    Args:
        name_or_module: A timm name, `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, or a module with timm's contract.
        pretrained: Load the weights that the name stands for; ignored for a module.
        **model_args: Further arguments of `timm.create_model`; only with a name.

    Raises:
        InputError: The model cannot be had, or it lacks timm's contract.
    """
    if isinstance(name_or_module, str):
        backbone = create_backbone(name_or_module, pretrained=pretrained, **model_args)
        name = name_or_module
    else:
        backbone, name = name_or_module, type(name_or_module).__name__
    for method in ("forward_features", "forward_head"):
        if not hasattr(backbone, method):
            raise InputError(f"a teacher needs timm's forward_features and forward_head; {name} has no {method}")
    config = resolve_model_data_config(backbone)
    license = (getattr(backbone, "pretrained_cfg", None) or {}).get("license") or "unknown"
    return Teacher(backbone, PixelSpace(config["mean"], config["std"]), config["input_size"][-1], name, license)


def create_backbone(name: str, *, pretrained: bool, **model_args: Any) -> nn.Module:
    """Calls `timm.create_model` without a classifier and turns what can go wrong into one clear error.

    Raises:
        InputError: timm does not know the name, an argument does not fit, or the weights cannot be had.
    """
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **model_args)
    except Exception as error:  # timm, the Hub client and safetensors each raise their own kinds here
        raise InputError(
            f"teacher backbone {name!r} (pretrained={pretrained}, {model_args}) cannot be built: {error}. Use a name "
            "from timm.list_models(), local-dir:FOLDER with config.json and model.safetensors, or hf-hub:OWNER/NAME"
        ) from error
    return backbone
