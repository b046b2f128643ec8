"""Memory per image during a conversion, in bytes: the listing, and the columns of the manifest."""

import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from udkd.data.manifest import GROUP_ROWS, SCHEMA, Columns, ManifestRow, read_manifest, rows_to_columns, write_manifest
from udkd.data_prep.listing import SampleListing, list_samples
from udkd.data_prep.sources import Entry, EntryTable, Listing, open_sources
from udkd.utils.files import sha256_file

FEW, MANY = 2_500, 10_000
WNIDS = [f"n{n:08d}" for n in range(20)]


class Stubs:
    """A source of images that are never read, with names like ImageNet's."""

    path = Path("stubs")

    def __init__(self, count: int) -> None:
        self.count = count

    def list(self) -> Listing:
        """All of them, each as new strings."""
        return Listing(entries=EntryTable(entry(n) for n in range(self.count)))

    def read(self, entry: Entry) -> bytes:
        """Nothing to read."""
        raise NotImplementedError


def entry(n: int) -> Entry:
    wnid, split = WNIDS[n % len(WNIDS)], "val" if n % 27 == 13 else "train"
    name = f"{wnid}_{n * 7919 % 1_000_000}.JPEG"
    return Entry(split, wnid, name, f"data/{split}/{wnid}/{name}", n * 110_000, 109_000 + n, 1_700_000_000_000_000_000 + n)  # type: ignore[arg-type]


def row(n: int) -> ManifestRow:
    return ManifestRow(
        label=n % 20,
        source=f"{WNIDS[n % 20]}/{n:08d}.JPEG",
        source_height=375 + n % 7,
        source_width=500,
        height=375,
        width=500,
        sha256=n.to_bytes(32, "big"),
        crc32c=2**32 - 1 - n,
        note="" if n % 50 else "PNG to JPEG",
        shard=n // 1000,
        offset=n % 1000 * 110_000,
        size=109_000 + n,
    )


def bytes_each(make: Callable[[int], object], counts: tuple[int, int] = (FEW, MANY)) -> tuple[float, float]:
    """Memory per additional image, final and peak: the difference of two sizes, so that constants cancel."""
    sizes = []
    for count in counts:
        tracemalloc.start()
        kept = make(count)
        sizes.append(tracemalloc.get_traced_memory())
        tracemalloc.stop()
        del kept
    (few, few_peak), (many, many_peak) = sizes
    more = counts[1] - counts[0]
    return (many - few) / more, (many_peak - few_peak) / more


def listing_of(count: int) -> SampleListing:
    return list_samples([Stubs(count)], classes="all", hold_out_percent=None)


def test_a_listing_takes_a_hundred_bytes_an_image() -> None:
    listing_of(100)  # imports and tables of class names
    kept, peak = bytes_each(listing_of)
    assert kept < 100
    assert peak < 160


def test_a_manifest_takes_its_columns_and_no_more() -> None:
    kept, peak = bytes_each(lambda count: rows_to_columns(row(n) for n in range(count)))
    assert kept < 140  # 81, two texts of 22 bytes and less, and spare capacity
    assert peak < 200


def test_listing_a_tar_takes_as_little_memory(tmp_path: Path) -> None:
    """Peak memory of listing a real source, whose members have no bytes."""
    counts = (500, 2_000)
    for count in counts:
        with tarfile.open(tmp_path / f"{count}.tar", "w") as archive:
            for n in range(count):
                archive.addfile(tarfile.TarInfo(entry(n).key), io.BytesIO())
    _, peak = bytes_each(lambda count: open_sources([tmp_path / f"{count}.tar"])[0].list(), counts)
    assert peak < 240


def test_columns_equal_their_rows(tmp_path: Path) -> None:
    rows = [row(n) for n in range(300)] + [ManifestRow(label=3, source="c/x.jpg", excluded=True, note="empty file")]
    columns = rows_to_columns(rows)
    path = tmp_path / "manifest.parquet"
    write_manifest(path, columns)
    back = read_manifest(path, samples=301, size_bytes=path.stat().st_size, sha256=sha256_file(path))
    for each in (columns, back):
        assert each.num_samples == len(rows)
        assert each.sizes.tolist() == [[row.source_height, row.source_width, row.height, row.width] for row in rows]
        assert [digest.tobytes() for digest in each.sha256] == [row.sha256 for row in rows]
        assert (each.source, each.note) == ([row.source for row in rows], [row.note for row in rows])
        assert each.labels.tolist() == [row.label for row in rows]
        for name in ("crc32c", "excluded", "shard", "offset", "size"):
            assert getattr(each, name).tolist() == [getattr(row, name) for row in rows], name
    assert pq.read_table(path).to_pylist() == [{name: getattr(each, name) for name in SCHEMA.names} for each in rows]


def test_groups_of_rows_are_as_pyarrow_alone_writes_them(tmp_path: Path) -> None:
    """Writing group by group gives the same file as writing the full table."""
    count = GROUP_ROWS + 1000
    base = rows_to_columns(row(n) for n in range(1000))
    at = np.arange(count) % 1000
    columns = Columns(
        labels=base.labels[at],
        sizes=base.sizes[at],
        excluded=base.excluded[at],
        source=[base.source[n] for n in at],
        note=[base.note[n] for n in at],
        sha256=base.sha256[at],
        crc32c=base.crc32c[at],
        shard=base.shard[at],
        offset=base.offset[at],
        size=base.size[at],
    )
    write_manifest(tmp_path / "ours.parquet", columns)
    table = pq.read_table(tmp_path / "ours.parquet").combine_chunks()
    pq.write_table(
        table,
        tmp_path / "complete.parquet",
        compression="zstd",
        use_dictionary=["note", "label"],
        write_page_checksum=True,
        row_group_size=GROUP_ROWS,
    )
    assert pq.ParquetFile(tmp_path / "ours.parquet").num_row_groups == 2
    assert (tmp_path / "ours.parquet").read_bytes() == (tmp_path / "complete.parquet").read_bytes()
    size = (tmp_path / "ours.parquet").stat().st_size
    back = read_manifest(
        tmp_path / "ours.parquet", samples=count, size_bytes=size, sha256=sha256_file(tmp_path / "ours.parquet")
    )
    assert np.array_equal(back.sha256, columns.sha256)
    assert back.source[count - 1] == base.source[at[-1]]
