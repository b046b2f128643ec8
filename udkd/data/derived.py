"""The derived formats by name: their files in a split folder, and the description that makes them valid.

A description is JSON, written last and removed first: data files without one, or with one of another dataset, do not count.
`resident` has its own (canvas.json, with a checksum per row); the other formats share `seal` and `sealed`: a description
that names the dataset's digest and every data file's length and sha256.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from udkd.utils.errors import DataError
from udkd.utils.files import read_exact_json, sha256_file, write_json
from udkd.utils.toml_files import shown

FORMAT = "udkd-derived"
VERSION = 1


@dataclass(frozen=True)
class DerivedFiles:
    """description: the file whose presence says that the format is there. data: glob patterns of all its other files."""

    description: str
    data: tuple[str, ...]


# The only list of derived formats and their files; data_prep.formats has a writer for each.
DERIVED: dict[str, DerivedFiles] = {
    "resident": DerivedFiles("canvas.json", ("canvas.npy", "canvas.crc32.npy")),
    "ffcv": DerivedFiles("beton.json", ("samples.beton",)),
    "dali": DerivedFiles("tfrecord.json", ("samples-*.tfrecord", "samples-*.tfrecord.idx")),
}


@dataclass(frozen=True, kw_only=True)
class FileSum:
    """What a data file is to be: its length in bytes and its sha256 in hex."""

    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> "FileSum":
        """Read the file and say what it is."""
        return FileSum(size=path.stat().st_size, sha256=sha256_file(path))


def is_derived(folder: Path, name: str) -> bool:
    """Whether a derived format is there in a split folder (opening it may still refuse it)."""
    return (folder / DERIVED[name].description).is_file()


def discard(folder: Path, name: str) -> None:
    """Remove a derived format from a split folder, finished or not, the description first."""
    (folder / DERIVED[name].description).unlink(missing_ok=True)
    for path in derived_files(folder, name):
        path.unlink()


def derived_files(folder: Path, name: str) -> list[Path]:
    """The files of a derived format in a split folder, finished or not, but for the description."""
    return [*unfinished(folder, name), *(path for pattern in DERIVED[name].data for path in folder.glob(pattern))]


def unfinished(folder: Path, name: str) -> list[Path]:
    """The files of a derived format in a split folder that never got their names."""
    files = DERIVED[name]
    return sorted(path for pattern in (files.description, *files.data) for path in folder.glob(pattern + ".tmp"))


def seal(folder: Path, name: str, *, digest: str, files: Mapping[str, FileSum]) -> None:
    """Write the description of a format whose data files are durable under their final names. digest: the dataset's."""
    entries = {file: {"bytes": found.size, "sha256": found.sha256} for file, found in sorted(files.items())}
    write_json(folder / DERIVED[name].description, _identity(folder, name, digest) | {"files": entries})


def _identity(folder: Path, name: str, digest: str) -> dict[str, object]:
    """What a description says beside its files. Its split, because train and val belong to one digest."""
    return {"format": f"{FORMAT}-{name}", "version": VERSION, "dataset_digest": digest, "split": folder.name}


def sealed(folder: Path, name: str, *, digest: str) -> dict[str, FileSum]:
    """The data files of a format by name, their presence and length checked; `damage` reads every byte.

    Raises DataError where the format is absent, damaged, cut, or of another dataset or version.
    """
    path = folder / DERIVED[name].description
    remedy = f"write it anew with udkd-prep derive --formats {name}"
    if not path.is_file():
        raise DataError(f"{folder} has no format {name}; expected {path.name}; write it with udkd-prep derive --formats {name}")
    wanted = _identity(folder, name, digest)
    try:
        found = read_exact_json(path)
        known = {key: found[key] for key in wanted}
        files = {str(file): FileSum(size=int(entry["bytes"]), sha256=entry["sha256"]) for file, entry in found["files"].items()}
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError):
        raise DataError(f"{path} is damaged; expected a description of the format {name}; {remedy}") from None
    for key, value in wanted.items():
        if known[key] != value:
            raise DataError(
                f"{path}: {key} is {shown(repr(known[key]))}; expected {value!r}; it belongs to other data, {remedy}"
            )
    for file, expected in files.items():
        data = folder / file
        size = data.stat().st_size if "/" not in file and data.is_file() else -1
        if size != expected.size:
            raise DataError(f"{data} has {max(size, 0)} bytes; expected {expected.size}; it is cut or of other data, {remedy}")
    return files


def damage(folder: Path, name: str, *, digest: str) -> Iterator[str]:
    """What is wrong with a sealed format, a line each, every byte read: damaged, missing and foreign files."""
    try:
        files = sealed(folder, name, digest=digest)
    except DataError as error:
        yield str(error)
        return
    remedy = f"write it anew with udkd-prep derive --formats {name}"
    for file, expected in files.items():
        if sha256_file(folder / file) != expected.sha256:
            yield f"{folder / file} does not match its checksum in {DERIVED[name].description}; expected it to; {remedy}"
    there = {path.name for pattern in DERIVED[name].data for path in folder.glob(pattern)}
    for file in sorted(there - set(files)):
        yield f"{folder / file} belongs to no sample; expected only what {DERIVED[name].description} names; {remedy}"
