"""Codecs of real-image baselines at an equal byte budget: PNG, JPEG, down-sampled images."""

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssdd_hub.errors import Check, InputError
from ssdd_hub.record_schema import COLUMNS
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.preview import to_exact_picture, to_png

_KINDS = {"png": (None, None), "jpeg": (1, 95), "factor": (2, 64)}


@dataclass(frozen=True)
class Form:
    """A way to store real images with their targets.

    Attributes:
        kind: `png`: exactly, 8 bits a value; `jpeg`: as files with tables of their own; `factor`: with sides
            `number` times shorter, as PNG files, enlarged bilinearly when they are used.
        number: Quality of a JPEG, or the factor.
        targets: `float32`, `float16` or `int8`, as the targets of the set that they are compared with.
        target_step: The step of `int8` targets, that of the same set; 0 for the finest.
    """

    kind: str
    number: int = 1
    targets: str = "float32"
    target_step: float = 0.0

    @classmethod
    def of(cls, text: str, targets: str = "float32", target_step: float = 0.0) -> "Form":
        """Reads `png`, `jpeg-75` or `factor-2`; an `InputError` names what there is."""
        kind, _, number = text.partition("-")
        least, most = _KINDS.get(kind, (0, 0))
        if least is None and not number:
            return cls(kind, 1, targets, target_step)
        if not (least and most and number.isdecimal() and least <= int(number) <= most):
            raise InputError(
                f"a form must be png, jpeg-QUALITY with a quality from 1 to 95, or factor-SIDES from 2 to 64, such as "
                f"jpeg-75 or factor-2; got {text!r}"
            )
        return cls(kind, int(number), targets, target_step)

    @classmethod
    def check(cls, text: str) -> Check:
        """Returns whether there is such a form, and what is wrong otherwise."""
        try:
            cls.of(text)
        except InputError as error:
            return False, str(error)
        return True, ""

    def __str__(self) -> str:
        return self.kind if self.kind == "png" else f"{self.kind}-{self.number}"

    def store(self, selected: DistilledSet) -> tuple[DistilledSet, Tensor]:
        """Returns real images in this form, and the bytes of each, `(M,)`, with its share of those of the targets."""
        if self.kind == "jpeg":
            pixels = selected.pixel_space.denormalise(selected.images).mul(255).round().to(torch.uint8)
            files = [_to_jpeg(image, self.number) for image in pixels]
            decoded = torch.stack([_to_pixels(file, pixels.shape[1]) for file in files])
            images = selected.pixel_space.normalise(decoded.float() / 255)
            stored = replace(selected, images=images).compact("uint8", self.targets, target_step=self.target_step)
        else:
            stored = selected.compact("uint8", self.targets, self.number, self.target_step)
            files = [to_png(to_exact_picture(image)) for image in stored.stored()["images"]]
        return stored, torch.tensor([len(file) for file in files]).double() + _bytes_of_targets(stored)

    def fit(self, selected: DistilledSet, budget: int) -> tuple[DistilledSet, int]:
        """Returns the first of the images that take `budget` bytes at most in this form, at least one, and the bytes.

        The scales of the targets count too.
        """
        stored, sizes = self.store(selected)
        fixed = stored.num_bytes()["decoder"]
        count = max(1, int((fixed + sizes.cumsum(0) <= budget).sum()))
        names = [name for name in COLUMNS if getattr(selected, name) is not None]
        while True:
            kept, sizes = self.store(replace(selected, **{name: getattr(selected, name)[:count] for name in names}))
            size = fixed + round(float(sizes.sum()))
            # Targets of fewer images are compressed less well.
            if size <= budget or count == 1:
                return kept, size
            count -= 1


def count_for(form: Form, sample: DistilledSet, budget: int) -> int:
    """Returns about how many images fit, and some more, going by a sample of them."""
    _, sizes = form.store(sample)
    return int(budget / float(sizes.mean()) * 1.05) + 2


def _bytes_of_targets(stored: DistilledSet) -> float:
    return stored.num_bytes()["targets"] / len(stored.images)


def _to_jpeg(image: Tensor, quality: int) -> bytes:
    file = io.BytesIO()
    to_exact_picture(image).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def _to_pixels(file: bytes, channels: int) -> Tensor:
    with Image.open(io.BytesIO(file), formats=["JPEG"]) as picture:
        pixels: Any = np.array(picture)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1).copy())
