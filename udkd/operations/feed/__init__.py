"""What backends feed a device with: work in threads, memory that is used again, copies ahead of their use."""

from udkd.operations.feed.buffers import BufferPool, require_room
from udkd.operations.feed.host_feed import AHEAD_BYTES, HostFeed, samples_per_part
from udkd.operations.feed.threads import Work, chunks, in_threads, num_threads

__all__ = [
    "AHEAD_BYTES",
    "BufferPool",
    "HostFeed",
    "Work",
    "chunks",
    "in_threads",
    "num_threads",
    "require_room",
    "samples_per_part",
]
