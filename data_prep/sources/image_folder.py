"""What trees and tars of class folders share: their files by name become a listing."""

from array import array
from collections.abc import Mapping
from pathlib import Path

from data_prep.sources.ground_truth import Truth, choose
from data_prep.sources.layout import arrange, is_test_list, looks_like_val, no_image
from data_prep.sources.source import Entry, EntryTable, Listing, Skipped
from udkd.utils.string_column import StringColumnBuilder


class Names:
    """Files by name, one after the other, and the ground truths among them.

    source: for errors. root: the source's own name. truth: the ground truth that the user named.
    """

    def __init__(self, source: Path, root: str, *, splits: bool, truth: Truth | None) -> None:
        self._source, self._root, self._splits = source, root, splits
        self._named_truth, self._truths, self._used = truth, dict[str, Truth](), ""
        self._names, self._numbers = StringColumnBuilder(), array("q")
        self._ignored, self._unclear, self._perhaps = Skipped(), "", ""
        self._remarks: list[str] = []

    def add(self, name: str, *, offset: int, size: int, stamp: int) -> None:
        """An image."""
        self._names.append(name)
        self._numbers.extend((offset, size, stamp))

    def pass_over(self, name: str, reason: str = "") -> None:
        """A file that is none."""
        self._ignored.append(name, reason or no_image(name))
        if not self._unclear and looks_like_val(name):
            self._unclear = f"{name} ({reason})" if reason else name
        if not self._perhaps and is_test_list(name):
            self._perhaps = (
                f"{name} may say which images validate, but lists are not read: sort them into val/<class>/, or give "
                "--hold-out PERCENT if it does not"
            )

    def remark(self, text: str) -> None:
        """What else is worth a warning."""
        self._remarks.append(text)

    def add_truth(self, truth: Truth, name: str = "") -> None:
        """What may be a ground truth. name: as the source has it, empty for a file beside the source."""
        self._truths[name] = truth

    def listing(self) -> Listing:
        """All of it. Errors: see `arrange`."""
        paths = self._names.finish()
        found = arrange(paths, self._root, source=str(self._source), splits=self._splits, truth=self._truth)
        entries = EntryTable()
        for n, place in enumerate(found.places):
            if isinstance(place, str):
                self._ignored.append(paths[n], place)
            else:
                offset, size, stamp = self._numbers[3 * n : 3 * n + 3]
                entries.append(Entry(*place, key=paths[n], offset=offset, size=size, stamp=stamp))
        for name in self._truths:
            if name and name != self._used:
                self.pass_over(name)
        unclear = found.unclear or self._unclear
        perhaps = found.perhaps or self._perhaps
        return Listing(
            entries=entries,
            ignored=self._ignored,
            hint=found.hint,
            unclear=unclear,
            perhaps=perhaps,
            remarks=(*found.remarks, *self._remarks),
        )

    def _truth(self) -> tuple[str, Mapping[str, str]] | None:
        truth = self._named_truth or choose(self._truths.values())
        if truth is None:
            return None
        self._used = next((name for name, other in self._truths.items() if other is truth), "")
        return truth.where, truth.classes()
