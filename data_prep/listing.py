"""Lists the samples to convert, with their ids and labels, before any image is decoded.

Samples are stored in columns (see EntryTable): 58 bytes per image plus its name. For sorting, the names of one class at a time
become Python strings.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from udkd.data.header import ClassName
from udkd.data_prep.class_names import ClassNames, order_warning, rename_classes, require_named
from udkd.data_prep.classes import choose_classes, escape_name, label_classes, name_bytes, similar_names
from udkd.data_prep.prepare import Sample
from udkd.data_prep.sources import (
    ARCHIVES,
    OTHER_FILES,
    TEST_IMAGES,
    UNREAD,
    EntryTable,
    Listing,
    Skipped,
    Source,
    SourceSplit,
    SplitName,
    identify_unread,
    single_split_in,
)
from udkd.data_prep.sources.address import Address, is_file, names_of
from udkd.utils.errors import DataError

SPLITS: tuple[SplitName, ...] = ("train", "val")
SOURCE_SPLITS: tuple[SourceSplit, ...] = ("train", "val", "test")
UNCHOSEN = "images of classes that --classes leaves out"
READ_SUFFIXES = (".tar", ".zip", ".parquet", ".beton", ".ffcv")
Rows = NDArray[np.int64]


class Samples(Sequence[Sample]):
    """The samples of a split in id order: rows of the sources' listings, which become objects on access."""

    def __init__(self, entries: "_AllEntries", rows: Rows) -> None:
        self._entries = entries
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(self._entries, self._rows[index])
        return self._entries.sample(int(self._rows[index]))

    def __iter__(self) -> Iterator[Sample]:
        return (self._entries.sample(int(row)) for row in self._rows)


@dataclass(frozen=True, kw_only=True)
class SampleListing:
    """The samples to convert. classes[i] is the class of label i. samples["train"] and samples["val"] are in id order.

    Ids are sorted by class, then by name; sequential sources keep the order of their listing. warnings: lines for the user.
    """

    classes: tuple[ClassName, ...]
    samples: dict[str, Samples]
    warnings: list[str]
    skipped: Skipped


class _AllEntries:
    """The listings of all sources as one: row n is entry n - firsts[i] of source i.

    labels: int32 [N], -1 for classes that were not chosen. splits: int8 [N], indices into SOURCE_SPLITS, -1 for none.
    """

    def __init__(self, tables: Sequence[EntryTable], splits: Sequence[NDArray[np.int8]], chosen: Sequence[str]) -> None:
        self._tables = tables
        self._label_of = {name: label for label, name in enumerate(chosen)}
        self._firsts = np.cumsum([0, *map(len, tables)])
        self.labels = np.concatenate([self._labels(table) for table in tables])
        self.splits = np.concatenate(splits)

    def _labels(self, table: EntryTable) -> NDArray[np.int32]:
        label = np.array([self._label_of.get(name, -1) for name in table.classes.values], dtype=np.int32)
        return label[np.frombuffer(table.classes.codes, dtype=np.int32)]

    def source_index(self, row: int) -> int:
        """The index of the source that a row belongs to."""
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def name(self, row: int) -> str:
        """The file name of sample `row` in its source, without the class."""
        source_index = self.source_index(row)
        return self._tables[source_index].name(row - int(self._firsts[source_index]))

    def path(self, row: int) -> str:
        """`class/name` of a row."""
        source_index = self.source_index(row)
        table, n = self._tables[source_index], row - int(self._firsts[source_index])
        return f"{table.classes[n]}/{table.name(n)}"

    def sample(self, row: int) -> Sample:
        """The sample of a row."""
        source_index = self.source_index(row)
        entry = self._tables[source_index][row - int(self._firsts[source_index])]
        return Sample(self._label_of[entry.class_name], escape_name(f"{entry.class_name}/{entry.name}"), source_index, entry)


def list_samples(
    sources: Sequence[Source],
    *,
    classes: str,
    hold_out_percent: float | None,
    test_validates: bool = False,
    class_names: ClassNames | None = None,
) -> SampleListing:
    """List the sources, choose classes, hold out validation images if requested, and assign ids.

    hold_out_percent: see ConvertSettings. test_validates: validate on the test split. Raises DataError if there are no images,
    if a split is missing without a hold-out, if the class list or the class names do not match, or if two images have the same
    name.
    """
    listings = [source.list() for source in sources]
    skipped = Skipped()
    for source, listing in zip(sources, listings, strict=True):
        skipped.extend(listing.skipped)
        if not len(listing.entries):
            raise DataError(_no_images_text(source, listing))
    readable, name_warnings = ({}, []) if class_names is None else rename_classes(listings, class_names)
    tables = [listing.entries for listing in listings]
    splits = _entry_splits(sources, listings, hold_out_percent)
    if test_validates:
        splits = [_test_for_val(sources, split) for split in splits]
    chosen = choose_classes(_class_names(tables, splits), classes, readable)
    if class_names is not None:
        require_named(chosen, readable, class_names)
        name_warnings += order_warning(chosen, class_names)
    entries = _AllEntries(tables, splits, chosen)
    groups = _split_rows(entries, sources, listings, chosen, hold_out_percent)
    test = entries.splits == SOURCE_SPLITS.index("test")
    for rows, reason in ((test, TEST_IMAGES), (~test & (entries.labels < 0), UNCHOSEN)):
        for row in np.flatnonzero(rows).tolist():
            skipped.append(entries.path(row), reason)
    warnings = [*(warning for listing in listings for warning in listing.warnings), *name_warnings]
    warnings += [*_skipped_warning(skipped), *_check_classes(entries, groups, chosen, hold_out_percent)]
    sequential = any(listing.sequential for listing in listings)
    return SampleListing(
        classes=label_classes(chosen, readable),
        samples={name: _sorted_samples(name, entries, rows, chosen, sources, sequential) for name, rows in groups.items()},
        warnings=warnings,
        skipped=skipped,
    )


def _no_images_text(source: Source, listing: Listing) -> str:
    kind = identify_unread(source.path) if isinstance(source.path, Path) else None
    text = f"{source.path} holds no images in class folders; expected [train/|val/]<class>/<name>.jpg; "
    others = listing.skipped.reasons
    if is_file(source.path) and others and others.keys() <= {UNREAD, ARCHIVES, OTHER_FILES}:
        remedy = (
            "; unpack it and name the files inside"
            if any(_is_container(name, why) for why, (_, name) in others.items())
            else ""
        )
        found = ", ".join(f"{n:,} {why} (such as {escape_name(name)})" for why, (n, name) in others.items())
        return f"{text}it holds {found}{remedy}"
    if kind is None:
        return text + "check the path, or name the layout with --layout"
    return text + f"it holds {kind[0]}: {kind[1]}"


def _entry_splits(
    sources: Sequence[Source], listings: Sequence[Listing], hold_out_percent: float | None
) -> list[NDArray[np.int8]]:
    """The index of every entry's split in SOURCE_SPLITS, -1 for none.

    A source whose entries have no splits gets the split in its name; with --hold-out only if the names contain several splits.
    `test` alone is ignored then: a folder called `photos-test` may be the entire dataset.
    """
    splits = [_split_codes(listing.entries) for listing in listings]
    if hold_out_percent is not None and all((split == SOURCE_SPLITS.index("test")).all() for split in splits):
        return [np.full_like(split, -1) for split in splits]
    hints = [
        listing.split_hint or single_split_in(names_of(source.path)[-1])
        for source, listing in zip(sources, listings, strict=True)
    ]
    bare = [bool((split < 0).all()) for split in splits]
    named = {split_hint for split_hint, none in zip(hints, bare, strict=True) if none} | {
        SOURCE_SPLITS[code] for split in splits for code in np.unique(split).tolist() if code >= 0
    }
    by_parent = [single_split_in(names_of(source.path)[-2]) for source in sources]
    if all(bare) and all(is_file(source.path) for source in sources) and None not in by_parent and len(set(by_parent)) > 1:
        return [np.full_like(split, SOURCE_SPLITS.index(name)) for split, name in zip(splits, by_parent, strict=True) if name]
    if None in named or (len(named) < 2 and (hold_out_percent is not None or named == {"test"})):
        return splits
    return [
        np.full_like(split, SOURCE_SPLITS.index(split_hint)) if none and split_hint else split
        for split, split_hint, none in zip(splits, hints, bare, strict=True)
    ]


def _split_codes(table: EntryTable) -> NDArray[np.int8]:
    codes = np.array([-1 if name is None else SOURCE_SPLITS.index(name) for name in table.splits.values], dtype=np.int8)
    return codes[np.frombuffer(table.splits.codes, dtype=np.int8)]


def _test_for_val(sources: Sequence[Source], split: NDArray[np.int8]) -> NDArray[np.int8]:
    test, val = SOURCE_SPLITS.index("test"), SOURCE_SPLITS.index("val")
    if (split == val).any():
        where = ", ".join(str(source.path) for source in sources)
        raise DataError(f"{where} already holds val/ images; expected none with --val test; remove --val")
    return np.where(split == test, np.int8(val), split)


def _class_names(tables: Sequence[EntryTable], splits: Sequence[NDArray[np.int8]]) -> Iterator[str]:
    """The classes of all images that are not in a test split."""
    for table, split in zip(tables, splits, strict=True):
        codes = np.frombuffer(table.classes.codes, dtype=np.int32)[split != SOURCE_SPLITS.index("test")]
        yield from (table.classes.values[code] for code in np.unique(codes).tolist())


def _skipped_warning(skipped: Skipped) -> Iterator[str]:
    if skipped.count:
        parts = (
            f"{count:,} {reason} (such as {escape_name(example)})"
            for reason, (count, example) in sorted(skipped.reasons.items(), key=lambda item: (-item[1][0], item[0]))
        )
        yield f"skipped {skipped.count:,} files: {'; '.join(parts)}"


def _split_rows(
    entries: _AllEntries,
    sources: Sequence[Source],
    listings: Sequence[Listing],
    chosen: Sequence[str],
    hold_out_percent: float | None,
) -> dict[str, Rows]:
    """The rows of each split, in the order of the listing."""
    selected = entries.labels >= 0
    unsplit, train, val = (np.flatnonzero(selected & (entries.splits == code)) for code in (-1, 0, 1))
    where = ", ".join(str(source.path) for source in sources)
    if len(unsplit) and (len(train) or len(val)):
        sample = entries.sample(int(unsplit[0]))
        raise DataError(
            f"{sources[sample.source_index].path} holds images without a split, such as {sample.source}, and others are in "
            "train/ or val/; expected one layout; convert them separately, or name the folders that belong together"
        )
    if hold_out_percent == 100 and not len(train) and (len(val) or len(unsplit)):
        return {"val": val if len(val) else unsplit}  # a test set
    if len(val) and hold_out_percent is not None:
        raise DataError(f"{where} already holds val/ images; expected none with --hold-out; remove --hold-out")
    if len(val) and not len(train):
        examples = (each for listing in listings for each in listing.skipped.reasons.items())
        unread = [name for reason, (_, name) in examples if _may_train(name, reason)]
        also = f", and {escape_name(min(unread))} is not read" if unread else ""
        what = "name it, or its train folder, as another source" if unread else "add the source that holds them"
        raise DataError(f"{where} holds val/ only{also}; expected train/ images too; {what}")
    if len(val):
        return {"train": train, "val": val}
    rows = train if len(train) else unsplit
    if hold_out_percent is None or not len(rows):
        test = bool((entries.splits == SOURCE_SPLITS.index("test")).any())
        raise DataError(_no_val_text(sources, listings, train=bool(len(train)), test=test, unsplit=bool(len(unsplit))))
    percents = (_hash_percent(chosen[int(entries.labels[row])], entries.name(row)) for row in rows.tolist())
    held = np.fromiter(percents, dtype=np.float64, count=len(rows)) < hold_out_percent
    groups = {"train": rows[~held], "val": rows[held]}
    for name, group in groups.items():
        if not len(group):
            raise DataError(
                f"--hold-out {hold_out_percent:g} leaves {name} without images ({len(rows)} in total); change the percentage"
            )
    return groups


def _may_train(path: str, reason: str) -> bool:
    """Whether a skipped file may hold training images, such as a `train.tar` but not a `train.py`."""
    may_hold = reason == UNREAD or _is_container(path, reason)
    return may_hold and any(single_split_in(part) == "train" for part in path.split("/"))


def _is_container(path: str, reason: str) -> bool:
    return reason == ARCHIVES or path.lower().endswith(READ_SUFFIXES)


def _no_val_text(sources: Sequence[Source], listings: Sequence[Listing], *, train: bool, test: bool, unsplit: bool) -> str:
    """The error for a missing val split. It advises --hold-out only if nothing looks like validation images."""
    where = ", ".join(str(source.path) for source in sources)
    if test and not (train or unsplit):
        return f"{where} holds test/ only; expected train/ and val/ images; add the sources that hold them"
    lacks = "train/ but no val/ images" if train else "no train/ and val/ folders"
    hints = {
        listing.split_hint or single_split_in(names_of(source.path)[-1])
        for source, listing in zip(sources, listings, strict=True)
    }
    if not train and hints == {"test"}:
        return (
            f"{where} holds test/ only; expected train/ and val/ images; add the sources that hold them, or give "
            "--hold-out PERCENT if this is the entire dataset"
        )
    unclear_val = next((listing.unclear_val for listing in listings if listing.unclear_val), "")
    if unclear_val:
        return (
            f"{where} has {lacks} in class folders, but {escape_name(unclear_val)} looks like validation; expected "
            "val/<class>/, or a flat val/ with its ground truth (LOC_val_solution.csv, the devkit's tar.gz, "
            "val_annotations.txt); sort its images into class folders, or name its ground truth as another source"
        )
    beside = _val_beside(sources)
    if beside:
        return f"{where} has {lacks}; expected both; name {escape_name(str(beside))} too, which looks like validation"
    val_advice = next((listing.val_advice for listing in listings if listing.val_advice), "")
    if val_advice and not test:
        return f"{where} has {lacks}; expected both; {escape_name(val_advice)}"
    if test:
        return (
            f"{where} has train/ and test/ but no val/ images; expected validation images; give --val test to validate on "
            "test/, or add the source that holds val/"
        )
    beside = _test_beside(sources)
    if beside:
        return (
            f"{where} has {lacks}; expected both; name {escape_name(str(beside))} too and give --val test to use its images, "
            "or give --hold-out PERCENT to hold out that percentage of the images for validation"
        )
    return (
        f"{where} has {lacks}; expected both; add the source that holds them, "
        "or give --hold-out PERCENT to hold out that percentage of the images for validation"
    )


def _val_beside(sources: Sequence[Source]) -> Path | None:
    """A sibling of a train source that is named like its validation split."""
    for location in [source.path for source in sources if isinstance(source.path, Path)]:
        path = location.resolve()
        with contextlib.suppress(OSError):
            others = sorted(other for other in path.parent.iterdir() if single_split_in(other.name) == "val")
            siblings = [other for other in others if other.is_dir() or other.suffix in READ_SUFFIXES]
            siblings.sort(key=lambda other: other.is_dir() != path.is_dir())  # folders first for a folder, files for a file
            if siblings and single_split_in(path.name) == "train":
                return location.parent / siblings[0].name
    return None


def _test_beside(sources: Sequence[Source]) -> Path | None:
    """A test folder beside a train folder with some of the same class folders."""
    for location in [source.path for source in sources if isinstance(source.path, Path)]:
        path = location.resolve()
        with contextlib.suppress(OSError):
            classes = (
                {each.name for each in path.iterdir() if each.is_dir()} if single_split_in(path.name) == "train" else set()
            )
            for other in sorted(path.parent.iterdir() if classes else ()):
                if single_split_in(other.name) == "test" and any((other / name).is_dir() for name in classes):
                    return location.parent / other.name
    return None


def _hash_percent(class_name: str, name: str) -> float:
    """A hash of class and name, uniform in [0, 100). Adding or reordering images moves none to the other split."""
    digest = hashlib.sha256(name_bytes(f"{class_name}/{name}")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


def _check_classes(
    entries: _AllEntries, groups: Mapping[str, Rows], chosen: Sequence[str], hold_out_percent: float | None
) -> Iterator[str]:
    """Warnings about classes. Raises DataError if train/ lacks a class of val/, which usually means that val/ is flat."""
    counts = {name: np.bincount(entries.labels[rows], minlength=len(chosen)) for name, rows in groups.items()}
    without_train, without_val = (
        [chosen[label] for label in np.flatnonzero(counts[name] == 0).tolist()] if name in counts else [] for name in SPLITS
    )
    pairs = similar_names(chosen)
    if without_train and hold_out_percent is None:
        name = without_train[0]
        twin = next((b if a == name else a for a, b, _ in pairs if name in (a, b)), None)
        remedy = "expected val/<class>/ folders of the same names; sort the images into class folders or give --classes"
        if twin is not None:
            difference = next(difference for a, b, difference in pairs if {a, b} == {name, twin})
            remedy = f"it differs only in {difference} from train/'s {twin!a}; expected the same names; rename one"
        shown = escape_name(name) if twin is None else ascii(name)
        raise DataError(f"val/ holds {len(without_train)} classes that train/ lacks, such as {shown}; {remedy}")
    for lacking, what in ((without_train, "train"), (without_val, "val")):
        if lacking:
            yield f"{len(lacking)} of {len(chosen)} classes have no {what} image, such as {escape_name(lacking[0])}"
    for first, second, difference in pairs[:3]:
        yield f"the classes {first!a} and {second!a} differ only in {difference}; they stay two classes"
    if len(chosen) == 1:
        yield (
            f"all images are in one class, {escape_name(chosen[0])}: there is nothing to distinguish; most often the source is "
            "the wrong level of folders"
        )


def _location(sample: Sample, sources: Sequence[Source]) -> str:
    """The path of a sample in messages: its source, and for a folder the file in it."""
    path = sources[sample.source_index].path
    return str(path) if isinstance(path, Address) or path.is_file() else str(path / escape_name(sample.entry.key))


def _sorted_samples(
    split: str, entries: _AllEntries, rows: Rows, chosen: Sequence[str], sources: Sequence[Source], sequential: bool
) -> Samples:
    """The samples of a split, by class and name, or in the order of the listing. Raises DataError for a duplicate name."""
    by_class = rows[np.argsort(entries.labels[rows], kind="stable")]
    ends = np.cumsum(np.bincount(entries.labels[rows], minlength=len(chosen)))
    for label, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
        names = [entries.name(row) for row in by_class[start:end].tolist()]
        order = sorted(range(len(names)), key=names.__getitem__)
        by_class[start:end] = by_class[start:end][order]
        for first, second in pairwise(order):
            if names[first] == names[second]:
                position = start + order.index(first)
                paths = [_location(entries.sample(int(row)), sources) for row in by_class[position : position + 2]]
                name = escape_name(f"{split}/{chosen[label]}/{names[first]}")
                raise DataError(
                    f"{name} exists twice, in {' and '.join(sorted(paths))}; expected each image once; remove the copy, "
                    "or rename one if they are two images"
                )
    return Samples(entries, rows if sequential else by_class)
