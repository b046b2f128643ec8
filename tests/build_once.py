"""Test data that many tests need and each may modify: built once for all workers of a session, then copied."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

SHARED = "UDKD_TESTS_SHARED"
"""Environment variable with the session's shared folder; without it everything is rebuilt for each test."""


def build_once(name: str, make: Callable[[Path], object], folder: Path) -> None:
    """Fill `folder` with the output of `make(folder)`. name: identifies that output, including everything it depends on."""
    if SHARED not in os.environ:
        make(folder)
        return
    shared = Path(os.environ[SHARED], name)
    with open(shared.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            unfinished = shared.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(shared)
    shutil.copytree(shared, folder, dirs_exist_ok=True)
