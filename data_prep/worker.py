"""A worker process: `python -m udkd.data_prep.worker DESCRIPTOR`. It receives jobs and their tasks over one socket.

When the parent dies for any reason, the next read or write on the socket fails and the worker exits.
"""

import contextlib
import queue
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from udkd.utils.errors import UserError


def serve(connection: Connection) -> None:
    """Answer each (number, task) with (number, result, None) or (number, None, failure). (None, job) sets the job.

    A thread receives, so that the parent can always send: tasks may be larger than the buffer of the socket, and a worker that
    waits to send its result while the parent waits to send a task would wait forever.
    """
    received: queue.SimpleQueue[tuple[Any, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, received), daemon=True).start()
    while (message := received.get()) is not None:
        number, task = message
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
            failure = ("user", ("a worker ran out of memory; expected enough for one image each; use fewer --workers",))
        except Exception:
            failure = ("bug", (traceback.format_exc(),))
        connection.send((number, result, failure))


def _receive(connection: Connection, received: "queue.SimpleQueue[tuple[Any, Any] | None]") -> None:
    try:
        with contextlib.suppress(EOFError, OSError):
            while True:
                received.put(connection.recv())
    finally:  # also after a task that cannot be unpickled, or for which there is no memory
        received.put(None)


def main() -> None:
    """Serve until the parent closes the socket."""
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
