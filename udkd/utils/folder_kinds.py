"""Which kind of udkd's folders a path holds: a run, a teacher or a cache is not written into one of another kind."""

from pathlib import Path

from udkd.utils.errors import RunError

_MARKERS = {"dataset.json": "dataset", "config.json": "run", "teacher.json": "teacher", "views.json": "teacher cache"}
"""The file that a folder of each kind always has."""


def require_no_other(path: Path, kind: str) -> None:
    """RunError where `path` holds a folder of another kind than `kind`, such as a dataset: often swapped arguments."""
    for marker, other in _MARKERS.items():
        if other != kind and (path / marker).is_file():
            raise RunError(f"{path} holds a {other} ({marker}); expected a new folder for the {kind}; choose another")
