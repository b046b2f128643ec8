"""The teacher cache: what a teacher says about (sample, view), exact, verified and safe against a crash.

A cache is a folder with one file per view (view_file.py has the format), each with the whole key (key.py).
"""

from udkd.formats.cache.key import CacheKey
from udkd.formats.cache.reader import Cache, TargetTable, verify
from udkd.formats.cache.summary import CacheSummary, summarise, weight_histogram
from udkd.formats.cache.writer import CacheWriter, ViewWriter

__all__ = [
    "Cache",
    "CacheKey",
    "CacheSummary",
    "CacheWriter",
    "TargetTable",
    "ViewWriter",
    "summarise",
    "verify",
    "weight_histogram",
]
