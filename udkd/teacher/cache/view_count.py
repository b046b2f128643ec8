"""`views.json`: how many views a cache has ever had, so that a missing view, even the last one, is noticed.

It is written before a view gets its final name, so that every finished view is counted. A cache without the file is valid;
the next build writes it. Its checksum covers the key, so that the file of another cache is refused.
"""

import zlib
from pathlib import Path

from udkd.teacher.cache.key import CacheKey
from udkd.utils.errors import CacheError
from udkd.utils.files import json_bytes, read_regular, write_bytes
from udkd.utils.parsing import parse_json

VIEW_COUNT_FILE = "views.json"
MAX_VIEWS = 1_000_000
"""Bound on a cache's views: one per epoch, more than any run trains. A larger number is damage, or an attack on memory."""

_MAX_BYTES = 4096


def write_view_count(folder: Path, key: CacheKey, count: int) -> None:
    """Record that views 0 to count - 1 are finished or about to be. A larger count is kept, a damaged file replaced."""
    try:
        stored = read_view_count(folder, key)
    except CacheError:
        stored = 0
    if stored < count:
        write_bytes(folder / VIEW_COUNT_FILE, _bytes(key, count))


def read_view_count(folder: Path, key: CacheKey) -> int:
    """How many views there have ever been; 0 where nothing is recorded. CacheError: a damaged file, or another cache's."""
    path = folder / VIEW_COUNT_FILE
    try:
        data = read_regular(path, _MAX_BYTES)
        count = parse_json(data)["views"]
        if type(count) is int and 0 <= count <= MAX_VIEWS and _bytes(key, count) == data:
            return count
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        pass
    raise CacheError(
        f"{path} does not belong to these views; expected their number, with its checksum; "
        "delete it: the next `udkd cache build` writes it again"
    )


def _bytes(key: CacheKey, count: int) -> bytes:
    return json_bytes({"views": count, "crc32": zlib.crc32(f"{count} {key.to_json()}".encode())})
