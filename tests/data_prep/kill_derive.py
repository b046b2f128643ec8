"""Forks derive commands, kills them, and inspects the files on disk. Prints the result of each kill as JSON.

Forking pays the imports once, the workers' too. The kills from inside come before and after each fsync and rename of the
packing process; those from outside at random times, when workers may be at work too.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from tests.forks import die_at, forked
from udkd.data.dataset import DatasetFolder
from udkd.data.derived import DERIVED
from udkd.data_prep import pool
from udkd.data_prep.formats import WRITERS, derive_formats
from udkd.data_prep.verify import verify
from udkd.data_prep.worker import serve
from udkd.utils.progress import Silent

OUTSIDE = 2
CALLS_AT_MOST = 10
CALLS = os.fsync, os.replace


class Forked:
    """The interface of subprocess.Popen that the pool uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start_worker() -> tuple[Connection, Forked]:
    """Forks a worker instead of starting a new interpreter, which takes half a second of imports."""
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.fsync, os.replace = CALLS  # the packing process is killed, not its workers
        with contextlib.suppress(EOFError, OSError):
            serve(theirs)
        os._exit(0)
    theirs.close()
    return ours, Forked(pid)


def derive(folder: Path, name: str, call: int | None, after: bool) -> None:
    """call, after: where to die."""
    if call is not None:
        die_at(call, after)
    derive_formats(DatasetFolder.open(folder), [name], workers=1, observer=Silent())


def look(folder: Path, name: str, child: int) -> dict[str, object]:
    """Exit code, files and problems after a kill. described: the files of splits whose format is intact."""
    _, status = os.waitpid(child, 0)
    dataset = DatasetFolder.open(folder)
    intact = [split for split in dataset.splits.values() if split.has(name) and not list(WRITERS[name].problems(split))]
    patterns = (DERIVED[name].description, *DERIVED[name].data)
    described = [path for split in intact for pattern in patterns for path in split.path.glob(pattern)]
    return {
        "code": os.waitstatus_to_exitcode(status),
        "files": [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()],
        "described": [str(path.relative_to(folder)) for path in described],
        "problems": verify(folder, Silent()),
    }


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    WRITERS[name].require()
    pool._start = start_worker  # type: ignore[assignment]
    rng = random.Random(0)
    attempts = []
    for call in range(1, CALLS_AT_MOST):
        attempts.append(look(folder, name, forked(derive, folder, name, call, call % 2 == 0)))
        if attempts[-1]["code"] == 0:
            break
    for _ in range(OUTSIDE):
        child = forked(derive, folder, name, None, False)
        time.sleep(rng.uniform(0.01, 0.4))
        os.kill(child, signal.SIGKILL)
        attempts.append(look(folder, name, child))
    print(json.dumps(attempts), flush=True)


if __name__ == "__main__":
    main()
