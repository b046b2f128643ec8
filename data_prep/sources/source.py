"""What a source of images is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

SplitName = Literal["train", "val"]
Names = list[str]


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source, before anyone has looked at its bytes.

    split: None where the source has no train and val of its own.
    class_name, name: the class folder, and the path inside it; together unique within a split.
    key: the source's own name of it. offset, size: where its bytes lie in a container (bytes; offset 0 for plain files).
    stamp: changes when the bytes may have changed (modification time in ns), so that a resumed conversion looks again.
    """

    split: SplitName | None
    class_name: str
    name: str
    key: str
    offset: int
    size: int
    stamp: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a source, in any order, and the names of what was passed over.

    sequential: reading in another order than that of the listing is slow, so ids follow the listing (of all sources).
    """

    entries: list[Entry]
    ignored: list[str]
    sequential: bool = False


class Source(Protocol):
    """Lists its images once and reads them by entry. Picklable: workers in other processes read from a copy."""

    @property
    def path(self) -> Path:
        """What the user named."""

    def list(self) -> Listing:
        """All images. Raises DataError where the source is damaged or holds what it must not."""

    def read(self, entry: Entry) -> bytes:
        """The bytes of one image. Raises OSError."""
