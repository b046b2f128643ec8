"""The protocol of a source of images, and its listing, which is compact because it describes all images of a dataset."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar, overload, runtime_checkable

from udkd.data_prep.sources.address import Location
from udkd.utils.string_column import StringColumnBuilder

SplitName = Literal["train", "val"]
SourceSplit = Literal["train", "val", "test"]  # splits of a source; a dataset folder has only the first two
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source, not read yet.

    split: None if the source has no splits. Images of `test` are listed too, but usually not converted.
    class_name, name: the class folder and the path inside it; together they are unique within a split.
    key: identifies the image or its container in the source. offset, size: position and number of its bytes in the container.
    stamp: modification time in ns, or a checksum; a resumed conversion reads an image again if its stamp has changed.
    """

    split: SourceSplit | None
    class_name: str
    name: str
    key: str
    offset: int
    size: int
    stamp: int


class Categorical(Generic[Value]):
    """A column with few distinct values. values: the distinct values, by first use. codes: an index into values per row."""

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
    """Entries in columns: 44 bytes each plus their names, instead of 430 as objects.

    Splits, classes and key prefixes (keys without the name) have few distinct values, each of which is stored once.
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
    """The skipped files of a source. reasons: the number of files and the alphabetically first name, by reason."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}
        for name in names:
            self.append(name)

    def append(self, name: str, reason: str = OTHER_FILES, count: int = 1) -> None:
        """Add a file, or `count` files of which `name` is the first. reason: a plural noun, such as `other files`."""
        before, example = self.reasons.get(reason, (0, name))
        self.reasons[reason] = (before + count, min(example, name))

    def extend(self, other: "Skipped") -> None:
        """Add the skipped files of another source."""
        for reason, (count, name) in other.reasons.items():
            self.append(name, reason, count)

    @property
    def count(self) -> int:
        """The total number of files."""
        return sum(count for count, _ in self.reasons.values())


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a source, in any order, and the skipped files.

    sequential: reading is slow in any other order, so the ids of all sources keep the order of the listing.
    split_hint: a split in the name of the source or of a folder above its classes, for entries without a split.
    unclear_val: a file or folder that looks like validation images but could not be read as such; may be empty.
    val_advice: what to do about a file or folder that may hold or list validation images but is not read; may be empty.
    warnings: further warnings. labels: class name to class number, for classes that have only a number in the source.
    """

    entries: EntryTable = field(default_factory=EntryTable)
    skipped: Skipped = field(default_factory=Skipped)
    sequential: bool = False
    split_hint: SourceSplit | None = None
    unclear_val: str = ""
    val_advice: str = ""
    warnings: tuple[str, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)

    def class_of_label(self, label: int) -> str:
        """`class_name_of_label`, noted in `labels`."""
        name = class_name_of_label(label)
        self.labels[name] = label
        return name


def class_name_of_label(label: int) -> str:
    """The name of a class that has only a number, padded so that names sort like numbers."""
    return f"{label:04d}"


class Source(Protocol):
    """A source of images: `list` is called once, then `read` for each entry. Must be picklable: workers get a copy."""

    @property
    def path(self) -> Location:
        """The path or the address that the user named."""

    def list(self) -> Listing:
        """All images. Raises DataError if the source is damaged or invalid."""

    def read(self, entry: Entry) -> bytes:
        """The bytes of one image. Raises OSError, and BadImage if the image is known to be missing."""


@runtime_checkable
class StreamSource(Source, Protocol):
    """A source whose images can only be read in the order of its listing. They are read in one process."""

    def read_in_order(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """The bytes of each entry; the entries are taken one by one. Raises DataError."""
