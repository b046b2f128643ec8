"""Forks a build of a cache, kills it, and looks at what is on disk; 20 times, then lets one finish.

Half of the kills come from outside, a random moment after a random block, half from inside: in the middle of a write, before
or after an fsync, before or after a rename. Forking pays the imports once. Prints one JSON line: what each kill hit, and what
the builds wrote.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import udkd.teacher.cache.build as builder
from tests.forks import die_at, forked
from tests.teacher.cache_fixtures import recipe
from udkd.data.dataset import DatasetFolder
from udkd.teacher.cache.view_file import ViewFile
from udkd.teacher.folder import TeacherFolder
from udkd.utils.errors import CacheError
from udkd.utils.progress import Silent

KILLS = 20
VIEWS = 3
CALLS_AT_MOST = 14  # about as many writes, fsyncs and renames as a view takes


class ReportBlocks(Silent):
    """Writes a byte down a pipe for each block that is reported as done."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def advance(self, count: int, **fields: float | str) -> None:
        os.write(self._pipe, b".")


def blocks_on_disk(folder: Path) -> int:
    """Intact blocks of all views, finished or not."""
    intact = 0
    for path in sorted(folder.glob("view-*")):
        try:
            file = ViewFile(path)
        except CacheError:
            continue  # killed before its header was complete
        intact += file.header.num_blocks - len(file.damaged_blocks())
    return intact


def build(data: str, teacher: str, folder: Path, pipe: int, call: int | None, after: bool) -> None:
    """call, after: where to die."""
    if call is not None:
        die_at(call, after, ("pwrite", "fsync", "replace"))
    builder.build_cache(
        folder,
        dataset=DatasetFolder.open(Path(data)),
        teacher=TeacherFolder.open(Path(teacher)),
        recipe=recipe(VIEWS),
        device=torch.device("cpu"),
        observer=ReportBlocks(pipe),
    )


def attempt(data: str, teacher: str, folder: Path, rng: random.Random | None, inside: bool) -> dict[str, int]:
    """One build, killed where there is a `rng`: exit code, blocks reported, blocks on disk before and after."""
    before = blocks_on_disk(folder) if folder.is_dir() else 0
    call = rng.randint(1, CALLS_AT_MOST) if rng and inside else None
    reading, writing = os.pipe()
    child = forked(build, data, teacher, folder, writing, call, bool(rng and rng.random() < 0.5))
    os.close(writing)
    reported = 0
    if rng and not inside:
        for _ in range(rng.randint(0, 2)):
            reported += len(os.read(reading, 1))
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while piece := os.read(reading, 4096):
        reported += len(piece)
    os.close(reading)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "before": before, "reported": reported, "after": blocks_on_disk(folder) if folder.is_dir() else 0}


def main() -> None:
    data, teacher, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    builder.BLOCK_ROWS = 8
    torch.set_num_threads(1)
    rng = random.Random(4)
    attempts = [attempt(data, teacher, folder, rng, inside=number % 2 == 0) for number in range(KILLS)]
    attempts.append(attempt(data, teacher, folder, None, inside=False))
    print(json.dumps(attempts))


if __name__ == "__main__":
    main()
