"""Random numbers as pure functions of a seed, a purpose and counters.

No generator is carried from step to step: what step `s` draws depends on `(seed, purpose, s)` alone, so that resumed
runs, and runs on any number of processes, draw the same.
"""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

# There is one global generator for all threads.
_GLOBAL_GENERATOR = threading.RLock()
_DRAWS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """Hashes the seed of a run, a purpose, and counters such as step or epoch, to a seed.

    Different purposes give unrelated streams. Torch's CPU generator uses the low 32 bits.
    """
    key = "/".join([str(seed), purpose, *map(str, counters)]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Returns a CPU generator; the arguments are those of `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *counters))


@contextmanager
def seeded(seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Seeds torch's global CPU generator inside the block, for code that takes no generator, and restores it after.

    Network initialisation is such code: networks are built on the CPU, so that they start alike on every device.
    """
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, purpose, *counters))
        yield


@contextmanager
def seeded_training(student: nn.Module, seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Seeds what a student draws inside the block, a pass in train mode, as dropout and stochastic depth do.

    They take no generator, so that such students train one at a time; the first pass of each tells which they are, and
    others are not slowed down. A GPU's generator is not restored after.
    """
    if _DRAWS.get(student) is False:
        yield
        return
    with seeded(seed, purpose, *counters):
        before = _states(student)
        yield
        _DRAWS[student] = not all(map(torch.equal, before, _states(student)))


def _states(student: nn.Module) -> list[Tensor]:
    device = next((parameter.device for parameter in student.parameters()), torch.device("cpu"))
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def generators_kept(device: torch.device | None = None) -> Iterator[None]:
    """Restores the global generators of Python, NumPy and torch at its end, and that of a GPU that is given."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device is not None and device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def draw_batch(num_items: int, batch_size: int, seed: int, purpose: str, step: int) -> Tensor:
    """Returns the indices of one batch out of endlessly repeated shuffles, `(batch_size,)`, int64, on the CPU.

    Batch `step` holds the positions `[step * batch_size, (step + 1) * batch_size)` of the concatenation of one
    permutation per epoch, so every item is drawn equally often, also when `num_items < batch_size`.
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // num_items, (stop - 1) // num_items + 1)
    shuffles = ((epoch * num_items, _shuffle(num_items, seed, purpose, epoch)) for epoch in epochs)
    return torch.cat([shuffle[max(0, start - first) : stop - first] for first, shuffle in shuffles])


def draw_distinct(num_items: int, size: int, seed: int, purpose: str, step: int) -> Tensor:
    """Returns `size` different indices of `num_items`, `(size,)`, int64, on the CPU.

    Unlike batches of `draw_batch`, none holds an item twice, which would leave a kernel singular.
    """
    return torch.randperm(num_items, generator=generator(seed, purpose, step))[:size]


# Cached, since the batches of an epoch share its shuffle.
@lru_cache(maxsize=4)
def _shuffle(num_items: int, seed: int, purpose: str, epoch: int) -> Tensor:
    return torch.randperm(num_items, generator=generator(seed, purpose, epoch))
