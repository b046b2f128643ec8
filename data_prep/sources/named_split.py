"""What names tell: the split in the name of a folder or file, the class of a label number, and which big files there are."""

import re
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Final

from data_prep.sources.source import SourceSplit
from udkd.utils.errors import DataError

_WORDS: Final = r"(?:(?P<train>train(?:ing|val)?|trn)|(?P<val>val(?:id|idation)?|dev|eval(?:uation)?)|(?P<test>test(?:ing)?))"
_SPLIT = re.compile(rf"(?<![a-z]){_WORDS}(?:sets?|data|imgs?|images?|splits?)?(?![a-z])")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@lru_cache(maxsize=4096)
def all_splits_in(name: str) -> tuple[SourceSplit, ...]:
    """The splits that words of a name tell of, in their order: `ILSVRC2012_img_train`, `TestSet`, `val2017`, `train_val`."""
    return tuple(_part(found) for found in _SPLIT.finditer(_HUMP.sub("_", name).lower()))


def single_split_in(name: str) -> SourceSplit | None:
    """The one split that a name tells of; None where it tells of none, or of several."""
    found = set(all_splits_in(name))
    return found.pop() if len(found) == 1 else None


def last_split_in(path: PurePath) -> SourceSplit | None:
    """The split that a file's path tells of: the last one that stands as a word in it."""
    found = all_splits_in(str(path))
    return found[-1] if found else None


def _part(found: re.Match[str]) -> SourceSplit:
    return "train" if found["train"] else "val" if found["val"] else "test"


def class_name_of_label(label: int) -> str:
    """The name of a class of which only the number is known, so that sorting by name is sorting by number."""
    return f"{label:04d}"


class LabelFolders:
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


def find_files(path: Path, ending: str) -> list[Path]:
    """`path` itself, or the files of a folder and of the folders in it, by their ending in any case, sorted; no hidden ones."""
    if not path.is_dir():
        return [path] if path.suffix.lower() == ending and path.is_file() else []
    any_case = "*" + "".join(f"[{letter}{letter.upper()}]" for letter in ending)
    found = [*path.glob(any_case), *path.glob(f"*/{any_case}")]
    return sorted(file for file in found if not file.name.startswith(".") and file.is_file())
