"""What a distilled set starts from: which real images, or noise."""

import difflib

import torch
from torch import Tensor

from ssdd_hub.seeds import derive_seed, generator
from ssdd_hub.selection.methods import CHOICES, SelectionSettings, choose_rows, draw_noise
from ssdd_hub.selection.source import Source

NOISE = "noise"
INITS = (*CHOICES, NOISE)


def explain_start(init: str) -> str:
    """Returns the message for a start that does not exist."""
    near = difflib.get_close_matches(init, INITS, n=1, cutoff=0.0)
    return f"init must be one of {', '.join(INITS)}, got {init!r}; the nearest is {near[0]}"


def choose_start(init: str, source: Source, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    """Chooses the images that a set starts from; returns their indices `(count,)`.

    Args:
        init: One of `INITS` but `noise`.
        source: The real images.
        count: Images `M`.
        seed: Seed of the run.
        settings: See `SelectionSettings`.

    Raises:
        InputError: As `choose_rows` does.
    """
    if init == "random":
        # The purpose that runs have had from the first: a run of old settings starts from the same images.
        return torch.randperm(len(source.bank), generator=generator(seed, "first images"))[:count]
    return choose_rows(init, source, count, derive_seed(seed, "first images"), settings)


def start_from(
    init: str, source: Source, count: int, seed: int, settings: SelectionSettings, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Returns the first images, `(M, C, H, W)` pixels of which those of noise leave `[0, 1]`, and targets `(M, D)`.

    Args:
        init: One of `INITS`.
        source: The real images.
        count: Images `M`.
        seed: Seed of the run.
        settings: See `SelectionSettings`.
        dtype: Type of the images; the targets have that of the source's.

    Raises:
        InputError: As `choose_rows` does.
    """
    if init == NOISE:
        images, targets = draw_noise(source, count, derive_seed(seed, "first images"))
        return source.pixel_space.denormalise(images).to(dtype), targets
    rows = choose_start(init, source, count, seed, settings)
    return source.bank.pixels[rows].to(dtype) / 255, source.targets[rows]
