"""Finds the samples of a split by the file names that another program stored."""

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
    A path that ends with a whole source is that sample's: `/data/train/cat/1.jpg` is `cat/1.jpg`. Otherwise the source must
    end with the name (`1.jpg`), or one of them have all folders of the other, in order, and more between them
    (`train/n01443537/images/x.JPEG` is `n01443537/x.JPEG`).
    Raises DataError for names that fit several samples.
    """
    by_path = _Index("/".join(_parts(source)) for source in sources)
    by_file: _Index | None = None
    ids = np.full(len(names), -1, np.int64)
    ambiguous = []
    for row, name in enumerate(names):
        parts = _parts(name)
        endings = ("/".join(parts[first:]) for first in range(len(parts)))
        matches = next((found for ending in endings if (found := by_path.get(ending))), [])
        if not matches and parts:
            by_file = by_file or _Index(source.rpartition("/")[2] for source in sources)
            matches = _best(parts, [(sample_id, _parts(sources[sample_id])) for sample_id in by_file.get(parts[-1])])
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


class _Index:
    """The ids by text. Most texts have one id: a list for each would take as much memory as the texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._ids: dict[str, int | list[int]] = {}
        for sample_id, text in enumerate(texts):
            others = self._ids.setdefault(text, sample_id)
            if isinstance(others, list):
                others.append(sample_id)
            elif others != sample_id:
                self._ids[text] = [others, sample_id]

    def get(self, text: str) -> list[int]:
        ids = self._ids.get(text, [])
        return ids if isinstance(ids, list) else [ids]


def _parts(name: str) -> _Parts:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _best(parts: _Parts, candidates: Sequence[tuple[int, _Parts]]) -> list[int]:
    """The candidates whose path ends with `parts`; else those with the same folders and others in between."""
    longer = [sample_id for sample_id, other in candidates if other[-len(parts) :] == parts]
    return longer or [sample_id for sample_id, other in candidates if _within(parts, other) or _within(other, parts)]


def _within(short: _Parts, long: _Parts) -> bool:
    """Whether `long` has all parts of `short`, in order."""
    rest = iter(long)
    return all(part in rest for part in short)
