"""A library for LD_PRELOAD whose flock always succeeds, as on network file systems whose locks do not work."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NO_LOCKS = "int flock(int descriptor, int operation) { (void)descriptor; (void)operation; return 0; }\n"


def without_locks(folder: Path) -> dict[str, str]:
    """This process's environment variables and those that make flock always succeed. Skips the test without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = folder / "flock.c", folder / "flock.so"
    source.write_text(NO_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return os.environ | {"LD_PRELOAD": str(library)}
