"""The embedded dataset: scikit-learn's real handwritten digits."""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from ssdd_hub.data.labels import Labels


class DigitsSource:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey, as a `DatasetSource`; the split `test` is a fixed 400."""

    splits = ["train", "test"]
    default_size = 16
    left_out: list[str] = []

    @cached_property
    def _parts(self) -> dict[str, tuple[Any, Any]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        # NumPy keeps the stream of RandomState frozen, hence the split is the same with every version.
        train, test = np.split(np.random.RandomState(0).permutation(len(digits.target)), [-400])
        return {name: (digits.images[rows], digits.target[rows]) for name, rows in (("train", train), ("test", test))}

    def num_rows(self, split: str) -> int:
        """Returns the number of images of a split."""
        return len(self._parts[split][1])

    def rows(self, split: str, indices: Sequence[int]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yields for each image its row and a function that returns its PNG file; 0 to 16 become 0 to 255."""
        for index in indices:
            file = io.BytesIO()
            Image.fromarray(np.rint(self._parts[split][0][index] * (255 / 16)).astype(np.uint8)).save(file, "PNG")
            yield f"row {index}", file.getvalue

    def labels(self, *splits: str) -> dict[str, Labels | None]:
        """Returns the digits of splits, and their names."""
        names = [str(digit) for digit in range(10)]
        return {split: Labels(torch.from_numpy(self._parts[split][1]), names) for split in splits}

    def describe(self, split: str) -> dict[str, Any]:
        """Returns what provenance records; the UCI archive gives the data under CC BY 4.0."""
        return {"config": None, "revision": None, "image_column": "images", "license": "cc-by-4.0"}
