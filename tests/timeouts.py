"""Timeouts scaled to this machine and its load. They only guard against hanging and assert nothing about speed.

`scaled(60)` is a minute on an idle machine like the reference machine, and longer as this machine is slower and busier.
"""

import hashlib
import os
import time
from collections.abc import Callable

REFERENCE_S = 0.2  # `_work` on one core of an AMD EPYC
SLOWNESS = "UDKD_TESTS_SLOWNESS"
"""Environment variable that hands the measurement to all processes of the session."""


def scaled(seconds: float) -> float:
    """`seconds` times the sum of this machine's slowness, measured once, and its present load per core."""
    return seconds * (slowness() + os.getloadavg()[0] / (os.cpu_count() or 1))


def slowness() -> float:
    """How many times longer than on the reference machine a fixed computation takes, at least 1; measured once per session."""
    if SLOWNESS not in os.environ:
        started = time.monotonic()
        _work()
        os.environ[SLOWNESS] = f"{max(1.0, (time.monotonic() - started) / REFERENCE_S):.2f}"
    return float(os.environ[SLOWNESS])


def wait_until(condition: Callable[[], object], seconds: float = 60, every_s: float = 0.01) -> bool:
    """Wait for a condition for at most `scaled(seconds)`; returns whether it became true."""
    end = time.monotonic() + scaled(seconds)
    while not (true := bool(condition())) and time.monotonic() < end:
        time.sleep(every_s)
    return true


def _work() -> None:
    """Integer arithmetic in Python and a checksum of 64 MiB."""
    sum(n * n % 7 for n in range(1_000_000))
    hashlib.sha256(bytes(64 << 20)).hexdigest()
