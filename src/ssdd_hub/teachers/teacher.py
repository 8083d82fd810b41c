"""A teacher: a frozen timm model that maps pixels to features."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.arguments import argument_checks
from ssdd_hub.bounds import Count, Settings, one_of
from ssdd_hub.errors import Check, InputError
from ssdd_hub.models.features import (
    FEATURES,
    OTHER_WEIGHTS,
    create_backbone,
    hash_structure,
    hash_weights,
    measure_width,
    read_features,
    read_pixel_space,
    shorten_error,
)
from ssdd_hub.models.stored_models import normalised_name
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator, seeded
from ssdd_hub.teachers.checkpoints import load_checkpoint
from ssdd_hub.teachers.folder import check_facts, read_record, write_folder

# Arguments of a model that data and other settings decide.
RESERVED_ARGS = ("name", "pretrained", "num_classes", "image_size", "img_size", "seed", *OTHER_WEIGHTS)
# The part of a teacher's provenance that a set distilled from it records.
_ORIGIN = ("objective", "source", "seed", "checkpoint")
_ALIKE = 0.02  # share of the features by which two types and layouts may differ


@dataclass(frozen=True)
class TeacherSettings(Settings, section="teacher"):
    """Which network is the teacher, and what is read from it.

    Attributes:
        backbone: A timm name, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        pretrained: Load its weights, ready made. Otherwise it is trained on the source images by `pretrain`.
        checkpoint: A file of weights trained elsewhere, for `checkpoints.load_checkpoint`; nothing is trained then.
        features: `pre_logits`; `cls`, the class token; `mean`, over patch tokens or the feature map.
        input_size: Height and width that images are resized to; by default what the network states.
        mean: Mean, one value per channel, of the pixel space that a ready teacher was trained in; by default what the
            network states. A checkpoint states none.
        std: Its standard deviation, likewise.
        model_args: Further arguments of the timm model, such as `channels` of `ssdd_resnet10`.
    """

    arguments_of: ClassVar[dict[str, str]] = {"model_args": "backbone"}

    backbone: str = "ssdd_resnet18"
    pretrained: bool = False
    checkpoint: str | None = None
    features: Annotated[str, one_of(FEATURES)] = "pre_logits"
    input_size: Count | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    model_args: dict[str, Any] = field(default_factory=dict)

    def conflicts(self) -> Iterator[Check]:
        """Yields conditions between settings, and on the arguments of the model."""
        own = ", ".join(f"teacher.{name}" for name in ("input_size", "mean", "std") if getattr(self, name) is not None)
        yield (
            self.pretrained or not self.backbone.lower().startswith(("local-dir:", "hf-hub:", "hf_hub:")),
            f"teacher.backbone {self.backbone!r} names stored weights, so pass --teacher.pretrained true as well",
        )
        yield (
            not (self.pretrained and self.checkpoint),
            "teacher.checkpoint takes the place of stored weights: leave out --teacher.pretrained",
        )
        yield (self.mean is None) == (self.std is None), "teacher.mean and teacher.std must be given together"
        yield (
            self.ready or not own,
            f"leave out {own}: a teacher that is trained here sees the source images as they are",
        )
        by = "other settings decide (other weights: --teacher.checkpoint)"
        yield from argument_checks("teacher.model_args", self.model_args, RESERVED_ARGS, by)

    @property
    def ready(self) -> bool:
        """Whether there are weights already, so that nothing is trained."""
        return self.pretrained or self.checkpoint is not None

    def building(self) -> dict[str, Any]:
        """Returns the arguments of `build_teacher` for a ready teacher, except its name."""
        names = ("pretrained", "checkpoint", "features", "input_size", "mean", "std")
        return {**{name: getattr(self, name) for name in names}, **self.model_args}


class Teacher(nn.Module):
    """A frozen backbone in eval mode, with the pixel space and size that it expects.

    Args:
        backbone: A module with timm's `forward_features` and `forward_head`.
        pixel_space: The space that the backbone was trained in.
        input_size: Height and width that it expects. Other images are resized whole, without timm's centre crop, since
            source and distilled images are cropped already.
        name: For provenance.
        license: Licence of the weights, which whatever is derived from them inherits.
        features: One of `features.FEATURES`.
        interpolation: How images are resized, `bicubic` or `bilinear`, with antialiasing.
        provenance: How it was made, such as `objective`, `source` and `seed`.

    Attributes:
        feature_dim: Width `D` of the features, measured by a dry forward pass.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pixel_space: PixelSpace,
        input_size: int,
        name: str,
        license: str = "unknown",
        *,
        features: str = "pre_logits",
        interpolation: str = "bicubic",
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.eval()
        if interpolation not in ("bicubic", "bilinear"):
            raise InputError(f"a teacher's images are resized bicubic or bilinear, {name} asks for {interpolation!r}")
        self.pixel_space = pixel_space
        self.input_size = input_size
        self.name = name
        self.license = license
        self.features = features
        self.interpolation = interpolation
        self.provenance = dict(provenance or {})
        self.feature_dim = measure_width(backbone, pixel_space.channels, input_size, features)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode: batch statistics would make features depend on their batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Does the same as `read`, without a graph."""
        return self.read(pixels)

    def read(self, pixels: Tensor) -> Tensor:
        """Maps pixels `(n, C, H, W)` in `[0, 1]` to features `(n, D)` in the dtype of the backbone.

        Grey images are repeated for a teacher of three channels; colours are refused by a teacher of one.
        Differentiable, but for pixels that resizing takes out of the range, which are clamped.
        """
        channels = self.pixel_space.channels
        if pixels.shape[1] == 1 and channels > 1:
            pixels = pixels.expand(-1, channels, -1, -1)
        if pixels.shape[1] != channels:
            raise InputError(
                f"the teacher {self.name} takes images of {channels} channel(s), got {pixels.shape[1]}: pass "
                "--data.mode grey, or choose another teacher"
            )
        size = (self.input_size, self.input_size)
        if pixels.shape[-2:] != size:
            pixels = functional.interpolate(pixels, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        return read_features(self.backbone, self.pixel_space.normalise(pixels), self.features)

    def weights_sha256(self) -> str:
        """Returns the hash of names, types, shapes and values of all weights and buffers."""
        return hash_weights(self.backbone)

    def identity(self) -> dict[str, Any]:
        """Returns what provenance records of a teacher: name, licence and everything that its features depend on."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256(),
            "structure_sha256": hash_structure(self.backbone),
            "license": self.license,
            "feature_dim": self.feature_dim,
            "features": self.features,
            "input_size": self.input_size,
            "interpolation": self.interpolation,
            "pixel_space": self.pixel_space.to_dict(),
        }

    def public_provenance(self) -> dict[str, Any]:
        """Returns the part of its provenance that belongs beside whatever is derived from it."""
        return {name: self.provenance[name] for name in _ORIGIN if name in self.provenance}

    def save(self, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Writes the backbone in timm's own layout (safetensors), for `timm.create_model("local-dir:FOLDER")`.

        Provenance, given or the teacher's own, is kept in `ssdd_hub.json`, for `build_teacher`, and in a model card.
        The folder appears at once and whole, by renaming; an existing one is kept.

        Raises:
            InputError: The backbone is not one of timm's, so that timm could not build it again; or it was changed in
                what weights do not tell, as by another `maxpool`, so that timm builds another one.
        """
        folder = Path(folder)
        if folder.exists():
            return
        stated: Any = getattr(self.backbone, "pretrained_cfg", None)
        if stated is None:
            raise InputError(
                f"the teacher {self.name} cannot be saved for timm, which does not know a "
                f"{type(self.backbone).__name__}: build it by timm.create_model, after timm.models.register_model"
            )
        facts = self.provenance if provenance is None else dict(provenance)
        metadata = {"architecture": stated["architecture"], "teacher": self.identity(), "provenance": facts}
        data_config = {
            "mean": self.pixel_space.mean,
            "std": self.pixel_space.std,
            "input_size": (self.pixel_space.channels, self.input_size, self.input_size),
            "interpolation": self.interpolation,
        }
        write_folder(folder, self.backbone, data_config, self.license, metadata if facts else None, self._check_same)

    @torch.no_grad()
    def _check_same(self, folder: Path) -> None:
        """Refuses a folder whose network has other features of noise: configs and weights do not tell all changes."""
        with seeded(0, "network to compare"):
            again = create_backbone(f"local-dir:{folder}", pretrained=True, input_size=self.input_size)
        like, size = next(self.backbone.parameters()), (self.input_size, self.input_size)
        noise = torch.randn(2, self.pixel_space.channels, *size, generator=generator(0, "noise for a stored teacher"))
        own, other = (
            read_features(each, noise.to(like), self.features) for each in (self.backbone, again.eval().to(like))
        )
        if own.shape != other.shape or (own - other).norm() > _ALIKE * own.norm():
            raise InputError(
                f"the teacher {self.name} cannot be saved for timm: what timm builds from its config and its weights "
                "has other features. It was changed in layers without weights, such as maxpool or a stride: build it "
                "with timm's arguments for that, or register it by timm.models.register_model"
            )


def build_teacher(
    name_or_module: str | nn.Module,
    *,
    pretrained: bool = True,
    features: str = "pre_logits",
    input_size: int | None = None,
    checkpoint: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    license: str | None = None,
    **model_args: Any,
) -> Teacher:
    """Returns a teacher made of a timm model, by name or as a module.

    Mean, std, input size and interpolation are by default those of the model's `pretrained_cfg`; the provenance of a
    teacher that this package saved is read from its folder or repository.

    Args:
        name_or_module: A timm name, `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, or a module with timm's contract.
        pretrained: Load the weights that the name stands for; ignored for a module and with a checkpoint.
        features: One of `features.FEATURES`.
        input_size: Height and width that images are resized to; a model of one size is built for this one.
        checkpoint: A file of weights trained elsewhere, for `checkpoints.load_checkpoint`. It states neither its
            licence nor the pixel space that its network was trained in: give `mean` and `std`.
        mean: Mean of that space, one value per channel.
        std: Its standard deviation; both or neither.
        license: Licence of the weights; by default the stated one of those that the name stands for, and `unknown` of
            all others, in a module, in a checkpoint or random.
        **model_args: Further arguments of `timm.create_model`; only with a name.

    Raises:
        InputError: The model cannot be loaded or built, lacks timm's contract or features of this kind, does not take
            images of this size, or the checkpoint does not fit.
    """
    stored = isinstance(name_or_module, str) and pretrained and checkpoint is None
    facts: dict[str, Any] = {}
    if isinstance(name_or_module, str):
        name, provenance = normalised_name(name_or_module), dict[str, Any]()
        backbone = create_backbone(name, pretrained=stored, input_size=input_size, **model_args)
        if stored:
            # The record of the commit that was loaded, whatever the repository holds by now.
            loaded = (getattr(backbone, "pretrained_cfg", None) or {}).get("hf_hub_id")
            is_hub = name.startswith(("hf-hub:", "hf_hub:"))
            recorded, provenance, facts = read_record(f"hf-hub:{loaded}" if is_hub and loaded else name)
            name = name if is_hub else recorded
    else:
        backbone, name, provenance = name_or_module, type(name_or_module).__name__, {}
    for method in ("forward_features", "forward_head"):
        if not hasattr(backbone, method):
            raise InputError(f"a teacher needs timm's forward_features and forward_head; {name} has no {method}")
    # timm's licence holds for its own weights of an architecture only.
    stated = (getattr(backbone, "pretrained_cfg", None) or {}).get("license") if stored else None
    if checkpoint is not None:
        report = load_checkpoint(backbone, checkpoint)
        how = {"layout": report.layout, "prefix": report.prefix, "ignored": report.ignored}
        provenance = {"checkpoint": {"file": Path(checkpoint).name, **how}}
    try:
        config = resolve_model_data_config(backbone)
        space = read_pixel_space(name, config, mean, std, model_args.get("in_chans"))
        _, height, width = map(int, config["input_size"])
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the teacher {name} states no images that it takes: {shorten_error(error)}") from error
    if height != width and input_size is None:
        raise InputError(f"the teacher {name} takes {height}x{width} pixels, ours are square: give teacher.input_size")
    size = input_size or width
    # What the caller gives takes the place of what is recorded.
    found = {"interpolation": config["interpolation"], "input_size": size, "pixel_space": space.to_dict()}
    given = {"input_size": input_size, "pixel_space": mean or model_args.get("in_chans")}
    check_facts(name, facts, {key: fact for key, fact in found.items() if given.get(key) is None})
    options = {"features": features, "interpolation": config["interpolation"], "provenance": provenance}
    try:
        return Teacher(backbone, space, size, name, str(license or stated or "unknown"), **options)
    except InputError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the teacher {name} does not take images of {space.channels} channel(s) and {size} pixels "
            f"({shorten_error(error)}): choose teacher.input_size, or teacher.mean and teacher.std of as many channels"
        ) from error
