"""Builds the listing of a tree or a tar of class folders from its file names."""

from array import array
from collections.abc import Mapping
from pathlib import Path, PurePath

from udkd.data_prep.sources.address import Location
from udkd.data_prep.sources.ground_truth import (
    GroundTruth,
    choose_ground_truth,
    find_ground_truth,
    is_ground_truth_member,
    open_ground_truth,
)
from udkd.data_prep.sources.layout import is_image_path, is_test_list, looks_like_val, parse_paths, skip_reason
from udkd.data_prep.sources.source import Entry, EntryTable, Listing, Skipped
from udkd.data_prep.sources.table_check import Data, TableCheck, is_table_member
from udkd.utils.errors import DataError
from udkd.utils.string_column import StringColumnBuilder


class ListingBuilder:
    """Collects file names and ground truths, then builds the listing.

    source: path, for errors. root: name of the source. splits: False if all folders are classes.
    ground_truth: named by the user. trusted: True if the user chose the layout, so that tables are not compared.
    """

    def __init__(self, source: Location, root: str, *, splits: bool, ground_truth: GroundTruth | None, trusted: bool) -> None:
        self._source, self._root, self._splits = source, root, splits
        self._given_ground_truth, self._ground_truths, self._used = ground_truth, dict[str, GroundTruth](), ""
        self._names, self._numbers = StringColumnBuilder(), array("q")
        self._skipped, self._unclear_val, self._val_advice = Skipped(), "", ""
        self._warnings: list[str] = []
        self._trusted, self._tables = trusted, dict[str, Path | Data]()

    def add(self, name: str, *, offset: int, size: int, stamp: int) -> None:
        """Add an image. offset, size: bytes. stamp: see Entry."""
        self._names.append(name)
        self._numbers.extend((offset, size, stamp))

    def add_member(self, name: str, *, offset: int, size: int, stamp: int, read: Data) -> None:
        """Add a file of an archive: an image, a ground truth, a table, or one to skip. read: returns its bytes."""
        if is_image_path(name):
            self.add(name, offset=offset, size=size, stamp=stamp)
        elif is_ground_truth_member(name, size):
            self.add_ground_truth(GroundTruth(PurePath(name).name, f"{self._source}, {name}", read), name)
        elif is_table_member(name, size):
            self.add_table(name, read)
        else:
            self.skip(name)

    def add_ground_truth_beside(self) -> None:
        """Add the ground truth in the folder of a local archive, if there is one."""
        beside = find_ground_truth(self._source.parent) if isinstance(self._source, Path) else None
        if beside is not None:
            self.add_ground_truth(open_ground_truth(beside))

    def skip(self, name: str, reason: str = "") -> None:
        """Add a file that is not an image. reason: a plural noun; determined from the name if empty."""
        self._skipped.append(name, reason or skip_reason(name))
        if not self._unclear_val and looks_like_val(name):
            self._unclear_val = f"{name} ({reason})" if reason else name
        if not self._val_advice and is_test_list(name):
            self._val_advice = (
                f"{name} may list the validation images, but lists are not read: sort them into val/<class>/, or give "
                "--hold-out PERCENT if it does not"
            )

    def warn(self, text: str) -> None:
        """Add a warning to the listing."""
        self._warnings.append(text)

    def add_table(self, name: str, data: Path | Data) -> None:
        """Add a file that may be a table of paths and labels. It is not read as a source."""
        self._tables[name] = data
        self.skip(name)

    def add_ground_truth(self, ground_truth: GroundTruth, name: str = "") -> None:
        """Add a possible ground truth. name: its path in the source; empty for a file next to the source."""
        self._ground_truths[name] = ground_truth

    def listing(self, *, sequential: bool = False) -> Listing:
        """Build the listing. sequential: see Listing. Raises DataError: see `parse_paths`."""
        paths = self._names.finish()
        check = TableCheck({} if self._trusted else self._tables)
        try:
            parsed = parse_paths(
                paths, self._root, source=str(self._source), splits=self._splits, ground_truth=self._ground_truth
            )
        except DataError:
            if table := check.with_images(paths):
                raise DataError(
                    f"{self._source} holds no class folders, and the table {table} with labels of its images; expected class "
                    "folders in an archive; unpack it and name the table and the folder of the images"
                ) from None
            raise
        entries = EntryTable()
        for n, placement in enumerate(parsed.placements):
            if isinstance(placement, str):
                self._skipped.append(paths[n], placement)
            else:
                offset, size, stamp = self._numbers[3 * n : 3 * n + 3]
                entries.append(Entry(*placement, key=paths[n], offset=offset, size=size, stamp=stamp))
        for name in self._ground_truths:
            if name and name != self._used:
                self.skip(name)
        unclear_val = parsed.unclear_val or self._unclear_val
        val_advice = parsed.val_advice or self._val_advice
        return Listing(
            entries=entries,
            skipped=self._skipped,
            sequential=sequential,
            split_hint=parsed.split_hint,
            unclear_val=unclear_val,
            val_advice=val_advice,
            warnings=(*parsed.warnings, *self._warnings, *check.warnings(entries, self._source)),
        )

    def _ground_truth(self) -> tuple[str, Mapping[str, str]] | None:
        ground_truth = self._given_ground_truth or choose_ground_truth(self._ground_truths.values())
        if ground_truth is None:
            return None
        self._used = next((name for name, other in self._ground_truths.items() if other is ground_truth), "")
        return ground_truth.where, ground_truth.classes()
