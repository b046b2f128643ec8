"""A prefetch thread with a bounded queue that forwards its exceptions."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_POLL_S = 0.2


class _End:
    """The last item in the queue. error: the exception that ended the work, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterator[Item], depth: int, stage: str, on_close: Callable[[], None] = lambda: None) -> Generator[Item]:
    """Yield `items`, of which a thread named `stage` computes up to `depth` ahead.

    An exception in `items` is raised here, after the items before it. Closing the generator early stops and joins the thread.
    on_close: called before the thread is joined, to end an item that waits for something else.
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
                items.close()  # in this thread, which releases its resources now
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
        on_close()
        thread.join()
