"""An existing WebDataset: tars in which the files of a sample are adjacent and share their name up to the first dot."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby, islice
from pathlib import Path, PurePath

from udkd.data_prep.sources.address import Location
from udkd.data_prep.sources.fields import (
    DETECT_FIELDS,
    IMAGE_OPTION,
    LABEL_LIKE,
    LABEL_OPTION,
    NO_IMAGE,
    NO_LABEL,
    Fields,
    Label,
    LabelAgreement,
    choose_field,
    label_of,
    label_of_text,
)
from udkd.data_prep.sources.layout import IMAGE_SUFFIXES, PLAIN_SPLIT, UNREAD, is_hidden, skip_reason
from udkd.data_prep.sources.named_split import LabelFolders, find_files, last_split_in, single_split_in
from udkd.data_prep.sources.source import Entry, Listing, Skipped, SourceSplit
from udkd.data_prep.sources.tar_members import TarMember, is_tar, iter_members, read_at
from udkd.utils.errors import DataError

JSON_KEYS = ("label", "cls", "class", "class_id", "wnid", "class_name")
LABEL_BYTES = 1 << 20  # maximum size of a label file
# Read as labels only if the user names them:
TEXT_EXTENSIONS = ("txt", "text", "class", "target", "id", "index", "name", "wnid", "synset")
MAX_PEEKED = 64  # members that decide whether a tar is a WebDataset


@dataclass(frozen=True)
class WebDataset:
    """A tar, or a folder with tars, directly or one level down. Names of tars and folders determine the splits.

    The image of a sample is its only file with an image extension. The label is in `.cls` (a number or a name), else in `.json`
    (JSON_KEYS). fields: extensions, or keys of the JSON, chosen by the user. A dataset folder of udkd can be read too; its
    classes keep their names.
    """

    path: Path
    fields: Fields = DETECT_FIELDS

    @staticmethod
    def probe(path: Path, texts: bool = False) -> "WebDataset | None":
        """A WebDataset if a tar of any split has samples with an image and a label.

        texts: also accept samples with other text files instead of labels, if they are not in folders, which could be classes.
        """
        one_of_each_split = {last_split_in(_path_inside(path, tar)): tar for tar in reversed(_tars(path))}
        found = any(is_tar(tar) and has_samples(_first_names(tar), texts) for tar in one_of_each_split.values())
        return WebDataset(path) if found else None

    def list(self) -> Listing:
        """All samples with an image and a label.

        Raises DataError: see `iter_members`; also if there are no labels, a label is invalid, or the user must choose a field.
        """
        listing, folders, agreement = Listing(), LabelFolders(self.path), LabelAgreement()
        names, tars = _dataset_classes(self.path), _tars(self.path)
        ambiguous = Counter((last_split_in(_path_inside(self.path, tar)), tar.name) for tar in tars)
        first: dict[tuple[SourceSplit | None, str, str], str] = {}
        for tar in tars:
            if not is_tar(tar):
                raise DataError(
                    f"{tar} is not a plain tar; expected shards of a WebDataset; fetch it again, or name the tars themselves "
                    "if it is compressed"
                )
            key, stamp = "" if tar == self.path else str(_path_inside(self.path, tar)), tar.stat().st_mtime_ns
            split = last_split_in(_path_inside(self.path, tar))
            for sample in samples_of(iter_members(tar), tar, listing.skipped, partial(_read_member, tar)):
                image_and_label = image_and_label_of(sample, self.fields, agreement, listing.skipped)
                if image_and_label is None:
                    continue
                image, label = image_and_label
                if isinstance(label, int):
                    label = names[label] if names and label < len(names) else listing.class_of_label(label)
                part = split or split_of_folders(image.name.rpartition("/")[0])
                class_name, name = folders.folder(label), f"{tar.stem}/{image.name}"
                # Shards of the same name in several folders may repeat names, which are then prefixed with the folder.
                if ambiguous[split, tar.name] > 1 and first.setdefault((part, class_name, name), key) != key:
                    name = f"{PurePath(key).parent}/{name}"
                listing.entries.append(Entry(part, class_name, name, key, image.offset, image.size, stamp))
        agreement.finish(self.path)
        if not len(listing.entries) and listing.skipped.count:
            raise no_samples_error(self.path, self.fields, listing.skipped)
        return listing

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, by offset."""
        return read_at(self.path / entry.key if entry.key else self.path, entry.offset, entry.size)


@dataclass(frozen=True)
class Sample:
    """The files of a sample. files: by extension, in lower case. read: returns the bytes of one."""

    tar: Location
    name: str
    files: Mapping[str, TarMember]
    read: Callable[[TarMember], bytes]

    def __str__(self) -> str:
        return f"{self.tar}: sample {self.name}"

    def image(self, requested: str | None) -> TarMember | None:
        """The image with the requested extension, or the only one. Raises DataError if there are several."""
        if requested is not None:
            return self.files.get(requested.lower().removeprefix("."))
        extensions = [extension for extension in self.files if _is_image(extension)]
        return self.files[choose_field(extensions, None, where=self, what="image", option=IMAGE_OPTION)] if extensions else None

    def labels(self, requested: str | None) -> dict[str, Label]:
        """The candidate labels by field, in order of priority. Raises DataError for an invalid label."""
        labels: dict[str, Label] = {}
        for extension in self.files:
            if extension == requested or (requested is None and _is_label(extension)):
                labels[extension] = self._text(extension)
        for extension in self.files:
            if _is_json(extension) and not (requested and labels):
                keys = JSON_KEYS if requested is None else (requested.removeprefix(f"{extension}."),)
                labels |= self._labels_in(extension, keys=keys, strict=not labels)
        return labels

    def _text(self, extension: str) -> Label:
        try:
            return label_of_text(self._bytes(extension).decode("utf-8-sig", "surrogateescape"))
        except ValueError as error:
            raise self._fault(extension, error) from None

    def _labels_in(self, extension: str, *, keys: tuple[str, ...], strict: bool) -> dict[str, Label]:
        """The labels under `keys` in a JSON file, by extension and key. strict: raise DataError for an invalid label."""
        try:
            metadata = _parse_metadata(self._bytes(extension))
            return {f"{extension}.{key}": _label(metadata[key]) for key in keys if key in metadata}
        except ValueError as error:
            if strict:
                raise self._fault(extension, error) from None
            return {}

    def _bytes(self, extension: str) -> bytes:
        member = self.files[extension]
        if member.size > LABEL_BYTES:
            raise ValueError(f"has {member.size:,} bytes")
        return self.read(member)

    def _fault(self, extension: str, error: ValueError) -> DataError:
        text = " ".join(str(error).split())[:200]
        return DataError(
            f"{self} has no label: its .{extension} {text}; expected a class number or name; "
            f"choose another field with {LABEL_OPTION}, or another source"
        )


IMAGE_EXTENSIONS = {extension.removeprefix(".") for extension in IMAGE_SUFFIXES}


def image_and_label_of(
    sample: Sample, fields: Fields, agreement: LabelAgreement, skipped: Skipped
) -> tuple[TarMember, int | str] | None:
    """The image and the label of a sample; if it lacks one of them, add it to `skipped` and return None."""
    image = sample.image(fields.image)
    if image is None:
        for member in sample.files.values():
            skipped.append(member.name, UNREAD if skip_reason(member.name) == UNREAD else NO_IMAGE)
        return None
    label = agreement.take(sample.labels(fields.label), sample)
    if label is None:
        skipped.append(image.name, NO_LABEL)
        return None
    return image, label


def no_samples_error(path: Location, fields: Fields, skipped: Skipped) -> DataError:
    """The error for a WebDataset of which all samples were skipped."""
    listed = ", ".join(f"{count:,} {reason}, such as {name}" for reason, (count, name) in skipped.reasons.items())
    name = skipped.reasons.get(NO_LABEL, (0, ""))[1]
    folders = ", or give --layout imagefolder if folders are the classes" if "/" in name and fields == DETECT_FIELDS else ""
    adjacent = ", the files of a sample one after the other" if {NO_LABEL, NO_IMAGE} <= skipped.reasons.keys() else ""
    return DataError(
        f"{path} has no image with a label ({listed}); expected an image, and .cls or .json with one of "
        f"{', '.join(JSON_KEYS)}, in each sample{adjacent}; name the fields with {IMAGE_OPTION} and {LABEL_OPTION}{folders}"
    )


def _read_member(tar: Path, member: TarMember) -> bytes:
    return read_at(tar, member.offset, member.size)


def samples_of(
    members: Iterable[TarMember], tar: Location, skipped: Skipped, read: Callable[[TarMember], bytes]
) -> Iterator[Sample]:
    """Yield the samples of a tar. Raises DataError if a sample has two files of one extension."""
    kept = (member for member in members if not _is_skipped(member, skipped))
    for name, group in groupby(kept, lambda member: _split_extension(member.name)[0]):
        files: dict[str, TarMember] = {}
        for member in group:
            extension = _split_extension(member.name)[1].lower()
            if extension in files:
                raise DataError(
                    f"{tar}: sample {name} has two files .{extension}; expected one of each ending; pack the images again"
                )
            files[extension] = member
        yield Sample(tar, name, files, read)


def _is_skipped(member: TarMember, skipped: Skipped) -> bool:
    hidden = is_hidden(member.name)
    if hidden:
        skipped.append(member.name, skip_reason(member.name))
    return hidden


def has_samples(names: Iterable[str], texts: bool) -> bool:
    """Whether any sample has an image and a possible label. names: of a tar's first members. texts: see WebDataset.probe."""
    extensions: dict[str, set[str]] = {}
    for each in names:
        name, extension = _split_extension(each)
        extensions.setdefault(name, set()).add(extension.lower())
    bare = texts and all("/" not in name for name in extensions)
    return any(
        any(map(_is_image, group)) and any(_is_label(end) or _is_json(end) or (bare and _is_text(end)) for end in group)
        for group in extensions.values()
    )


def _first_names(tar: Path) -> list[str]:
    return [member.name for member in islice(iter_members(tar), MAX_PEEKED)]


def _is_image(extension: str) -> bool:
    return extension.split(".")[-1] in IMAGE_EXTENSIONS


def _is_json(extension: str) -> bool:
    return extension.split(".")[-1] == "json"


def _is_label(extension: str) -> bool:
    last = extension.split(".")[-1]
    return last == "cls" or LABEL_LIKE.fullmatch(last) is not None


def _is_text(extension: str) -> bool:
    return extension.split(".")[-1] in TEXT_EXTENSIONS


def _label(value: object) -> Label:
    return label_of_text(value) if isinstance(value, str) else label_of(value)


def _parse_metadata(data: bytes) -> dict[str, object]:
    """The object in a JSON text. Unlike parse_json, accepts NaN, which is common in metadata. Raises ValueError."""
    try:
        value = json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read ({error})") from None
    return value if isinstance(value, dict) else {}


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if any(values[key] != value for key, value in pairs if value == value):
        raise ValueError("a key has two values")
    return values


def _tars(path: Path) -> list[Path]:
    return find_files(path, ".tar")


def _path_inside(path: Path, tar: Path) -> Path:
    """The part of a tar's path that may name its split."""
    return Path(tar.name) if tar == path else tar.relative_to(path)


@lru_cache(maxsize=256)
def split_of_folders(folder: str) -> SourceSplit | None:
    """The split named by the folders inside a tar; None if there is none."""
    splits = [single_split_in(part) for part in folder.split("/") if PLAIN_SPLIT.fullmatch(part)]
    return splits[-1] if splits else None


def _split_extension(name: str) -> tuple[str, str]:
    """The sample's name and the extension: the path is split at the first dot of the file name, as by WebDataset."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :])


def _dataset_classes(path: Path) -> tuple[str, ...] | None:
    """The wnids of a dataset folder of udkd, by label; None for other folders."""
    from udkd.data.header import read_header  # slow to import, and not needed in workers

    try:
        return tuple(entry.wnid for entry in read_header(path).classes)
    except DataError:
        return None
