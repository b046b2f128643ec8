"""How many views a cache has been given, beside them in `views.json`: a view that is gone, the last one too, can be named.

Written before a view takes its final name, so no finished view is unrecorded. A cache without the file is as good as another;
the next build writes it. Its checksum covers the key: the record of another cache is as wrong as a flipped bit.
"""

import zlib
from pathlib import Path

from udkd.teacher.cache.key import CacheKey
from udkd.utils.errors import CacheError
from udkd.utils.files import json_bytes, read_regular, write_bytes
from udkd.utils.parsing import parse_json

VIEW_COUNT_FILE = "views.json"
MOST_VIEWS = 1_000_000
"""Of a cache: a view an epoch, and more than anyone trains. A number beyond it is damage, or an attack on memory."""

_MOST_BYTES = 4096


def write_view_count(folder: Path, key: CacheKey, count: int) -> None:
    """Remember that views 0 to count - 1 are finished or about to be. A larger count stays, a damaged one does not."""
    try:
        recorded = read_view_count(folder, key)
    except CacheError:
        recorded = 0
    if recorded < count:
        write_bytes(folder / VIEW_COUNT_FILE, _bytes(key, count))


def read_view_count(folder: Path, key: CacheKey) -> int:
    """How many views there have ever been; 0 where nothing is recorded. CacheError: a damaged or foreign record."""
    path = folder / VIEW_COUNT_FILE
    try:
        data = read_regular(path, _MOST_BYTES)
        count = parse_json(data)["views"]
        if type(count) is int and 0 <= count <= MOST_VIEWS and _bytes(key, count) == data:
            return count
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        pass
    raise CacheError(
        f"{path} is not the record of these views; expected how many there are, with its checksum; "
        "delete it: the next `udkd cache build` writes it again"
    )


def _bytes(key: CacheKey, count: int) -> bytes:
    return json_bytes({"views": count, "crc32": zlib.crc32(f"{count} {key.to_json()}".encode())})
