"""Memory for batches on the host, used again once nobody looks at it any more.

Fresh memory costs a page fault per 4 KB: 0.2 ms for one 512 px canvas, a tenth of its decode.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class BufferPool:
    """Hands out uint8 arrays; the memory of one comes back when its array, every view and every tensor of it is gone.

    size_bytes: of each piece of memory, the largest array that can be taken. keep: how many unused pieces it holds on to.
    Contents are whatever was there before: write every byte.
    """

    def __init__(self, size_bytes: int, keep: int) -> None:
        self._size_bytes = size_bytes
        self._keep = keep
        self._free: list[NDArray[np.uint8]] = []

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """An array of `shape`, at most size_bytes large."""
        count = math.prod(shape)
        assert count <= self._size_bytes, f"{shape} is more than {self._size_bytes} bytes"
        try:
            memory = self._free.pop()  # pop and append are atomic: no lock, which a finaliser could meet in its own thread
        except IndexError:
            memory = np.empty(self._size_bytes, dtype=np.uint8)
        return np.asarray(_Lease(self, memory))[:count].reshape(shape)

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        """Keep `memory` for the next `take`, or let it go. Any thread may call it."""
        if len(self._free) < self._keep:
            self._free.append(memory)


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
