"""The images the demo trains on: scikit-learn's 1,797 handwritten digits, 8x8 pixels, upright and altered.

numpy and scikit-learn only, so that the command's own process may read them as well as the workshop's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]
    """(n, 8, 8), 0 black to 255 white."""

TASKS = ("upright", "rotated", "mirrored", "inverted")


@dataclass(frozen=True)
class Digits:
    """Images (n, 8, 8) of uint8 and the digits they show (n,)."""

    images: Images
    labels: NDArray[np.int64]

    def as_task(self, task: str) -> Digits:
        """The same digits upright, rotated (a quarter turn), mirrored (left to right) or inverted (black for white).

        Raises KeyError for another task.
        """
        return Digits(_alterations()[task](self.images), self.labels)

    def png(self, index: int) -> bytes:
        """One image as an 8x8 PNG file."""
        from PIL import Image

        target = io.BytesIO()
        Image.fromarray(self.images[index]).convert("RGB").save(target, format="PNG")
        return target.getvalue()

    def first(self, count: int) -> Digits:
        """The first `count` of them."""
        return Digits(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Split:
    """The digits in three parts that share no image: for the base, for its version 2, and held out to measure on."""

    old: Digits
    new: Digits
    test: Digits


def load(seed: int = 0) -> Split:
    """All 1,797 digits, shuffled and split 900 / 450 / 447."""
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    images = np.rint(found.images[order] * (255 / 16)).astype(np.uint8)
    labels = found.target[order].astype(np.int64)
    old, new, test = (
        Digits(images[start:stop], labels[start:stop]) for start, stop in ((0, 900), (900, 1350), (1350, None))
    )
    return Split(old, new, test)


def _alterations() -> dict[str, Callable[[Images], Images]]:
    import numpy as np

    return {
        "upright": lambda images: images,
        "rotated": lambda images: np.ascontiguousarray(np.rot90(images, axes=(1, 2))),
        "mirrored": lambda images: np.ascontiguousarray(images[:, :, ::-1]),
        "inverted": lambda images: 255 - images,
    }
