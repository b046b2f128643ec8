"""Work done ahead of its use, in one thread, bounded, with its failures forwarded."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_POLL_S = 0.2


class _End:
    """The last thing in the queue: the failure that ended the work, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(items: Iterator[Item], depth: int, stage: str) -> Generator[Item]:
    """Yield `items`, computed up to `depth` ahead in a thread named `stage`.

    An exception in `items` is raised here, after the items before it. Leaving the iterator early (break, close) stops the
    thread and waits for it, so nothing leaks.
    """
    ready: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Item | _End) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    break
        except BaseException as raised:
            error = raised
        finally:
            if isinstance(items, Generator):
                items.close()  # here and now, with all that it holds
            put(_End(error))

    thread = threading.Thread(target=work, name=stage, daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()
