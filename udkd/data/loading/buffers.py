"""Host memory for batches, reused once no array refers to it.

New memory costs a page fault per 4 KB: 0.2 to 3 ms for a 512 px canvas, depending on the machine; decoding takes 1 ms.
"""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from udkd.utils.errors import ConfigError

_LARGE_BYTES = 1 << 30


def require_memory(count: int) -> None:
    """Raise ConfigError if a batch of `count` bytes takes over 1 GB and exceeds the free memory."""
    if count > _LARGE_BYTES and count > (free := psutil.virtual_memory().available):
        raise ConfigError(
            f"canvases of {count / 1e9:.1f} GB at once are more than the {free / 1e9:.1f} GB of free memory; "
            "expected them to fit; lower the batch, or convert with a smaller --side"
        )


class BufferPool:
    """Hands out uint8 arrays, and reuses their memory once an array and all views and tensors of it are gone.

    keep_bytes: limit on the unused memory that is kept, in at most 64 blocks; two blocks are kept whatever their size.
    The contents are arbitrary: overwrite every byte.
    """

    _MIN_KEPT, _MAX_KEPT = 2, 64  # here, as the module's own names may be gone when the interpreter ends

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._free: list[NDArray[np.uint8]] = []

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """An array of `shape`. Unused blocks that are too small for it are freed."""
        memory = self._block(math.prod(shape))
        return np.asarray(_Lease(self, memory))[: math.prod(shape)].reshape(shape)

    def _block(self, count: int) -> NDArray[np.uint8]:
        with suppress(IndexError):
            while True:
                memory = self._free.pop()  # atomic: a lock could deadlock with a finaliser in the same thread
                if len(memory) >= count:
                    return memory
        require_memory(count)
        return np.empty(count, dtype=np.uint8)

    def release(self, memory: NDArray[np.uint8]) -> None:
        """Keep `memory` for the next `take`, or free it. Any thread may call it."""
        kept = [block.nbytes for block in self._free]
        if len(kept) < self._MIN_KEPT or (len(kept) < self._MAX_KEPT and sum(kept) + memory.nbytes <= self._keep_bytes):
            self._free.append(memory)

    def clear(self) -> None:
        """Free all unused memory."""
        self._free.clear()


class _Lease:
    """The base object of an array, which NumPy keeps alive as long as any view; its finaliser returns the memory."""

    def __init__(self, pool: BufferPool, memory: NDArray[np.uint8]) -> None:
        self._pool = pool
        self._memory = memory

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__

    def __del__(self) -> None:
        self._pool.release(self._memory)
