"""What an open local or remote file is to a stream, and what tells that it is still the same file."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What tells that a file is still the same. size: bytes, None if unknown. tag: an ETag or such; empty if there is none."""

    size: int | None
    tag: str = ""

    def is_same(self, other: "Identity") -> bool:
        """Whether nothing that both know differs."""
        sizes, tags = {self.size, other.size} - {None}, {self.tag, other.tag} - {""}
        return len(sizes) < 2 and len(tags) < 2


class PassingError(Exception):
    """A fault that may pass, such as a dropped connection. wait_s: as asked for by the server."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class Connection(Protocol):
    """An open file, read from `position` on. ranges: whether another connection could begin at any byte."""

    identity: Identity
    position: int
    ranges: bool

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end. Raises PassingError and DataError."""

    def abort(self) -> None:
        """Let a read that waits in another thread fail now, where that is possible."""

    def close(self) -> None:
        """Close the connection."""
