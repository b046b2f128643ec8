"""Progress reporting: library code never prints, it calls an observer that the command line passes in."""

import math
from typing import Protocol


class Observer(Protocol):
    """Receives progress, one task at a time."""

    def start(self, task: str, total: int, unit: str) -> None:
        """A task of `total` units (images, steps) starts."""

    def advance(self, count: int, **fields: float | str) -> None:
        """`count` more units are done; `fields` are values to show next to the bar (losses, accuracy)."""

    def finish(self) -> None:
        """The task has ended."""

    def note(self, line: str) -> None:
        """Show a line to the user, such as which backend was chosen and why."""


class Silent:
    """An observer that shows nothing."""

    def start(self, task: str, total: int, unit: str) -> None:
        pass

    def advance(self, count: int, **fields: float | str) -> None:
        pass

    def finish(self) -> None:
        pass

    def note(self, line: str) -> None:
        pass


SILENT: Observer = Silent()


def duration(seconds: float) -> str:
    """A time for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
