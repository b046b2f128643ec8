"""Sets in few big files: which files there are, and split and class by their names and by label numbers."""

import re
from pathlib import Path, PurePath

from data_prep.sources.source import SplitName
from udkd.words.errors import DataError

_SPLIT = re.compile(r"(?<![a-z])(?:(train(?:ing)?)|(val(?:id|idation)?))(?![a-z])")


def split_of(path: PurePath) -> SplitName | None:
    """The split that a file's path tells of: the last `train` or `val` that stands as a word in it."""
    found = _SPLIT.findall(str(path).lower())
    return None if not found else "train" if found[-1][0] else "val"


def class_of_label(label: int) -> str:
    """The name of a class of which only the number is known, so that sorting by name is sorting by number."""
    return f"{label:04d}"


class Folders:
    """Labels that are text as names of class folders, which hold no slash. path: the source, for errors."""

    def __init__(self, path: PurePath) -> None:
        self._path = path
        self._label_of: dict[str, str] = {}

    def of(self, label: str) -> str:
        """The folder of a label. Raises DataError where another label has it: two classes must not become one."""
        folder = label.replace("/", "-")
        other = self._label_of.setdefault(folder, label)
        if other != label:
            raise DataError(
                f"{self._path} has the labels {other!r} and {label!r}; expected names that differ in more than a slash; "
                "rename one"
            )
        return folder


def files_below(path: Path, ending: str) -> list[Path]:
    """`path` itself, or the files of a folder and of the folders in it, by their ending, sorted; hidden ones are not."""
    if not path.is_dir():
        return [path] if path.suffix == ending and path.is_file() else []
    found = [*path.glob(f"*{ending}"), *path.glob(f"*/*{ending}")]
    return sorted(file for file in found if not file.name.startswith(".") and file.is_file())
