"""Codecs of real-image baselines at an equal byte budget: PNG, JPEG, down-sampled images, and that of `dct` sets."""

import io
import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import Parameterisation
from ssdd_hub.distill.parameterisations.bases import components
from ssdd_hub.distill.parameterisations.dct import Dct, DctSettings
from ssdd_hub.distill.parameterisations.factor import Factor, FactorSettings
from ssdd_hub.distill.parameterisations.levels import STEPS, Levels
from ssdd_hub.distill.parameterisations.quantised import Quantised, QuantisedSettings
from ssdd_hub.distill.parameterisations.views import Views
from ssdd_hub.errors import Check, InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record_schema import COLUMNS
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.preview import to_exact_picture, to_png
from ssdd_hub.sets.storage import Decoder, Packed, StorageSettings, num_bytes, pack

_FORM = re.compile(r"(png|dct)|jpeg-([0-9]{1,2})|factor-([0-9]{1,2})(?:-jpeg-([0-9]{1,2}))?")


@dataclass(frozen=True)
class TargetBases:
    """How targets are stored as coefficients in vectors that all share, as those of a set of `bases` are.

    Attributes:
        count: Principal components of the targets beside their mean; fewer, where there are fewer.
        stored: `float32`, `float16` or `int8`, as the vectors of the set.
        step: The step of `int8` vectors, at least.
    """

    count: int
    stored: str
    step: float = 0.0

    @classmethod
    def of(cls, decoder: Decoder | None) -> "TargetBases | None":
        """Returns how a set stores its targets; None where they have no bases."""
        bases = decoder.shared.get("target_bases") if decoder else None
        if decoder is None or bases is None:
            return None
        levels = decoder.levels.get("target_bases")
        return cls(len(bases) - 1, str(bases.dtype).removeprefix("torch."), levels.scale[0] if levels else 0.0)

    def encode(self, targets: Tensor) -> tuple[Tensor, Tensor, int]:
        """Returns coefficients `(M, V, 1 + W)` of targets `(M, V, D)`, the rounded vectors, and the bytes of these."""
        rows = targets.flatten(0, 1)
        codes, vectors = components(rows, rows, min(self.count, *rows.shape))
        values, levels = vectors.float(), dict[str, Levels]()
        stored = values.to(getattr(torch, self.stored))
        if self.stored == "int8":
            levels["targets"] = Levels.of_step(max(self.step, values.abs().max().item() / STEPS[1]) or 1.0)
            stored = levels["targets"].encode(values, torch.int8)
        packed = Packed({"targets": stored}, Decoder(PixelSpace.raw(1), levels=levels))
        size = sum(num_bytes(*packed).values())
        return codes.float().view(*targets.shape[:2], -1), packed.decode()["targets"], size


@dataclass(frozen=True)
class Form:
    """A way to store real images with their targets.

    Attributes:
        kind: `png`: exactly, 8 bits a value; `jpeg`: as files with tables of their own; `factor`: with sides
            `number` times shorter, enlarged bilinearly when they are used; `dct`: as a set of that parameterisation.
        number: Quality of a JPEG, or the factor.
        targets: `float32`, `float16` or `int8`, as the targets of the set that they are compared with.
        target_step: The step of `int8` targets or of their coefficients, that of the same set; 0 for the finest.
        quality: Of small images of `factor`, which are JPEG files then; None for PNG files.
        dct: Settings of `dct`, those of the same set, where it is one, or the default ones; None for other kinds.
        levels: Of the coefficients, those of the same set, where it is `quantised`; None for the steps of `dct`.
        bases: Of targets, like those of the same set, where it has them; None where targets are stored as they are.
        drawn_views: Whether which views there are takes no bytes, as of a set that draws its views from a seed.
    """

    kind: str
    number: int = 1
    targets: str = "float32"
    target_step: float = 0.0
    quality: int | None = None
    dct: DctSettings | None = None
    levels: Levels | None = None
    bases: TargetBases | None = None
    drawn_views: bool = False

    @classmethod
    def of(cls, text: str, beside: DistilledSet | None = None) -> "Form":
        """Reads `png`, `jpeg-75`, `factor-2`, `factor-2-jpeg-75` or `dct`, for comparison with a set.

        Raises:
            InputError: There is no such form; it names what there is.
        """
        match = _FORM.fullmatch(text)
        plain, jpeg, factor, quality = match.groups() if match else (None,) * 4
        qualities = [int(number) for number in (jpeg, quality) if number]
        if not match or not all(1 <= each <= 95 for each in qualities) or not 2 <= int(factor or 2) <= 64:
            raise InputError(
                "a form must be png, jpeg-QUALITY with a quality from 1 to 95, factor-SIDES from 2 to 64, "
                f"factor-SIDES-jpeg-QUALITY or dct, such as jpeg-75 or factor-2; got {text!r}"
            )
        form = cls(
            plain or text.partition("-")[0], int(jpeg or factor or 1), quality=int(quality) if quality else None
        )
        decoder = beside.packed.decoder if beside and beside.packed else None
        if form.kind == Dct.name:
            dct, coefficients = _dct_of(decoder)
            form = replace(form, dct=dct, levels=coefficients)
        if not beside:
            return form
        levels = decoder.levels.get("targets") if decoder else None
        targets = str(beside.stored()["targets"].dtype).removeprefix("torch.")
        step = levels.scale[0] if levels else 0.0
        drawn = decoder is not None and decoder.kind is Views
        return replace(form, targets=targets, target_step=step, bases=TargetBases.of(decoder), drawn_views=drawn)

    @classmethod
    def check(cls, text: str) -> Check:
        """Returns whether there is such a form, and what is wrong otherwise."""
        try:
            cls.of(text)
        except InputError as error:
            return False, str(error)
        return True, ""

    def __str__(self) -> str:
        number = "" if self.kind in ("png", Dct.name) else f"-{self.number}"
        return f"{self.kind}{number}{'' if self.quality is None else f'-jpeg-{self.quality}'}"

    @property
    def detail(self) -> str:
        """What tells forms of one name apart: how targets are stored and, of `dct`, images."""
        step = f", step {self.target_step:g}" if self.target_step else ""
        dct = ""
        if self.dct:
            coarse = self.levels.scale[0] if self.levels else self.dct.step
            dct = f"luma {self.dct.luma}, chroma {self.dct.chroma}, step {coarse:g}; "
        bases = f" in {self.bases.count} {self.bases.stored} bases" if self.bases else ""
        return f"({dct}{self.targets} targets{bases}{step})"

    @property
    def identity(self) -> dict[str, Any]:
        """What it is, as JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}

    def store(self, selected: DistilledSet) -> tuple[DistilledSet, Tensor]:
        """Returns real images in this form, and the bytes of each, `(M,)`, with its share of those of the targets.

        The coefficients of `dct` are compressed together: each image has its share of them.
        """
        factor, quality = (1, self.number) if self.kind == "jpeg" else (self.number, self.quality)
        targets, views = selected.targets.cpu(), selected.view_targets
        vectors, shared = None, 0
        if self.bases:
            seen = targets[:, None] if views is None else torch.cat([targets[:, None], views.cpu()], 1)
            codes, vectors, shared = self.bases.encode(seen)
            targets, views = codes[:, 0], None if views is None else codes[:, 1:]
        pairs = Pairs(selected.images.cpu(), targets)
        learned = self._as_dct(pairs, self.dct) if self.dct else Factor.start(pairs, FactorSettings(factor=factor))
        settings = StorageSettings("uint8", self.targets)
        packed = pack(learned, selected.pixel_space, settings, views, self.target_step)
        small, files = packed.tensors.get("images"), list[bytes]()
        if small is not None and quality is None:
            files = [to_png(to_exact_picture(image)) for image in small]
        elif small is not None and quality:
            files = [_to_jpeg(image, quality) for image in small]
            shown = torch.stack([_to_pixels(file, small.shape[1]) for file in files])
            packed = Packed({**packed.tensors, "images": shown}, packed.decoder)
        told = {} if selected.views is None or self.drawn_views else {"views": selected.views}
        counted, count = num_bytes({**packed.tensors, **told}, packed.decoder), len(targets)
        if vectors is not None:
            packed = _without_bases(packed, vectors)
            shared += counted["decoder"] - packed.decoder.num_bytes()
        images: list[float] = [len(file) for file in files] or [counted["images"] / count] * count
        sizes = torch.tensor(images, dtype=torch.float64) + (counted["targets"] + shared) / count
        return replace(selected, **packed.decode(), packed=packed), sizes

    def _as_dct(self, pairs: Pairs, settings: DctSettings) -> Parameterisation:
        started = Dct.start(pairs, settings)
        if not self.levels:
            return started
        # Of all 8 bits: what lies outside them is clipped, as in the set.
        scale, offset = (torch.tensor(part[0], dtype=torch.float64) for part in self.levels)
        ranges = {"coefficients": (scale, offset + STEPS[0] * scale)}
        return Quantised(QuantisedSettings(of=Dct.name, bits=8), started, ranges)

    def fit(self, selected: DistilledSet, budget: int) -> tuple[DistilledSet, int]:
        """Returns the first of the images that take `budget` bytes at most in this form, at least one, and the bytes.

        The scales of the targets count too.
        """
        stored, sizes = self.store(selected)
        fixed = stored.num_bytes()["decoder"]
        names = [name for name in COLUMNS if getattr(selected, name) is not None]
        # What is compressed together takes more bytes an image where there are fewer: sizes only guide the search.
        least, most, found = 0, len(sizes) + 1, None
        count = int((fixed + sizes.cumsum(0) <= budget).sum())
        while most - least > 1:
            count = min(max(count, least + 1), most - 1)
            kept, sizes = self.store(replace(selected, **{name: getattr(selected, name)[:count] for name in names}))
            size = fixed + round(float(sizes.sum()))
            if size <= budget:
                least, found = count, (kept, size)
            else:
                most = count
                found = found or ((kept, size) if count == 1 else None)
            count += math.floor((budget - size) / float(sizes.mean()))
        if found is None:
            raise AssertionError("one image is always kept")
        return found


def count_for(form: Form, sample: DistilledSet, budget: int) -> int:
    """Returns about how many images fit, and some more, going by a sample of them."""
    _, sizes = form.store(sample)
    return int(budget / float(sizes.mean()) * 1.05) + 2


def _dct_of(decoder: Decoder | None) -> tuple[DctSettings, Levels | None]:
    """Returns the settings of a set that is stored as `dct`, also in `views`, and the levels that replace its step."""
    kind, args = (decoder.kind.name, decoder.args) if decoder else ("", {})
    if kind == Views.name:
        kind, args = args["of"], args["of_args"]
    if not decoder or kind != Dct.name:
        return DctSettings(), None
    settings = DctSettings(**{name: value for name, value in args.items() if name != "shape"})
    return settings, None if settings.step else decoder.levels.get("coefficients")


def _without_bases(packed: Packed, vectors: Tensor) -> Packed:
    """Returns the same with the targets that coefficients in these vectors stand for."""
    decoder, names = packed.decoder, ("targets", "view_targets")
    decoded = packed.decode()
    targets = {name: decoded[name] @ vectors for name in names if name in decoded}
    levels = {name: each for name, each in decoder.levels.items() if name not in names}
    return Packed({**packed.tensors, **targets}, replace(decoder, levels=levels))


def _to_jpeg(image: Tensor, quality: int) -> bytes:
    file = io.BytesIO()
    to_exact_picture(image).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def _to_pixels(file: bytes, channels: int) -> Tensor:
    with Image.open(io.BytesIO(file), formats=["JPEG"]) as picture:
        pixels: Any = np.array(picture)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1).copy())
