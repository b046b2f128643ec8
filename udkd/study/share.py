"""A study's runs shared among processes by number, as the tasks of a SLURM array or of a Kubernetes Indexed Job have one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from udkd.utils.errors import ConfigError
from udkd.utils.printable import shorten

_T = TypeVar("_T")
_MAX_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class Share:
    """Process `index` (from 0) of `count`: it trains the runs index, index + count, … of a plan."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of "I/N". Raises ConfigError."""
        parts = text.split("/")
        if len(parts) == 2 and all(part.isdecimal() and len(part) <= _MAX_DIGITS for part in parts):
            index, count = map(int, parts)
            if index < count:
                return cls(index=index, count=count)
        raise ConfigError(f"--share {shorten(text)!r}; expected I/N with I from 0 to N - 1, such as 0/4; correct it")

    @classmethod
    def all(cls, count: int) -> list[Self]:
        """The shares of `count` processes."""
        return [cls(index=index, count=count) for index in range(count)]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, items: Sequence[_T]) -> Sequence[_T]:
        """Its part of the items."""
        return items[self.index :: self.count]
