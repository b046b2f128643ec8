"""A worker process: `python -m data_prep.worker DESCRIPTOR`. It gets a job, then tasks, over one socket; then another job.

Its end is the end of the socket: when its parent dies, however it dies, the next read or write fails and the worker goes.
"""

import contextlib
import sys
import traceback
from multiprocessing.connection import Connection

from udkd.utils.errors import UserError


def serve(connection: Connection) -> None:
    """Answer each task (number, task) with (number, result, None) or (number, None, failure). (None, job) says what to do."""
    while True:
        number, task = connection.recv()
        if number is None:
            job = task
            continue
        result: object = None
        failure: tuple[str, tuple[object, ...]] | None = None
        try:
            result = job(task)
        except UserError as error:
            failure = ("user", (str(error),))
        except OSError as error:
            failure = ("os", (error.errno, error.strerror or str(error), error.filename))
        except MemoryError:
            failure = ("user", ("a worker ran out of memory; expected room for one image each; use fewer --workers",))
        except Exception:
            failure = ("bug", (traceback.format_exc(),))
        connection.send((number, result, failure))


def main() -> None:
    """Serve until the parent is done with us, or gone."""
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
