"""What a source of images is, and its listing, which is compact: it is there for every image of a set at once."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar, overload

from udkd.utils.string_column import StringColumnBuilder

SplitName = Literal["train", "val"]
SourceSplit = Literal["train", "val", "test"]  # what a source may hold: of these a dataset folder has the first two
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source, before anyone has looked at its bytes.

    split: None where the source has no splits of its own; images of `test` are listed, too, and mostly left out.
    class_name, name: the class folder, and the path inside it; together unique within a split.
    key: the source's own name of it. offset, size: where its bytes lie in a container (bytes; offset 0 for plain files).
    stamp: changes when the bytes may have changed (modification time in ns), so that a resumed conversion looks again.
    """

    split: SourceSplit | None
    class_name: str
    name: str
    key: str
    offset: int
    size: int
    stamp: int


class Categorical(Generic[Value]):
    """A column of a few different values, each kept once. values: in the order of their first use. codes: one per row."""

    def __init__(self, code: Literal["b", "i"]) -> None:
        self.values: list[Value] = []
        self.codes = array(code)
        self._code_of: dict[Value, int] = {}

    def append(self, value: Value) -> None:
        """Add one row."""
        code = self._code_of.setdefault(value, len(self.values))
        if code == len(self.values):
            self.values.append(value)
        self.codes.append(code)

    def __getitem__(self, n: int) -> Value:
        return self.values[self.codes[n]]


class EntryTable(Sequence[Entry]):
    """Entries as columns, appended one by one: 44 bytes each and the letters of their names; as objects they took 430.

    Splits, classes, and what keys hold before the name, are few and kept once.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.splits: Categorical[SourceSplit | None] = Categorical("b")
        self.classes: Categorical[str] = Categorical("i")
        self._key_prefixes: Categorical[tuple[str, bool]] = Categorical("i")
        self._names = StringColumnBuilder()
        self._offsets, self._sizes, self._stamps = array("q"), array("q"), array("q")
        for entry in entries:
            self.append(entry)

    def append(self, entry: Entry) -> None:
        """Add one entry."""
        self.splits.append(entry.split)
        self.classes.append(entry.class_name)
        self._names.append(entry.name)
        with_name = entry.key.endswith(entry.name)
        self._key_prefixes.append((entry.key.removesuffix(entry.name) if with_name else entry.key, with_name))
        self._offsets.append(entry.offset)
        self._sizes.append(entry.size)
        self._stamps.append(entry.stamp)

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        n = range(len(self))[index]
        name = self._names[n]
        head, with_name = self._key_prefixes[n]
        return Entry(
            self.splits[n],
            self.classes[n],
            name,
            head + name if with_name else head,
            self._offsets[n],
            self._sizes[n],
            self._stamps[n],
        )

    def __iter__(self) -> Iterator[Entry]:
        return (self[n] for n in range(len(self)))

    def name(self, n: int) -> str:
        """The name of entry n alone."""
        return self._names[n]


OTHER_FILES = "other files"
TEST_IMAGES = "images of a test split"


class Skipped:
    """What a source holds beside the images that are taken: per reason how many files, and the name that comes first."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}
        for name in names:
            self.append(name)

    def append(self, name: str, reason: str = OTHER_FILES, count: int = 1) -> None:
        """Add one name, or the first of several. reason: a plural noun, such as `other files`."""
        before, example = self.reasons.get(reason, (0, name))
        self.reasons[reason] = (before + count, min(example, name))

    def extend(self, other: "Skipped") -> None:
        """Add what another counted."""
        for reason, (count, name) in other.reasons.items():
            self.append(name, reason, count)

    @property
    def count(self) -> int:
        """Files in all."""
        return sum(count for count, _ in self.reasons.values())


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a source, in any order, and what was passed over.

    sequential: reading in another order than that of the listing is slow, so ids follow the listing (of all sources).
    hint: the split that the names of the source and of the folders around its classes tell of, where entries have none.
    unclear: what looks like validation images but was not understood as such; empty where nothing does.
    perhaps: what may be or tell of validation images but is not read, and what to do about it; empty where nothing may.
    remarks: what else is worth a warning.
    """

    entries: EntryTable = field(default_factory=EntryTable)
    skipped: Skipped = field(default_factory=Skipped)
    sequential: bool = False
    split_hint: SourceSplit | None = None
    unclear_val: str = ""
    val_advice: str = ""
    warnings: tuple[str, ...] = ()


class Source(Protocol):
    """Lists its images once and reads them by entry. Picklable: workers in other processes read from a copy."""

    @property
    def path(self) -> Path:
        """What the user named."""

    def list(self) -> Listing:
        """All images. Raises DataError where the source is damaged or holds what it must not."""

    def read(self, entry: Entry) -> bytes:
        """The bytes of one image. Raises OSError, and BadImage where it is known that there is none."""
