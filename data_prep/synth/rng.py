"""Random numbers for the synthetic images: one stream per image, a pure function of the image's key."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from udkd.utils.rng import key, mix

T = TypeVar("T")
BLOCK = 256  # numbers generated at once


class Rng:
    """A stream of uniform numbers, keyed by integers (seed, split, class, index)."""

    def __init__(self, *seed_parts: int) -> None:
        self._key = key(*seed_parts)
        self._counter = 0
        self._ready: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._ready:
            self._ready = ((self._bits(BLOCK) >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()[::-1]
        return low + (high - low) * self._ready.pop()

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def choice(self, options: tuple[T, ...]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def bytes(self, height: int, width: int) -> NDArray[np.uint8]:
        """Uniform bytes, uint8 [height, width]."""
        count = height * width
        return self._bits(-(-count // 8)).view(np.uint8)[:count].reshape(height, width)

    def _bits(self, count: int) -> NDArray[np.uint64]:
        counters = np.arange(self._counter, self._counter + count, dtype=np.uint64)
        self._counter += count
        return mix(self._key + counters)
