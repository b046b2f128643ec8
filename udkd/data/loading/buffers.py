"""Memory for batches on the host, used again once nobody looks at it any more.

Fresh memory costs a page fault per 4 KB: for a 512 px canvas 0.2 to 3 ms, as the machine is; decoding it takes one.
"""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from udkd.utils.errors import ConfigError

_LARGE_BYTES = 1 << 30
_ALWAYS_KEPT = 2
_MOST_KEPT = 64


def require_memory(count: int) -> None:
    """Raise ConfigError where a batch of `count` bytes is large and is more than the memory that is free."""
    if count > _LARGE_BYTES and count > (free := psutil.virtual_memory().available):
        raise ConfigError(
            f"canvases of {count / 1e9:.1f} GB at once are more than the {free / 1e9:.1f} GB of free memory; "
            "expected them to fit; lower the batch, or convert with a smaller --side"
        )


class BufferPool:
    """Hands out uint8 arrays; the memory of one comes back when its array, every view and every tensor of it is gone.

    keep_bytes: how much unused memory it holds on to, in at most 64 pieces; two pieces however large they are.
    Contents are whatever was there before: write every byte.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._free: list[NDArray[np.uint8]] = []

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """An array of `shape`. Unused memory that is too small for it is let go."""
        memory = self._piece(math.prod(shape))
        return np.asarray(_Lease(self, memory))[: math.prod(shape)].reshape(shape)

    def _piece(self, count: int) -> NDArray[np.uint8]:
        with suppress(IndexError):
            while True:
                memory = self._free.pop()  # pop and append are atomic: no lock, which a finaliser could meet in its own thread
                if len(memory) >= count:
                    return memory
        require_memory(count)
        return np.empty(count, dtype=np.uint8)

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        """Keep `memory` for the next `take`, or let it go. Any thread may call it."""
        kept = [piece.nbytes for piece in self._free]
        if len(kept) < _ALWAYS_KEPT or (len(kept) < _MOST_KEPT and sum(kept) + memory.nbytes <= self._keep_bytes):
            self._free.append(memory)

    def clear(self) -> None:
        """Let all unused memory go."""
        self._free.clear()


class _Lease:
    """The owner of an array's memory as NumPy sees it: alive as long as any array that was made from it."""

    def __init__(self, pool: BufferPool, memory: NDArray[np.uint8]) -> None:
        self._pool = pool
        self._memory = memory

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__

    def __del__(self) -> None:
        self._pool.give_back(self._memory)
