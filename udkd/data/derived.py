"""The derived formats by name: their files in a split folder, and the description that makes them valid.

A description is JSON, written last and removed first: data files without one, or with one of another dataset, are ignored.
`resident` has its own (canvas.json, with a checksum per row); the other formats share `seal` and `read_sealed`: a description
with the dataset's digest and every data file's length and sha256.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from udkd.utils.errors import DataError
from udkd.utils.files import read_exact_json, sha256_file, write_json
from udkd.utils.printable import shorten

FORMAT = "udkd-derived"
VERSION = 1


@dataclass(frozen=True)
class DerivedFiles:
    """Files of one format. description: the file whose presence marks it as complete. data: glob patterns of all others."""

    description: str
    data: tuple[str, ...]


# The only list of derived formats and their files; data_prep.formats has a writer for each.
DERIVED: dict[str, DerivedFiles] = {
    "resident": DerivedFiles("canvas.json", ("canvas.npy", "canvas.crc32.npy")),
    "ffcv": DerivedFiles("beton.json", ("samples.beton",)),
    "dali": DerivedFiles("tfrecord.json", ("samples-*.tfrecord", "samples-*.tfrecord.idx")),
}


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """A data file's length in bytes and its sha256 in hex."""

    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> "FileDigest":
        """The length and sha256 of a file."""
        return FileDigest(size=path.stat().st_size, sha256=sha256_file(path))


def is_derived(folder: Path, name: str) -> bool:
    """Whether a split folder has a derived format (opening it may still fail)."""
    return (folder / DERIVED[name].description).is_file()


def remove_derived(folder: Path, name: str) -> None:
    """Remove a derived format from a split folder, complete or not, the description first."""
    (folder / DERIVED[name].description).unlink(missing_ok=True)
    for path in derived_files(folder, name):
        path.unlink()


def derived_files(folder: Path, name: str) -> list[Path]:
    """The files of a derived format in a split folder, complete or not, except the description."""
    return [*unfinished_files(folder, name), *(path for pattern in DERIVED[name].data for path in folder.glob(pattern))]


def unfinished_files(folder: Path, name: str) -> list[Path]:
    """The temporary files of a derived format in a split folder, left by an interrupted writer."""
    files = DERIVED[name]
    return sorted(path for pattern in (files.description, *files.data) for path in folder.glob(pattern + ".tmp"))


def seal(folder: Path, name: str, *, digest: str, files: Mapping[str, FileDigest]) -> None:
    """Write the description of a format whose data files are synced under their final names. digest: the dataset's."""
    entries = {file: {"bytes": entry.size, "sha256": entry.sha256} for file, entry in sorted(files.items())}
    write_json(folder / DERIVED[name].description, _identity(folder, name, digest) | {"files": entries})


def _identity(folder: Path, name: str, digest: str) -> dict[str, object]:
    """A description's fields besides its files. It names its split because train and val share one digest."""
    return {"format": f"{FORMAT}-{name}", "version": VERSION, "dataset_digest": digest, "split": folder.name}


def read_sealed(folder: Path, name: str, *, digest: str) -> dict[str, FileDigest]:
    """The data files of a format by name, their presence and length checked; `find_damage` reads every byte.

    Raises DataError where the format is absent, damaged, truncated, or of another dataset or version.
    """
    path = folder / DERIVED[name].description
    remedy = f"write it again with udkd-prep derive --formats {name}"
    if not path.is_file():
        raise DataError(f"{folder} has no format {name}; expected {path.name}; write it with udkd-prep derive --formats {name}")
    expected_fields = _identity(folder, name, digest)
    try:
        description = read_exact_json(path)
        stored_fields = {key: description[key] for key in expected_fields}
        files = {
            str(file): FileDigest(size=int(entry["bytes"]), sha256=entry["sha256"])
            for file, entry in description["files"].items()
        }
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError):
        raise DataError(f"{path} is damaged; expected a description of the format {name}; {remedy}") from None
    for key, value in expected_fields.items():
        if stored_fields[key] != value:
            raise DataError(
                f"{path}: {key} is {shorten(repr(stored_fields[key]))}; expected {value!r}; it belongs to other data, {remedy}"
            )
    for file, expected in files.items():
        data = folder / file
        size = data.stat().st_size if "/" not in file and data.is_file() else -1
        if size != expected.size:
            raise DataError(
                f"{data} has {max(size, 0)} bytes; expected {expected.size}; it is truncated or of other data, {remedy}"
            )
    return files


def find_damage(folder: Path, name: str, *, digest: str) -> Iterator[str]:
    """Read every byte of a sealed format and yield one line per damaged, missing or unexpected file."""
    try:
        files = read_sealed(folder, name, digest=digest)
    except DataError as error:
        yield str(error)
        return
    remedy = f"write it again with udkd-prep derive --formats {name}"
    for file, expected in files.items():
        if sha256_file(folder / file) != expected.sha256:
            yield f"{folder / file} does not match its checksum in {DERIVED[name].description}; expected it to; {remedy}"
    present = {path.name for pattern in DERIVED[name].data for path in folder.glob(pattern)}
    for file in sorted(present - set(files)):
        yield f"{folder / file} belongs to no sample; expected only what {DERIVED[name].description} names; {remedy}"
