"""Reads the classes of validation images that are not in class folders.

They are in ILSVRC2012's devkit, Kaggle's LOC_val_solution.csv, or Tiny-ImageNet's val_annotations.txt.
"""

import csv
import io
import re
import tarfile
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from udkd.data_prep.sources.layout import is_hidden
from udkd.data_prep.sources.matlab import struct_array
from udkd.utils.errors import DataError
from udkd.utils.files import read_regular

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
KAGGLE = "LOC_val_solution.csv"
KAGGLE_COLUMNS = (b"ImageId", b"PredictionString")
TINY = "val_annotations.txt"
GROUND_TRUTH_NAMES = (TINY, KAGGLE, DEVKIT)  # in order of priority
IMAGE_NAME = "ILSVRC2012_val_{:08d}"
LIMIT_BYTES = 1 << 26  # of each file; ILSVRC2012's have 1 MB


@dataclass(frozen=True)
class GroundTruth:
    """A ground truth file. name: its file name. where: its path, for messages. data: returns its bytes."""

    name: str
    where: str
    data: Callable[[], bytes]

    def classes(self) -> dict[str, str]:
        """The class folder of each image, by its name without the suffix. Raises DataError for an invalid file."""
        data = self.data()
        if self.name.endswith(".csv"):
            return _kaggle(self.where, data)
        return _tiny(self.where, data) if self.name.endswith(".txt") else _devkit(self.where, data)


def open_ground_truth(path: Path) -> GroundTruth:
    """The ground truth in a file, which is not read yet."""
    return GroundTruth(path.name, str(path), partial(_bytes, path))


def find_ground_truth(folder: Path) -> Path | None:
    """The path of the ground truth in a folder; None if there is none."""
    return next((folder / name for name in GROUND_TRUTH_NAMES if (folder / name).is_file()), None)


def is_ground_truth(path: Path) -> bool:
    """Whether a file has the name of a ground truth, or is a .csv with the columns of Kaggle's."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".csv" and path.name != KAGGLE:
        with open(path, "rb") as file:
            return set(KAGGLE_COLUMNS) <= {name.strip() for name in file.readline(1000).removeprefix(BOM_UTF8).split(b",")}
    return path.name in (TINY, KAGGLE) or bool(re.fullmatch(r".*devkit.*\.(tar\.gz|tgz)", path.name))


def is_ground_truth_member(name: str, size: int) -> bool:
    """Whether a member of an archive is a ground truth. name: its path. size: bytes."""
    return name.rsplit("/", 1)[-1] in GROUND_TRUTH_NAMES and not is_hidden(name) and size <= LIMIT_BYTES


def read_ground_truth(path: Path) -> dict[str, str]:
    """See GroundTruth.classes."""
    return open_ground_truth(path).classes()


def choose_ground_truth(ground_truths: Iterable[GroundTruth]) -> GroundTruth | None:
    """Choose among the ground truths of a source. Raises DataError if there are two of the same kind."""
    ranked = sorted(ground_truths, key=lambda ground_truth: (GROUND_TRUTH_NAMES.index(ground_truth.name), ground_truth.where))
    if len(ranked) > 1 and ranked[0].name == ranked[1].name:
        raise DataError(
            f"{ranked[0].where} and {ranked[1].where} both label the validation images; expected one; "
            "name the correct one as another source"
        )
    return ranked[0] if ranked else None


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, LIMIT_BYTES)
    except ValueError as error:
        raise DataError(f"{error}; expected a ground truth, such as {KAGGLE}; check the path") from None


def _text(where: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where} is not text in UTF-8; expected a ground truth; fetch it again") from None


def _kaggle(where: str, data: bytes) -> dict[str, str]:
    """A table `ImageId,PredictionString`, with one or more predictions `wnid x1 y1 x2 y2` per row."""
    try:
        reader = csv.DictReader(io.StringIO(_text(where, data)))
        columns = [name.strip()[:40] for name in reader.fieldnames or () if name][:8]
        if not {"ImageId", "PredictionString"} <= set(columns):
            raise DataError(
                f"{where} has the columns {', '.join(columns) or 'of no table'}; expected the columns ImageId and "
                f"PredictionString of ILSVRC2012's {KAGGLE}; fetch it again"
            )
        return {row["ImageId"].split(".")[0]: row["PredictionString"].split()[0] for row in reader}
    except (csv.Error, KeyError, IndexError, AttributeError):
        raise DataError(f"{where} is damaged; expected the columns ImageId and PredictionString; fetch it again") from None


def _tiny(where: str, data: bytes) -> dict[str, str]:
    """A table with an image, its class and the corners of a box in each line, separated by tabs."""
    rows = [line.split("\t") for line in _text(where, data).splitlines() if line.strip()]
    if any(len(row) < 2 or not row[0] or not row[1].strip() for row in rows):
        raise DataError(f"{where} is damaged; expected an image, a tab and its class in each line; fetch it again")
    return {row[0].split(".")[0]: row[1].strip() for row in rows}


def _devkit(where: str, data: bytes) -> dict[str, str]:
    """A tar with the ILSVRC2012_ID of image n in line n of a text, and meta.mat, which maps these ids to wnids."""
    contents = {"ILSVRC2012_validation_ground_truth.txt": b"", "meta.mat": b""}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                file = archive.extractfile(member) if name in contents and member.isreg() else None
                if file is not None:
                    contents[name] = file.read(LIMIT_BYTES)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{where} cannot be read ({error}); expected {DEVKIT}; fetch it again") from None
    missing = [name for name, content in contents.items() if not content]
    if missing:
        raise DataError(f"{where} holds no {missing[0]}; expected {DEVKIT}; fetch it again")
    text, table = contents.values()
    wnids = {row.get("ILSVRC2012_ID"): row.get("WNID") for row in struct_array(table)}
    try:
        return {IMAGE_NAME.format(n): str(wnids[int(line)]) for n, line in enumerate(text.split(), start=1)}
    except (ValueError, KeyError) as error:
        raise DataError(f"{where}: ground truth and meta.mat differ at id {error}; expected {DEVKIT}; fetch it again") from None
