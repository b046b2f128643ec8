"""The teacher cache: what a teacher says about (sample, view), exact, verified and safe against a crash.

A cache is a folder with one file per view (view_file.py has the format), each with the whole key (key.py), and a note of how
many views there have been (record.py).
"""

from udkd.formats.cache.key import CacheKey, Differing, Remedy, differences
from udkd.formats.cache.reader import MAKERS, Cache, strays, verify
from udkd.formats.cache.summary import CacheSummary, summarise, weight_histogram
from udkd.formats.cache.tables import DeviceTable, TargetTable
from udkd.formats.cache.writer import CacheWriter, Share, ViewWriter, join_view

__all__ = [
    "MAKERS",
    "Cache",
    "CacheKey",
    "CacheSummary",
    "CacheWriter",
    "DeviceTable",
    "Differing",
    "Remedy",
    "Share",
    "TargetTable",
    "ViewWriter",
    "differences",
    "join_view",
    "strays",
    "summarise",
    "verify",
    "weight_histogram",
]
