"""Class folders beside a table: read if the table agrees with them, refused if it does not, in folders and archives."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data_prep.helpers import photo, write_tar, write_tree
from tests.data_prep.test_tables import listing_of, write_csv
from tests.data_prep.test_zip import write_zip
from udkd.data_prep.listing import list_samples
from udkd.data_prep.sources import open_sources
from udkd.utils.errors import DataError

FILES = {f"part_{n % 2}/{n:03d}.jpg": photo(n) for n in range(6)}
LABELS = [[f"{n:03d}", "cat" if n < 3 else "dog"] for n in range(6)]


def compressed(path: Path, files: dict[str, bytes]) -> Path:
    plain = write_tar(path.with_suffix(""), files)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


ARCHIVES: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "set": write_tree,
    "set.zip": write_zip,
    "set.tar": write_tar,
    "set.tar.gz": compressed,
}


def source_of(tmp_path: Path, name: str, columns: list[str], rows: list[list[str]]) -> Path:
    table = write_csv(tmp_path / "table.csv", columns, rows)
    return ARCHIVES[name](tmp_path / name, {**FILES, "labels.csv": table.read_bytes()})


@pytest.mark.parametrize("name", ARCHIVES)
def test_folders_that_are_not_the_classes(tmp_path: Path, name: str) -> None:
    """Images in parts, as in HAM10000: the folders are classes only if the user says so."""
    source = source_of(tmp_path, name, ["image_id", "label"], LABELS)
    with pytest.raises(DataError, match=r"the table labels\.csv, which disagree: part_0/000\.jpg and .*--layout imagefolder"):
        listing_of(source, hold_out=20)
    chosen = list_samples(open_sources([source], "imagefolder"), classes="all", hold_out_percent=20)
    assert [entry.name for entry in chosen.classes] == ["part_0", "part_1"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_tables_that_agree_or_have_no_labels(tmp_path: Path, name: str) -> None:
    agreeing = [[stem, "even" if int(stem) % 2 == 0 else "odd", other] for stem, other in LABELS]
    listing = listing_of(source_of(tmp_path, name, ["image_id", "label", "breed"], agreeing), hold_out=20)
    assert not any("labels.csv of" in warning for warning in listing.warnings)
    path = tmp_path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    listing = listing_of(source_of(tmp_path, name, ["image_id", "dx"], LABELS), hold_out=20)
    assert any(
        "labels.csv of" in warning and "check that these folders are the classes" in warning for warning in listing.warnings
    )


def test_an_archive_without_class_folders(tmp_path: Path) -> None:
    """Kaggle's zip of train_images/ and test_images/ with a train.csv."""
    files = {f"{split}_images/{n}.jpg": photo(n) for split in ("train", "test") for n in range(2)}
    table = write_csv(tmp_path / "train.csv", ["image_id", "label"], [["0.jpg", "0"], ["1.jpg", "1"]])
    archive = write_zip(tmp_path / "set.zip", {**files, "train.csv": table.read_bytes()})
    with pytest.raises(DataError, match=r"no class folders, and the table train\.csv .*unpack it and name the table"):
        listing_of(archive, hold_out=20)
