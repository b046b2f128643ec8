"""How long to wait for what must not hang, on this machine and under its load: no passing test waits that long.

A limit guards against waiting for ever and asserts nothing about speed: `scaled(60)` is a minute on a quiet machine like
the one the expectation was measured on, and as many times longer as this one is slower and busier.
"""

import hashlib
import os
import time
from collections.abc import Callable

EXPECTED_S = 0.2  # of `_work` on a core of an AMD EPYC
SLOWNESS = "UDKD_TESTS_SLOWNESS"
"""Where the measurement is kept for all that the session starts."""


def scaled(seconds: float) -> float:
    """`seconds` for this machine: times its slowness, as measured once, and its load per core at this moment."""
    return seconds * (slowness() + os.getloadavg()[0] / (os.cpu_count() or 1))


def slowness() -> float:
    """How many times longer than expected a fixed piece of work takes here, at least 1; measured once in a session."""
    if SLOWNESS not in os.environ:
        started = time.monotonic()
        _work()
        os.environ[SLOWNESS] = f"{max(1.0, (time.monotonic() - started) / EXPECTED_S):.2f}"
    return float(os.environ[SLOWNESS])


def wait_until(there: Callable[[], object], seconds: float = 60, every_s: float = 0.01) -> bool:
    """Wait for a condition, for as long as `scaled` allows: whether it came."""
    end = time.monotonic() + scaled(seconds)
    while not (found := bool(there())) and time.monotonic() < end:
        time.sleep(every_s)
    return found


def _work() -> None:
    """Python's own integers and a checksum of memory."""
    sum(n * n % 7 for n in range(1_000_000))
    hashlib.sha256(bytes(64 << 20)).hexdigest()
