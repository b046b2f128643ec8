"""The derived formats by name: their files in a split folder, and the description that makes them valid.

A description is JSON, written last and removed first. Data files without one, or with that of another dataset, are ignored.
The format `resident` has its own description, canvas.json, with a checksum per row. The other formats share `seal` and
`read_sealed`: their description has the dataset's digest and the length and sha256 of every data file.
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
    """The files of one format. description: name of the file that marks it as complete. data: glob patterns of the others."""

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
    """Whether a split folder has a derived format. Opening it may still fail."""
    return (folder / DERIVED[name].description).is_file()


def remove_derived(folder: Path, name: str) -> None:
    """Remove a derived format, complete or not, from a split folder, starting with the description."""
    (folder / DERIVED[name].description).unlink(missing_ok=True)
    for path in derived_files(folder, name):
        path.unlink()


def derived_files(folder: Path, name: str) -> list[Path]:
    """The data files of a derived format in a split folder, including temporary ones."""
    return [*unfinished_files(folder, name), *(path for pattern in DERIVED[name].data for path in folder.glob(pattern))]


def unfinished_files(folder: Path, name: str) -> list[Path]:
    """The temporary files of a derived format in a split folder, left by an interrupted writer."""
    files = DERIVED[name]
    return sorted(path for pattern in (files.description, *files.data) for path in folder.glob(pattern + ".tmp"))


def seal(folder: Path, name: str, *, digest: str, files: Mapping[str, FileDigest]) -> None:
    """Write the description of a format once its data files are synced under their final names. digest: of the dataset."""
    entries = {file: {"bytes": entry.size, "sha256": entry.sha256} for file, entry in sorted(files.items())}
    write_json(folder / DERIVED[name].description, _identity(folder, name, digest) | {"files": entries})


def _identity(folder: Path, name: str, digest: str) -> dict[str, object]:
    """The fields of a description except its files. It names the split because train and val share one digest."""
    return {"format": f"{FORMAT}-{name}", "version": VERSION, "dataset_digest": digest, "split": folder.name}


def read_sealed(folder: Path, name: str, *, digest: str) -> dict[str, FileDigest]:
    """The data files of a format by name, after checking that they exist and their lengths; `find_damage` reads every byte.

    Raises DataError if the format is absent, damaged, truncated, or of another dataset or version.
    """
    path = folder / DERIVED[name].description
    remedy = f"write it again with udkd data derive --formats {name}"
    if not path.is_file():
        raise DataError(f"{folder} has no format {name}; expected {path.name}; write it with udkd data derive --formats {name}")
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
    remedy = f"write it again with udkd data derive --formats {name}"
    for file, expected in files.items():
        if sha256_file(folder / file) != expected.sha256:
            yield f"{folder / file} does not match its checksum in {DERIVED[name].description}; expected it to; {remedy}"
    present = {path.name for pattern in DERIVED[name].data for path in folder.glob(pattern)}
    for file in sorted(present - set(files)):
        yield f"{folder / file} belongs to no sample; expected only what {DERIVED[name].description} names; {remedy}"
