"""The protocol of a source of images, and its listing, which is compact as it holds all images of a dataset at once."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar, overload

from udkd.utils.string_column import StringColumnBuilder

SplitName = Literal["train", "val"]
SourceSplit = Literal["train", "val", "test"]  # splits of a source; a dataset folder has only the first two
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source, not read yet.

    split: None if the source has no splits. Images of `test` are listed too, and usually left out.
    class_name, name: the class folder, and the path inside it; together unique within a split.
    key: identifies the image or its container in the source. offset, size: of its bytes in a container (offset 0 for files).
    stamp: modification time in ns; a resumed conversion reads images with another stamp again.
    """

    split: SourceSplit | None
    class_name: str
    name: str
    key: str
    offset: int
    size: int
    stamp: int


class Categorical(Generic[Value]):
    """A column with few distinct values. values: distinct, in the order of first use. codes: index into values, one per row."""

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
    """Entries as columns: 44 bytes each plus the letters of their names, instead of 430 as objects.

    Splits, classes and key prefixes (keys without the name) have few distinct values, which are stored once.
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
        """The name of entry n."""
        return self._names[n]


OTHER_FILES = "other files"
TEST_IMAGES = "images of a test split"


class Skipped:
    """The skipped files of a source. reasons: reason to number of files and alphabetically first name."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}
        for name in names:
            self.append(name)

    def append(self, name: str, reason: str = OTHER_FILES, count: int = 1) -> None:
        """Add one name, or the first of `count`. reason: a plural noun, such as `other files`."""
        before, example = self.reasons.get(reason, (0, name))
        self.reasons[reason] = (before + count, min(example, name))

    def extend(self, other: "Skipped") -> None:
        """Add the files of another."""
        for reason, (count, name) in other.reasons.items():
            self.append(name, reason, count)

    @property
    def count(self) -> int:
        """Total number of files."""
        return sum(count for count, _ in self.reasons.values())


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a source, in any order, and the skipped files.

    sequential: reading in another order than that of the listing is slow, so ids keep it (for all sources).
    split_hint: split named by the source or by folders above its classes, for entries without a split.
    unclear_val: what looks like validation images but could not be read as such; may be empty.
    val_advice: what may be validation images or a list of them but is not read, and what to do; may be empty.
    warnings: further warnings.
    """

    entries: EntryTable = field(default_factory=EntryTable)
    skipped: Skipped = field(default_factory=Skipped)
    sequential: bool = False
    split_hint: SourceSplit | None = None
    unclear_val: str = ""
    val_advice: str = ""
    warnings: tuple[str, ...] = ()


class Source(Protocol):
    """Lists its images once and reads them by entry. Must be picklable: worker processes read from a copy."""

    @property
    def path(self) -> Path:
        """The path that the user named."""

    def list(self) -> Listing:
        """All images. Raises DataError if the source is damaged or invalid."""

    def read(self, entry: Entry) -> bytes:
        """The bytes of one image. Raises OSError, and BadImage if the image is known to be missing."""
