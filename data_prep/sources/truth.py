"""Which class each ILSVRC2012 validation image belongs to: from the devkit, or from Kaggle's LOC_val_solution.csv."""

import csv
import io
import re
import tarfile
from pathlib import Path

from data_prep.sources.matlab import struct_array
from udkd.words.errors import DataError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
KAGGLE = "LOC_val_solution.csv"
IMAGE_NAME = "ILSVRC2012_val_{:08d}"
LIMIT_BYTES = 1 << 26  # for each text and table; ILSVRC2012's take 1 MB


def find_truth(folder: Path) -> Path | None:
    """The ground truth that lies in a folder, or nothing."""
    return next((folder / name for name in (KAGGLE, DEVKIT) if (folder / name).is_file()), None)


def is_truth(path: Path) -> bool:
    """Whether a path is named as a ground truth is."""
    return path.is_file() and (path.suffix == ".csv" or re.fullmatch(r".*devkit.*\.(tar\.gz|tgz)", path.name) is not None)


def read_truth(path: Path) -> dict[str, str]:
    """Image name, without its ending, to wnid. Raises DataError where the file is no ground truth."""
    return _kaggle(path) if path.suffix == ".csv" else _devkit(path)


def _kaggle(path: Path) -> dict[str, str]:
    """`ImageId,PredictionString`, the prediction being `wnid x1 y1 x2 y2` once or several times."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (UnicodeDecodeError, csv.Error, KeyError, IndexError, AttributeError):
        raise DataError(f"{path} is damaged; expected the columns ImageId and PredictionString; fetch it again") from None


def _devkit(path: Path) -> dict[str, str]:
    """Line n of the ground truth is the ILSVRC2012_ID of image n; meta.mat maps ids to wnids."""
    wanted = {"ILSVRC2012_validation_ground_truth.txt": b"", "meta.mat": b""}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                file = archive.extractfile(member) if name in wanted and member.isreg() else None
                if file is not None:
                    wanted[name] = file.read(LIMIT_BYTES)  # in memory: nothing is extracted
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected {DEVKIT}; fetch it again") from None
    missing = [name for name, data in wanted.items() if not data]
    if missing:
        raise DataError(f"{path} holds no {missing[0]}; expected {DEVKIT}; fetch it again")
    text, table = wanted.values()
    wnids = {row.get("ILSVRC2012_ID"): row.get("WNID") for row in struct_array(table)}
    try:
        return {IMAGE_NAME.format(n): str(wnids[int(line)]) for n, line in enumerate(text.split(), start=1)}
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: ground truth and meta.mat differ at id {error}; expected {DEVKIT}; fetch it again") from None
