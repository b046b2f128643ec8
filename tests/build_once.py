"""What many tests need and each may change: made once for all workers of a session, and copied."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

SHARED = "UDKD_TESTS_SHARED"
"""Names the session's folder of what was made; without it everything is made anew."""


def build_once(name: str, make: Callable[[Path], object], folder: Path) -> None:
    """Fill `folder` with what `make(folder)` makes. name: of what it makes, and of all that decides how it comes out."""
    if SHARED not in os.environ:
        make(folder)
        return
    made = Path(os.environ[SHARED], name)
    with open(made.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            begun = made.with_name(f"{name}.begun")
            shutil.rmtree(begun, ignore_errors=True)
            make(begun)
            begun.rename(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
