"""What there is to convert: every sample of both splits with its id and label, settled before a byte is decoded.

All of it lies in columns (see EntryTable): a listing takes 58 bytes an image and the letters of its name. While it
is made, the names of one class at a time are Python strings, for sorting.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from data_prep.classes import choose_classes, named, printable, utf8
from data_prep.prepare import Sample
from data_prep.sources import EntryTable, PassedOver, Source, SplitName
from udkd.formats.dataset import ClassName
from udkd.words.errors import DataError

SPLITS: tuple[SplitName, ...] = ("train", "val")
Rows = NDArray[np.int64]


class Samples(Sequence[Sample]):
    """A split's samples in id order: rows of the sources' listings, made into objects when they are asked for."""

    def __init__(self, listed: "_Listed", rows: Rows) -> None:
        self._listed = listed
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(self._listed, self._rows[index])
        return self._listed.sample(int(self._rows[index]))

    def __iter__(self) -> Iterator[Sample]:
        return (self._listed.sample(int(row)) for row in self._rows)


@dataclass(frozen=True, kw_only=True)
class Stock:
    """classes[i] is label i; samples["train"] and samples["val"] are in id order.

    That is by class, then by name; sources that are read in sequence keep their own order.
    """

    classes: tuple[ClassName, ...]
    samples: dict[str, Samples]
    warnings: list[str]


class _Listed:
    """The listings of all sources as one: row n is entry n - firsts[origin] of the source `origin`.

    labels: int32 [N], -1 for classes that were not chosen. splits: int8 [N], places in SPLITS, -1 for none.
    """

    def __init__(self, tables: Sequence[EntryTable], chosen: Sequence[str]) -> None:
        self._tables = tables
        self._label_of = {name: label for label, name in enumerate(chosen)}
        self._firsts = np.cumsum([0, *map(len, tables)])
        self.labels = np.concatenate([self._labels(table) for table in tables])
        self.splits = np.concatenate([self._splits(table) for table in tables])

    def _labels(self, table: EntryTable) -> NDArray[np.int32]:
        label = np.array([self._label_of.get(name, -1) for name in table.classes.values], dtype=np.int32)
        return label[np.frombuffer(table.classes.codes, dtype=np.int32)]

    def _splits(self, table: EntryTable) -> NDArray[np.int8]:
        place = np.array([-1 if name is None else SPLITS.index(name) for name in table.splits.values], dtype=np.int8)
        return place[np.frombuffer(table.splits.codes, dtype=np.int8)]

    def origin(self, row: int) -> int:
        """The source of a row."""
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def name(self, row: int) -> str:
        """The name of a row's entry."""
        origin = self.origin(row)
        return self._tables[origin].name(row - int(self._firsts[origin]))

    def sample(self, row: int) -> Sample:
        """A row as the sample that it becomes."""
        origin = self.origin(row)
        entry = self._tables[origin][row - int(self._firsts[origin])]
        return Sample(self._label_of[entry.class_name], printable(f"{entry.class_name}/{entry.name}"), origin, entry)


def take_stock(sources: Sequence[Source], *, classes: str, hold_out_percent: float | None) -> Stock:
    """List the sources, choose classes, set images aside for validation where asked, and number everything.

    Raises DataError: no images, no train or val and no hold-out, a class list that does not match, two images of one name.
    """
    tables, ignored, sequential = [], [], False
    for source in sources:
        listing = source.list()
        if not len(listing.entries):
            raise DataError(
                f"{source.path} holds no images in class folders; expected [train/|val/]<class>/<name>.jpg; "
                "check the path, or say what it is with --layout"
            )
        tables.append(listing.entries)
        ignored.append(listing.ignored)
        sequential |= listing.sequential
    chosen = choose_classes((name for table in tables for name in table.classes.values), classes)
    listed = _Listed(tables, chosen)
    groups = _split(listed, sources, chosen, hold_out_percent)
    warnings = [*_passed_over(ignored), *_check_classes(listed, groups, chosen, hold_out_percent)]
    return Stock(
        classes=named(chosen),
        samples={name: _number(name, listed, rows, chosen, sources, sequential) for name, rows in groups.items()},
        warnings=warnings,
    )


def _passed_over(ignored: Sequence[PassedOver]) -> Iterator[str]:
    some = [each for each in ignored if each.count]
    if some:
        count, example = sum(each.count for each in some), printable(min(each.example for each in some))
        yield f"passed over {count:,} files that are no images in class folders, such as {example}"


def _split(
    listed: _Listed, sources: Sequence[Source], chosen: Sequence[str], hold_out_percent: float | None
) -> dict[str, Rows]:
    """The rows of each split, in the order of the listing."""
    wanted = listed.labels >= 0
    loose, train, val = (np.flatnonzero(wanted & (listed.splits == place)) for place in (-1, 0, 1))
    where = ", ".join(str(source.path) for source in sources)
    if len(loose) and (len(train) or len(val)):
        path = sources[listed.origin(int(loose[0]))].path
        raise DataError(f"{path} has no train/ and val/ folders, other sources have; expected one layout; convert them apart")
    if len(val) and hold_out_percent is not None:
        raise DataError(f"{where} holds val/ images already; expected none beside --hold-out; leave --hold-out away")
    if len(val) and not len(train):
        raise DataError(f"{where} holds val/ only; expected train/ images too; add the source that holds them")
    if len(val):
        return {"train": train, "val": val}
    if hold_out_percent is None:
        lacks = "train/ but no val/ images" if len(train) else "no train/ and val/ folders"
        raise DataError(
            f"{where} has {lacks}; expected both; add the source that holds them, "
            "or give --hold-out PERCENT to set that share of the images aside for validation"
        )
    rows = train if len(train) else loose
    percents = (_hash_percent(chosen[int(listed.labels[row])], listed.name(row)) for row in rows.tolist())
    held = np.fromiter(percents, dtype=np.float64, count=len(rows)) < hold_out_percent
    found = {"train": rows[~held], "val": rows[held]}
    for name, group in found.items():
        if not len(group):
            raise DataError(
                f"--hold-out {hold_out_percent:g} leaves {name} without images ({len(rows)} in all); change the percentage"
            )
    return found


def _hash_percent(class_name: str, name: str) -> float:
    """Uniform in [0, 100), a function of class and name alone: more images or another order move none to the other side."""
    digest = hashlib.sha256(utf8(f"{class_name}/{name}")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


def _check_classes(
    listed: _Listed, groups: Mapping[str, Rows], chosen: Sequence[str], hold_out_percent: float | None
) -> Iterator[str]:
    """What to warn of. Raises DataError for a val/ class that train/ lacks: most often val/ is a flat folder."""
    counts = {name: np.bincount(listed.labels[rows], minlength=len(chosen)) for name, rows in groups.items()}
    untrained, unvalidated = ([chosen[label] for label in np.flatnonzero(counts[name] == 0).tolist()] for name in SPLITS)
    if untrained and hold_out_percent is None:
        raise DataError(
            f"val/ holds {len(untrained)} classes that train/ lacks, such as {printable(untrained[0])}; "
            "expected val/<class>/ folders of the same names; sort the images into class folders or give --classes"
        )
    for lacking, what in ((untrained, "train"), (unvalidated, "val")):
        if lacking:
            yield f"{len(lacking)} of {len(chosen)} classes have no {what} image, such as {printable(lacking[0])}"


def _number(
    split: str, listed: _Listed, rows: Rows, chosen: Sequence[str], sources: Sequence[Source], sequential: bool
) -> Samples:
    """The split's samples, by class and name, or as they were listed. Raises DataError for a name that is there twice."""
    by_class = rows[np.argsort(listed.labels[rows], kind="stable")]
    ends = np.cumsum(np.bincount(listed.labels[rows], minlength=len(chosen)))
    for label, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
        names = [listed.name(row) for row in by_class[start:end].tolist()]
        order = sorted(range(len(names)), key=names.__getitem__)
        by_class[start:end] = by_class[start:end][order]
        for one, other in pairwise(order):
            if names[one] == names[other]:
                place = start + order.index(one)
                origins = [listed.origin(int(row)) for row in by_class[place : place + 2]]
                name = printable(f"{split}/{chosen[label]}/{names[one]}")
                raise DataError(
                    f"{name} is there twice, in {sources[origins[0]].path} and {sources[origins[1]].path}; "
                    "expected each image once; leave one source away"
                )
    return Samples(listed, rows if sequential else by_class)
