"""Finds the samples of a split by the file names that another program stored."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from udkd.utils.errors import DataError
from udkd.utils.printable import shorten

_SHOWN = 3  # names in an error

_Parts = tuple[str, ...]


def find_samples(names: Sequence[str], sources: Sequence[str], origin: str) -> NDArray[np.int64]:
    """The ids of the samples with these file names, int64 [len(names)]; -1 where a name is no sample's.

    sources: the samples' names in id order, `class/name`. origin: of the names, for errors.
    A whole name is preferred. Otherwise one path must end with the other (`/data/train/cat/1.jpg` and `1.jpg` are `cat/1.jpg`),
    or have all its folders in order, and more (`train/n01443537/images/x.JPEG` is `n01443537/x.JPEG`).
    Raises DataError for names that fit several samples.
    """
    by_path, by_file = _index(sources)
    ids = np.full(len(names), -1, np.int64)
    ambiguous = []
    for row, name in enumerate(names):
        parts = _parts(name)
        matches = by_path.get(parts, ())
        if not matches and parts:
            matches = _best(parts, ((sample_id, _parts(sources[sample_id])) for sample_id in by_file.get(parts[-1], ())))
        if len(matches) == 1:
            ids[row] = matches[0]
        elif matches:
            ambiguous.append(f"{name} ({', '.join(sources[sample_id] for sample_id in matches[:2])})")
    if ambiguous:
        raise DataError(
            f"{origin}: {len(ambiguous):,} of {len(names):,} names fit several samples: {shown(ambiguous)}; "
            "expected names that fit one; write the class folder before each name, or give ids"
        )
    return ids


def shown(names: Sequence[str]) -> str:
    """The first names of a list, for an error."""
    return ", ".join(shorten(name) for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _index(sources: Iterable[str]) -> tuple[dict[_Parts, list[int]], dict[str, list[int]]]:
    """The ids by whole path, and by file name."""
    by_path: dict[_Parts, list[int]] = defaultdict(list)
    by_file: dict[str, list[int]] = defaultdict(list)
    for sample_id, source in enumerate(sources):
        parts = _parts(source)
        by_path[parts].append(sample_id)
        by_file[parts[-1] if parts else ""].append(sample_id)
    return by_path, by_file


def _parts(name: str) -> _Parts:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _best(parts: _Parts, candidates: Iterable[tuple[int, _Parts]]) -> list[int]:
    """The candidates whose path ends like `parts`; else those with the same folders and others in between."""
    candidates = list(candidates)
    ends_alike = [sample_id for sample_id, other in candidates if _ends_alike(parts, other)]
    return ends_alike or [sample_id for sample_id, other in candidates if _within(parts, other) or _within(other, parts)]


def _ends_alike(a: _Parts, b: _Parts) -> bool:
    length = min(len(a), len(b))
    return a[-length:] == b[-length:]


def _within(short: _Parts, long: _Parts) -> bool:
    """Whether `long` has all parts of `short`, in order."""
    rest = iter(long)
    return all(part in rest for part in short)
