"""A compressed or remote tar, read as a stream: once to list its images, and once for the images of each split."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePath

from udkd.data_prep.sources.address import Location
from udkd.data_prep.sources.byte_stream import ByteReader, ByteStream, changed
from udkd.data_prep.sources.decompress import compression_of
from udkd.data_prep.sources.fields import DETECT_FIELDS, Fields, LabelAgreement
from udkd.data_prep.sources.ground_truth import GroundTruth, is_ground_truth_member
from udkd.data_prep.sources.image_folder import ListingBuilder
from udkd.data_prep.sources.layout import is_image_path
from udkd.data_prep.sources.named_split import LabelFolders, last_split_in
from udkd.data_prep.sources.source import Entry, Listing
from udkd.data_prep.sources.streamed_parquet import StreamedParquet
from udkd.data_prep.sources.table_check import is_table_member
from udkd.data_prep.sources.tar_members import BLOCK, TarMember, has_tar_magic, stream_members, stream_names
from udkd.data_prep.sources.unread_kinds import COMPRESSED_TAR, kind_of_bytes
from udkd.data_prep.sources.webdataset import (
    LABEL_BYTES,
    MAX_PEEKED,
    has_samples,
    image_and_label_of,
    no_samples_error,
    samples_of,
    split_of_folders,
)
from udkd.utils.errors import DataError
from udkd.utils.progress import SILENT, Observer

LINKED_BYTES = 1 << 28  # of files that hard links name, which are kept in memory
SHOWN_BYTES = 1 << 27  # of a file whose listing has a progress bar
LAYOUTS = ("webdataset", "imagefolder", "classfolders", "parquet")


@dataclass(frozen=True)
class StreamedTar:
    """A compressed tar, or a tar at an address, with class folders or with the samples of a WebDataset.

    Ids have the order of the stream. splits: False if all folders are classes. ground_truth: of a flat val/; None to look for
    it. fields: of a WebDataset's samples. trusted: see Tree. observer: shows the listing's progress.
    """

    stream: ByteStream
    is_webdataset: bool
    splits: bool = True
    ground_truth: GroundTruth | None = None
    fields: Fields = DETECT_FIELDS
    trusted: bool = False
    observer: Observer = SILENT
    _linked: dict[int, int] = field(default_factory=dict)  # the size of the files that hard links name, by offset

    @property
    def path(self) -> Location:
        """The path or the address that the user named."""
        return self.stream.location

    def __getstate__(self) -> dict[str, object]:
        """What a worker needs, which reads nothing: the name of the source."""
        return {"stream": ByteStream(self.stream.location)}

    def list(self) -> Listing:
        """All images. Raises DataError: see `iter_members`, `parse_paths`, `WebDataset.list`; also if the stream breaks off."""
        with self.stream.reader() as reader:
            return self._samples(reader) if self.is_webdataset else self._class_folders(reader)

    def read(self, entry: Entry) -> bytes:
        """Read one image from a stream of its own, which is slow: see `read_in_order`."""
        return next(self.read_in_order([entry]))

    def read_in_order(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """See StreamSource."""
        kept: dict[int, bytes] = {}
        linked = sorted(self._linked)
        with self.stream.reader() as reader:
            for entry in entries:
                while linked and linked[0] < entry.offset:
                    offset = linked.pop(0)
                    if offset >= reader.tell():
                        reader.seek(offset)
                        kept[offset] = reader.read(self._linked[offset])
                if entry.offset in kept:
                    data = kept[entry.offset]
                else:
                    reader.seek(entry.offset)
                    data = reader.read(entry.size)
                    if entry.offset in self._linked:
                        kept[entry.offset] = data
                if len(data) != entry.size or zlib.crc32(data) != entry.stamp:
                    raise changed(self.path, entry.name)
                yield data

    def _class_folders(self, reader: ByteReader) -> Listing:
        names = ListingBuilder(
            self.path,
            _stem(self.path.name),
            splits=self.splits,
            ground_truth=self.ground_truth,
            trusted=self.trusted,
        )
        for member in self._members(reader, _may_be_read):
            read = partial(_data, member)
            names.add_member(member.name, offset=member.offset, size=member.size, stamp=member.crc, read=read)
        names.add_ground_truth_beside()
        return names.listing(sequential=True)

    def _samples(self, reader: ByteReader) -> Listing:
        listing, folders, agreement = Listing(sequential=True), LabelFolders(self.path), LabelAgreement()
        split, stem = last_split_in(PurePath(self.path.name)), _stem(self.path.name)
        for sample in samples_of(self._members(reader, _may_be_label), self.path, listing.skipped, _data):
            image_and_label = image_and_label_of(sample, self.fields, agreement, listing.skipped)
            if image_and_label is not None:
                image, label = image_and_label
                class_name = folders.folder(listing.class_of_label(label) if isinstance(label, int) else label)
                part = split or split_of_folders(image.name.rpartition("/")[0])
                listing.entries.append(Entry(part, class_name, f"{stem}/{image.name}", "", image.offset, image.size, image.crc))
        agreement.finish(self.path)
        if not len(listing.entries) and listing.skipped.count:
            raise no_samples_error(self.path, self.fields, listing.skipped)
        return listing

    def _members(self, reader: ByteReader, keep: Callable[[str, int], bool]) -> Iterator[TarMember]:
        """The members of the tar, with the files that hard links name noted in `_linked`."""
        last, shown, size, linked_bytes = -1, 0, self.stream.size or 0, 0
        self._linked.clear()
        if size >= SHOWN_BYTES:
            self.observer.start(f"list {self.path.name}", size >> 20, "MB")
        for member in stream_members(self.stream, reader, keep):
            if member.offset <= last and member.offset not in self._linked:
                self._linked[member.offset] = member.size
                linked_bytes += member.size
                if linked_bytes > LINKED_BYTES:
                    raise DataError(
                        f"{self.path} holds hard links to files of more than {LINKED_BYTES >> 20} MB in all; expected fewer; "
                        "pack the images again with tar --hard-dereference"
                    )
            last = max(last, member.offset)
            if size >= SHOWN_BYTES and reader.stored >> 20 > shown:
                self.observer.advance((reader.stored >> 20) - shown)
                shown = reader.stored >> 20
            yield member
        if size >= SHOWN_BYTES:
            self.observer.finish()


def is_compressed_tar(path: Path) -> bool:
    """Whether a file is a compressed tar, by its first bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        if not compression_of(file.read(BLOCK)):
            return False
    if _is_tar_name(path.name):
        return True
    try:
        with ByteStream(path).reader() as reader:
            return has_tar_magic(reader.read(BLOCK))
    except DataError:  # another kind of file
        return False


def open_stream(
    location: Location, layout: str | None, *, ground_truth: GroundTruth | None = None, observer: Observer = SILENT
) -> StreamedTar | StreamedParquet:
    """Open a compressed tar or an address. layout: of LAYOUTS; None to detect it.

    Raises DataError for a file that is not a tar or parquet, for an address that cannot be read, and for another layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise DataError(
            f"{location} is read as a stream, without the layout {layout}; expected {', '.join(LAYOUTS)}; change --layout, or "
            "name a plain tar or a folder on this machine"
        )
    stream = ByteStream(location)
    with stream.reader() as reader:
        start = reader.read(BLOCK)
        if start.startswith(b"PAR1") and layout in (None, "parquet"):
            return StreamedParquet(stream)
        kind = kind_of_bytes(start)
        if kind or layout == "parquet" or not (has_tar_magic(start) or _is_tar_name(location.name)):
            found = f"another kind ({kind})" if kind else "an unknown kind"
            raise DataError(f"{location} is of {found}; expected a tar or parquet; download it and name the file")
        reader.seek(0)
        names = list(islice(stream_names(reader, str(location)), MAX_PEEKED))
    detected = layout is None and (has_samples(names, texts=False) or has_samples(names, texts=True))
    return StreamedTar(
        stream,
        detected or layout == "webdataset",
        splits=layout != "classfolders",
        ground_truth=ground_truth,
        trusted=layout is not None,
        observer=observer,
    )


def _may_be_read(name: str, size: int) -> bool:
    return is_ground_truth_member(name, size) or is_table_member(name, size)


def _stem(name: str) -> str:
    match = COMPRESSED_TAR.fullmatch(name)
    return match["stem"] if match else name.removesuffix(".tar")


def _is_tar_name(name: str) -> bool:
    return name.lower().endswith(".tar") or COMPRESSED_TAR.fullmatch(name) is not None


def _data(member: TarMember) -> bytes:
    return member.data


def _may_be_label(name: str, size: int) -> bool:
    return size <= LABEL_BYTES and not is_image_path(name)
