"""Seconds of an outer step, by part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("data", "teacher", "real features", "distilled features", "regression", "backward", "update", "inner step")


class Stopwatch:
    """Adds up seconds by part.

    A GPU that is given is synchronised at the end of each part; without it, only the sum over parts is right for one.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._before = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the seconds of a block to a part, one of `PARTS`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self._device is not None:
                torch.cuda.synchronize(self._device)
            self.seconds[name] += time.perf_counter() - started

    def reset(self) -> None:
        """Sets all to zero."""
        for name, seconds in self.seconds.items():
            self._before[name] += seconds
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def share(self, name: str) -> float:
        """Returns the share of one part in the seconds of all, whatever was reset; 0 before the first part."""
        total = sum(self._before.values()) + sum(self.seconds.values())
        return (self._before[name] + self.seconds[name]) / total if total else 0.0
