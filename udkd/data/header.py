"""dataset.json, the header of a dataset folder, and the content digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from udkd.data.manifest import Columns
from udkd.utils.errors import DataError
from udkd.utils.files import read_regular, write_json
from udkd.utils.parsing import parse_json
from udkd.utils.printable import shorten

FORMAT = "udkd-dataset"
VERSION = 2
_CONTENT_VERSION = 1  # not VERSION: a cache stays valid when its images are stored in a later format version
FILE_NAME = "dataset.json"
Fit = Literal["pad", "squash"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MAX_CLASSES = 1_000_000
MAX_BYTES = 1 << 28  # of dataset.json; a class takes about a hundred


@dataclass(frozen=True, kw_only=True)
class ClassName:
    """A class. wnid: its WordNet id or folder name. name: its readable name."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    wnid: str
    name: str


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Encoder(_Strict):
    """How images that could not keep their original bytes were encoded."""

    quality: int = Field(ge=1, le=100, description="JPEG quality")
    subsampling: Literal["4:4:4", "4:2:0"]
    resample: Literal["lanczos"] = "lanczos"


class SplitHeader(_Strict):
    """A split's entry in dataset.json; the manifest is checked against it before it is read."""

    samples: int = Field(ge=0, lt=10**9, description="rows of the manifest, the excluded ones included")
    excluded: int = Field(ge=0)
    manifest_bytes: int = Field(ge=0)
    manifest_sha256: Sha256

    @model_validator(mode="after")
    def _excluded_are_samples(self) -> Self:
        if self.excluded > self.samples:
            raise ValueError(f"{self.excluded} of {self.samples} samples are excluded")
        return self


class Header(_Strict):
    """The content of dataset.json."""

    format: Literal["udkd-dataset"] = "udkd-dataset"
    version: Literal[2] = 2
    side: int = Field(ge=1, le=65500, description="S, pixels: the canvas is S x S (a JPEG's side is at most 65,500)")
    fit: Fit
    encoder: Encoder
    classes: tuple[ClassName, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    splits: dict[Literal["train", "val"], SplitHeader] = Field(min_length=1)
    digest: Sha256

    @model_validator(mode="after")
    def _wnids_differ(self) -> Self:
        if len({entry.wnid for entry in self.classes}) < len(self.classes):
            raise ValueError("two classes have one wnid")
        return self

    def write(self, folder: Path) -> None:
        """Write dataset.json atomically, which makes the folder valid."""
        write_json(folder / FILE_NAME, self.model_dump(mode="json"))


def read_header(folder: Path) -> Header:
    """Read and check FOLDER/dataset.json.

    Raises DataError if the folder or the file is missing, has another format or version, or is damaged.
    """
    path = folder / FILE_NAME
    if folder.is_file():  # a tar or a .beton: people expect to train from it directly
        raise DataError(
            f"{folder} is not a folder but a file; expected a dataset folder; make one from it with "
            f"udkd data convert {folder} FOLDER"
        )
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; expected a dataset folder; check the path or make one with udkd data convert"
        )
    if not path.is_file():
        raise DataError(
            f"{folder} holds no dataset.json (another folder, or an unfinished conversion or copy); "
            "expected a dataset folder; run udkd data convert or stage (again)"
        )
    try:
        data = read_regular(path, MAX_BYTES)
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); expected what udkd data convert wrote; convert again") from None
    return parse_header(data, path)


def parse_header(data: bytes, path: object) -> Header:
    """The header in the bytes of a dataset.json. path: of the file, for errors; it may be an address. Raises DataError."""
    try:
        value = parse_json(data)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); expected what udkd data convert wrote; convert again") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT!r}; expected a dataset folder; check the path")
    if value.get("version") != VERSION:
        version = shorten(repr(value.get("version")))
        raise DataError(f"{path} has format version {version}; expected {VERSION}; convert again with this udkd")
    try:
        return Header.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = shorten(".".join(str(part) for part in first["loc"]))
        raise DataError(
            f"{path} is damaged at {where!r} ({first['msg']}); expected what udkd data convert wrote; convert again"
        ) from None


def content_digest(
    *, side: int, fit: str, encoder: Encoder, classes: tuple[ClassName, ...], splits: Mapping[str, Columns]
) -> str:
    """The sha256, in hex, of a folder's content: folders with equal digests hold the same samples under the same ids.

    It covers classes, side, fit, encoder, and every sample's label, source, sizes, checksum and exclusion, but not the packing
    into shards or parquet pages.
    """
    head = {
        "format": [FORMAT, _CONTENT_VERSION],
        "side": side,
        "fit": fit,
        "encoder": encoder.model_dump(mode="json"),
        "classes": [[entry.wnid, entry.name] for entry in classes],
        "splits": {name: columns.num_samples for name, columns in splits.items()},
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(splits):
        columns = splits[name]
        digest.update(columns.labels.astype("<i4").tobytes())
        digest.update(columns.sizes.astype("<i4").tobytes())
        digest.update(columns.excluded.astype("u1").tobytes())
        digest.update(columns.sha256.tobytes())
        for source in columns.source:
            digest.update(source.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()
