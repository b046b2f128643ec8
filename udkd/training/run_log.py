"""RUN/train.log: the notes of a run, each with its time."""

import os
from datetime import datetime
from pathlib import Path
from typing import TextIO

from udkd.utils.printable import printable
from udkd.utils.progress import Observer


class RunLog:
    """An observer that passes everything on to another, and appends the notes to RUN/train.log once that is opened."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._early: list[str] = []
        self._file: TextIO | None = None

    def open(self, folder: Path) -> None:
        """Begin to write, with the notes so far. A note says so if it cannot be written; training continues."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(folder / "train.log", flags, 0o666)
            self._file = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")
            self._file.writelines(self._early)
            self._file.flush()
        except OSError as error:
            self._fail(error)

    def write(self, line: str) -> None:
        """Append a line to the file only."""
        text = f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {printable(line)}\n"
        try:
            if self._file is None:
                self._early.append(text)
            elif not self._file.closed:
                self._file.write(text)
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Close the file; later notes are only passed on."""
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._observer.note(f"train.log cannot be written ({error.strerror or error}); training continues")

    def start(self, task: str, total: int, unit: str) -> None:
        """See udkd.utils.progress.Observer."""
        self._observer.start(task, total, unit)

    def advance(self, count: int, **fields: float | str) -> None:
        """See udkd.utils.progress.Observer."""
        self._observer.advance(count, **fields)

    def finish(self) -> None:
        """See udkd.utils.progress.Observer."""
        self._observer.finish()

    def note(self, line: str) -> None:
        """See udkd.utils.progress.Observer."""
        self._observer.note(line)
        self.write(line)
