"""The bar of a loop of steps, whose remaining time does not jump."""

import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

_SLOW = 3  # first steps, which also fill caches and start workers


class StepBar(tqdm):  # type: ignore[type-arg]
    """A bar of steps, whose speed and remaining time are those of the mean step; the first, slow ones do not count.

    Args:
        steps: What is iterated over.
        title: Stands before the bar.
        total: Steps in all, those of earlier starts too.
        initial: Steps that were done before.
        disable: Show nothing.
    """

    def __init__(self, steps: Any, title: str, total: int, initial: int = 0, disable: bool = False) -> None:
        given: dict[str, Any] = {"initial": initial, "unit": "step", "disable": disable}
        super().__init__(steps, title, total, smoothing=0, miniters=1, **given)

    def __iter__(self) -> Iterator[Any]:
        try:
            for number, entry in enumerate(self.iterable, 1):
                yield entry
                self.update()
                if number == _SLOW and not self.disable:
                    self.initial, self.start_t = self.n, time.time()
        finally:
            self.close()
