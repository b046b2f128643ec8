"""Compressed tars and tars at addresses: the same dataset as from the plain folder, faults, changes, and secrets."""

import bz2
import gzip
import io
import lzma
import os
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import udkd
from tests.data_prep.file_server import FileServer, file_server
from tests.data_prep.helpers import contents, converted, photo, run, small_set, write_tree
from tests.forks import forked
from tests.timeouts import scaled, wait_until
from udkd.data.dataset import DatasetFolder
from udkd.data_prep import pool
from udkd.data_prep.sources import byte_stream, open_sources
from udkd.data_prep.sources.address import Address, expand, location_of
from udkd.utils.errors import ConfigError, DataError

FILES = dict(sorted(small_set(train=8, val=3).items()))
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data).to_pybytes(),
}


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def webdataset_bytes(numbers: range) -> bytes:
    return tar_bytes({f"{n:04d}.{end}": data for n in numbers for end, data in (("cls", b"%d" % (n % 2)), ("jpg", photo(n)))})


def images_by_name(folder: DatasetFolder) -> dict[tuple[str, str], tuple[int, bytes]]:
    """Label and stored bytes of each image."""
    return {
        (split, group.source[n]): (int(group.labels[n]), group.read(n))
        for split, group in folder.splits.items()
        for n in range(group.num_samples)
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The dataset folder of the plain folder."""
    root = tmp_path_factory.mktemp("plain")
    return contents(converted(write_tree(root / "tree", FILES), root / "d").path)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as each:
        yield each


@pytest.fixture(autouse=True)
def _no_waits_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_stream, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("parts", [1, 3])
def test_a_compressed_tar_becomes_the_dataset_of_its_folder(
    tmp_path: Path, plain: dict[str, str], kind: str, parts: int
) -> None:
    """In one part, and in several: members of gzip, frames of zstd, with the border inside a file."""
    data = tar_bytes(FILES)
    size = -(-len(data) // parts)
    path = tmp_path / f"a.tar.{kind}"
    path.write_bytes(b"".join(COMPRESS[kind](data[n : n + size]) for n in range(0, len(data), size)))
    assert contents(converted(path, tmp_path / "d", workers=2).path) == plain
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "d"}


def test_joined_tars_and_other_names(tmp_path: Path, plain: dict[str, str]) -> None:
    """Two tars one after the other in one stream; a name that does not tell that it is compressed."""
    half = len(FILES) // 2
    first, second = tar_bytes(dict(list(FILES.items())[:half])), tar_bytes(dict(list(FILES.items())[half:]))
    for name in ("a.tgz", "a.tar", "download"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(first + bytes(5120)) + gzip.compress(second) + bytes(512))
        assert contents(converted(path, tmp_path / f"{name}-d").path) == plain


def test_ids_have_the_order_of_the_stream(tmp_path: Path) -> None:
    """Train and val images alternate, and classes, too: one pass for each split."""
    names = sorted(FILES, key=lambda name: name[::-1])
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes({f"set/{name}": FILES[name] for name in names})))
    folder = converted(path, tmp_path / "d", shard_samples=3, workers=2)
    assert {split: list(group.source) for split, group in folder.splits.items()} == {
        split: [name.partition("/")[2] for name in names if name.startswith(split)] for split in ("train", "val")
    }
    assert images_by_name(folder) == images_by_name(converted(write_tree(tmp_path / "t", FILES), tmp_path / "e"))


def test_shards_of_a_webdataset(tmp_path: Path) -> None:
    for name, numbers in (("train-0", range(7)), ("train-1", range(7, 12)), ("val-0", range(20, 24))):
        data = webdataset_bytes(numbers)
        for folder, ending, compress in (("w", "tar", bytes), ("z", "tar.zst", COMPRESS["zst"])):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.{ending}").write_bytes(compress(data))
    folder = converted(sorted((tmp_path / "z").iterdir()), tmp_path / "d")
    assert list(folder.split("train").source[:3]) == ["0000/train-0/0000.jpg", "0001/train-0/0001.jpg", "0000/train-0/0002.jpg"]
    assert images_by_name(folder) == images_by_name(converted(sorted((tmp_path / "w").iterdir()), tmp_path / "e"))
    with pytest.raises(DataError, match=r"compressed tars.*name the tars themselves, such as FOLDER/\*\.tar\.gz"):
        converted(tmp_path / "z", tmp_path / "f")


def test_a_flat_val_with_its_ground_truth_inside(tmp_path: Path) -> None:
    flat = {f"val/images/val_{n}.JPEG": photo(n) for n in range(4)}
    table = "".join(f"val_{n}.JPEG\tc{n % 2}\t0\t0\t9\t9\n" for n in range(4)).encode()
    train = {f"train/c{n % 2}/{n}.JPEG": photo(n + 9) for n in range(4)}
    path = tmp_path / "tiny.tar.xz"
    path.write_bytes(lzma.compress(tar_bytes(train | flat | {"val/val_annotations.txt": table})))
    assert converted(path, tmp_path / "d").split("val").source == [f"c{n % 2}/val_{n}.JPEG" for n in range(4)]


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_cut_or_damaged_stream_is_one_line_with_the_byte(tmp_path: Path, kind: str) -> None:
    data = COMPRESS[kind](tar_bytes(FILES))
    at = 4 if kind == "zst" else 5000  # pyarrow writes zstd without checksums
    path = tmp_path / f"a.tar.{kind}"
    for bad, message in (
        (data[:-20], r"truncated: its \w+ data ends too early, at byte"),
        (data[: len(data) // 2], r"truncated: its \w+ data ends too early, at byte|unexpected end of data"),
        (
            data[:at] + bytes(b ^ 255 for b in data[at : at + 40]) + data[at + 40 :],
            r"damaged: its \w+ data .* before byte|checksum",
        ),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=message) as caught:
            converted(path, tmp_path / "d")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_damaged_stream_is_closed_at_once(tmp_path: Path, kind: str) -> None:
    """Also while its error, and so the frames that read it, is kept."""
    path = tmp_path / "a.tar"
    data = COMPRESS[kind](os.urandom(1 << 18))
    path.write_bytes(data[:9] + b"\xff" * 64 + data[73:])
    with pytest.raises(DataError) as caught, byte_stream.ByteStream(path).reader() as reader:
        reader.read(1 << 20)
    names = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert caught.value.__traceback__
    assert str(path) not in names


def test_rules_for_members_hold_in_streams(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    for change, message in (
        ({"name": "/abs/c/a.JPEG"}, "its path leaves the archive"),
        ({"name": "train/../../a.JPEG"}, "its path leaves the archive"),
        ({"name": "train/c/a.JPEG", "type": tarfile.SYMTYPE, "linkname": "b"}, "it is a link to 'b'"),
        ({"name": "train/c/a.JPEG", "type": tarfile.CHRTYPE}, "it is a device"),
    ):
        member = tarfile.TarInfo()
        for key, value in change.items():
            setattr(member, key, value)
        path.write_bytes(gzip.compress(member.tobuf() + tar_bytes(FILES)))
        with pytest.raises(DataError, match=message):
            converted(path, tmp_path / "d")


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path.write_bytes(gzip.compress(long_name.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 25)))
    with pytest.raises(DataError, match=r"is not a complete tar \(a header of 1,073,741,824 bytes, the limit is 16,777,216\)"):
        converted(path, tmp_path / "d")


def test_hard_links_to_earlier_files(tmp_path: Path) -> None:
    """From val to train and within train; to a later file there is one line."""
    names = list(FILES)
    links = {"train/n01440764/again.JPEG": names[0], "val/n01443537/again.JPEG": names[1], "val/n01443537/zz.JPEG": names[-1]}
    headers = {}
    for name, target in links.items():
        headers[name] = tarfile.TarInfo(name)
        headers[name].type, headers[name].linkname = tarfile.LNKTYPE, target
    tail = b"".join(header.tobuf() for header in headers.values()) + bytes(1024)
    data = tar_bytes(FILES)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        end = archive.getmembers()[-1].offset_data + -(-len(FILES[names[-1]]) // 512) * 512
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(data[:end] + tail))
    found = images_by_name(converted(path, tmp_path / "d"))
    expected = images_by_name(
        converted(write_tree(tmp_path / "t", FILES | {name: FILES[target] for name, target in links.items()}), tmp_path / "e")
    )
    assert found == expected
    path.write_bytes(gzip.compress(tail[:512] + data))
    with pytest.raises(DataError, match=r"a hard link to '.*', which comes later in the stream; .*--hard-dereference"):
        converted(path, tmp_path / "f")


def test_hard_links_to_labels(tmp_path: Path) -> None:
    """As of a WebDataset that was packed from a folder without copies."""
    plain, path = tmp_path / "a.tar", tmp_path / "a.tar.gz"
    with tarfile.open(plain, "w") as archive:
        for n in range(6):
            for end, data in (("jpg", photo(n)), ("cls", b"%d" % n)):
                member = tarfile.TarInfo(f"{n:04d}.{end}")
                if end == "cls" and n > 1:
                    member.type, member.linkname = tarfile.LNKTYPE, f"{n % 2:04d}.cls"
                else:
                    member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    path.write_bytes(gzip.compress(plain.read_bytes()))
    found = images_by_name(converted(path, tmp_path / "d", hold_out_percent=50))
    assert len(found) == 6
    assert sorted(found.values()) == sorted(images_by_name(converted(plain, tmp_path / "e", hold_out_percent=50)).values())


def test_a_file_that_changes_between_listing_and_reading(tmp_path: Path) -> None:
    """Seen by its time or its size; and with the same time and size, by the bytes of an image."""
    data = tar_bytes(FILES)
    path = tmp_path / "a.tar.gz"
    for keep_time, message in ((False, "while it was read;"), (True, r"while it was read \(at n\d+_\d\.JPEG\)")):
        path.write_bytes(gzip.compress(data, 0))
        (source,) = open_sources([path])
        entries = list(source.list().entries)
        before = path.stat()
        changed = bytearray(data)
        changed[entries[2].offset + 30] ^= 255
        path.write_bytes(gzip.compress(bytes(changed), 0))
        if keep_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DataError, match=message):
            list(source.read_in_order(entries))  # type: ignore[attr-defined]


@pytest.mark.parametrize("drop_after", [0, 9_000])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_http(tmp_path: Path, plain: dict[str, str], server: FileServer, name: str, ranges: bool, drop_after: int) -> None:
    """Plain and compressed, through a redirect, from servers with and without Range, and dropped again and again."""
    data = tar_bytes(FILES)
    server.files["real/x"] = gzip.compress(data) if name.endswith("gz") else data
    server.redirects[name] = "/real/x"
    server.ranges, server.drop_after = ranges, drop_after
    if drop_after and not ranges:  # it never gets further
        with pytest.raises(DataError, match=r"cannot be read beyond byte 9,000 \(.* byte 9,000 of .*, 5 retries\)"):
            convert_address(server.address(name), tmp_path / "d")
        return
    assert contents(convert_address(server.address(name), tmp_path / "d")) == plain
    assert any(asked for _, asked in server.requests) == bool(drop_after)


def convert_address(address: str | list[str], folder: Path, **options: object) -> Path:
    udkd.convert(address, folder, **{"side": 64, "workers": 1, **options})  # type: ignore[arg-type]
    return folder


def test_http_without_ranges_continues_at_its_byte(tmp_path: Path, plain: dict[str, str], server: FileServer) -> None:
    """A single drop: the file is read again, and passed over to the byte."""
    server.files["a.tar"] = tar_bytes(FILES)
    server.ranges = False
    (source,) = open_sources([Address(server.address("a.tar"))])
    server.drop_after = 20_000
    reader = source.stream.reader()  # type: ignore[attr-defined]
    with reader:
        head = reader.read(20_000)
        server.drop_after = 0
        assert head + reader.read(1 << 30) == server.files["a.tar"]
    assert [asked for _, asked in server.requests][-1] == "bytes=20000-"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"does not exist \(HTTP 404"),
        (403, r"may not be read \(HTTP 403"),
        (401, r"may not be read \(HTTP 401"),
        (418, r"cannot be read \(HTTP 418"),
        (500, r"cannot be read beyond byte 0 \(HTTP 500 .*, 5 retries\)"),
    ],
)
def test_http_errors_are_one_line(tmp_path: Path, server: FileServer, status: int, message: str) -> None:
    server.statuses = [status] * 9
    with pytest.raises(DataError, match=rf"http://{server.host}/a\.tar {message}"):
        convert_address(server.address("a.tar"), tmp_path / "d")
    assert len(server.requests) == (6 if status == 500 else 1)


def test_a_compressed_stream_is_read_on_after_a_drop(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jump would begin inside the compressed bytes."""
    monkeypatch.setattr(byte_stream, "JUMP", 1000)
    data = os.urandom(1 << 19)
    server.files["a.gz"], server.drop_after = gzip.compress(data), 1 << 17
    with byte_stream.ByteStream(Address(server.address("a.gz"))).reader() as reader:
        assert reader.read(300_000) == data[:300_000]
        reader.seek(400_000)
        assert reader.read(9) == data[400_000:400_009]


def test_a_seek_beyond_the_end_asks_for_nothing(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers answer with 416, which is not what is wrong with a truncated tar."""
    monkeypatch.setattr(byte_stream, "JUMP", 1000)
    server.files["a.tar"] = bytes(5000)
    with byte_stream.ByteStream(Address(server.address("a.tar"))).reader() as reader:
        reader.read(9)
        reader.seek(9000)
        assert (reader.tell(), reader.read(1), reader.size) == (5000, b"", 5000)


def test_an_address_without_a_path(tmp_path: Path, plain: dict[str, str], server: FileServer) -> None:
    """Such as of a download chosen by its query."""
    server.files[""] = tar_bytes(FILES)
    assert contents(convert_address(f"http://{server.host}/?file=a.tar", tmp_path / "d")) == plain


@pytest.mark.parametrize("out", ["s3://bucket/data", "s3:/bucket/data", "https://host/data"])
def test_a_dataset_is_not_written_to_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"is an address; expected a folder on this machine to write; add --out DATA"):
        udkd.convert(write_tree(tmp_path / "t", FILES), out)
    assert [each.name for each in tmp_path.iterdir()] == ["t"]


def test_http_errors_that_pass(tmp_path: Path, plain: dict[str, str], server: FileServer) -> None:
    server.files["a.tar"] = tar_bytes(FILES)
    server.statuses = [503, 429, 500]
    assert contents(convert_address(server.address("a.tar"), tmp_path / "d")) == plain


def test_other_faults_of_http(tmp_path: Path, server: FileServer) -> None:
    server.redirects |= {"loop.tar": "/loop.tar", "out.tar": "file:///etc/passwd"}
    server.files |= {"page.tar": b"\n<!DOCTYPE html><html>", "a.zip": b"PK\x03\x04" + bytes(999), "x": b"some text" * 99}
    for path, message in (
        ("loop.tar", "redirects to where it cannot be followed"),
        ("out.tar", "redirects to where it cannot be followed"),
        ("page.tar", "is a web page; expected a file; give the address that a browser downloads it from"),
        ("a.zip", r"is of another kind \(zip files\); expected a tar or parquet; download it and name the file"),
        ("x", "is of an unknown kind; expected a tar"),
        ("train-*.tar", r"http cannot list files; expected names; write \{000\.\.146\}"),
    ):
        with pytest.raises(DataError, match=message):
            convert_address(server.address(path), tmp_path / "d")
    with pytest.raises(DataError, match=r"the host cannot be found|cannot be read beyond byte 0"):
        convert_address("http://no-such-host.invalid/a.tar", tmp_path / "d")
    with pytest.raises(ConfigError, match="unknown protocol"):
        convert_address("nonsense://host/a.tar", tmp_path / "d")
    with pytest.raises(ConfigError, match="an address that became a path"):
        convert_address(Path("https://host/a.tar"), tmp_path / "d")  # type: ignore[arg-type]


def test_a_remote_file_that_changes_is_refused(tmp_path: Path, server: FileServer) -> None:
    """Between the passes, and between a dropped connection and the next, with ETags and by the size alone."""
    for etags in (True, False):
        server.etags = etags
        server.files["a.tar"] = tar_bytes(FILES)
        (source,) = open_sources([Address(server.address("a.tar"))])
        entries = list(source.list().entries)
        server.files["a.tar"] += bytes(512)
        with pytest.raises(DataError, match="changed while it was read"):
            list(source.read_in_order(entries))  # type: ignore[attr-defined]
    server.files["b.tar"] = tar_bytes(FILES)
    server.etags = True
    (source,) = open_sources([Address(server.address("b.tar"))])
    server.drop_after = 20_000
    reader = source.stream.reader()  # type: ignore[attr-defined]
    with reader:
        reader.read(20_000)
        server.files["b.tar"] = server.files["b.tar"][::-1]
        with pytest.raises(DataError, match="changed while it was read"):
            reader.read(1 << 30)


def test_a_silent_server_does_not_hold_up_the_end(server: FileServer) -> None:
    """As after Ctrl-C: the read that waits for bytes ends."""
    server.files["a.tar.gz"] = gzip.compress(tar_bytes(FILES | {"big": os.urandom(byte_stream.FIRST_BLOCK * 4)}))
    server.drop_after, server.stalls = byte_stream.FIRST_BLOCK * 2, True
    reader = byte_stream.ByteStream(Address(server.address("a.tar.gz"))).reader()
    with reader:
        assert len(reader.read(512)) == 512
        began = time.monotonic()
    assert time.monotonic() - began < scaled(10)
    assert not any(thread.name.startswith(("read http", "decompress http")) for thread in threading.enumerate())


def test_credentials_are_sent_and_never_shown(tmp_path: Path, server: FileServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.files["a.tar"] = tar_bytes(FILES | {"train/notes.txt": b"x"})
    address = f"http://user:sesame@{server.host}/a.tar?token=abracadabra"
    convert_address(address, tmp_path / "d")
    assert set(server.authorizations) == {"Basic dXNlcjpzZXNhbWU="}
    for path in (tmp_path / "d").rglob("*"):
        stored = path.read_bytes() if path.is_file() else b""
        assert not any(secret in stored for secret in (b"sesame", b"abracadabra", b"127.0.0.1"))
    server.statuses = [403]
    code, out, err = run("convert", address, tmp_path / "e", environment={"no_proxy": "*"})
    assert code == 1
    assert f"http://{server.host}/a.tar?… may not be read (HTTP 403 Forbidden); expected access; check" in err.splitlines()[-1]
    assert "sesame" not in out + err
    assert "abracadabra" not in out + err
    assert "sesame" not in repr(Address(address))


def test_credentials_are_not_sent_to_another_host(tmp_path: Path, server: FileServer) -> None:
    with file_server() as other:
        other.files["a.tar"] = tar_bytes(FILES)
        server.redirects |= {"a.tar": "/b.tar", "b.tar": other.address("a.tar")}
        open_sources([Address(f"http://user:sesame@{server.host}/a.tar")])
        assert server.authorizations == ["Basic dXNlcjpzZXNhbWU="] * 2
        assert other.authorizations == [None]


def test_patterns_and_other_file_systems(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    parts = {"train-000": range(5), "train-001": range(5, 9), "val-000": range(20, 23)}
    for name, numbers in parts.items():
        files.pipe(f"/w/{name}.tar.gz", gzip.compress(webdataset_bytes(numbers)))
        (tmp_path / f"{name}.tar").write_bytes(webdataset_bytes(numbers))
    expected = images_by_name(converted(sorted(tmp_path.glob("*.tar")), tmp_path / "d"))
    for n, addresses in enumerate(
        (
            ["memory://w/train-{000..001}.tar.gz", "memory://w/val-000.tar.gz"],
            ["memory://w/*.tar.gz"],
            "memory://w/{train,val}-*.gz",
        )
    ):
        assert images_by_name(DatasetFolder.open(convert_address(addresses, tmp_path / f"m{n}"))) == expected  # type: ignore[arg-type]
    for address, message in (
        ("memory://w/no.tar", "memory://w/no.tar does not exist"),
        ("memory://w", "is a folder; expected tars"),
        ("memory://w/x-*.tar", "matches no file"),
    ):
        with pytest.raises(DataError, match=message):
            convert_address(address, tmp_path / "x")


@pytest.mark.parametrize("scheme", ["http", "memory"])
def test_remote_parquet(tmp_path: Path, server: FileServer, scheme: str) -> None:
    """Row groups of four rows, with labels in between, and a server that drops the connection."""
    for name, count in (("train", 11), ("val", 5)):
        rows = {
            "label": [n % 2 for n in range(count)],
            "image": [{"bytes": photo(f"{name}{n}"), "path": f"{n}.jpg"} for n in range(count)],
        }
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet", row_group_size=4)
        data = (tmp_path / f"{name}.parquet").read_bytes()
        server.files[f"{name}.parquet"] = data
        fsspec.filesystem("memory").pipe(f"/p/{name}.parquet", data)
    local = [tmp_path / "train.parquet", tmp_path / "val.parquet"]
    expected = contents(converted(local, tmp_path / "d").path)
    addresses = [f"memory://p/{path.name}" if scheme == "memory" else server.address(path.name) for path in local]
    server.drop_after = 3_000
    assert contents(convert_address(addresses, tmp_path / "e")) == expected
    if scheme == "http":
        server.ranges = False
        with pytest.raises(DataError, match="the server cannot begin at any byte"):
            convert_address(addresses, tmp_path / "f")


def test_braces_are_expanded_as_in_bash() -> None:
    for text, expected in (
        ("{000..002}", ["000", "001", "002"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{02..1}", ["02", "01"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{x}", ["{x}"]),
    ):
        address = location_of(f"https://host/train-{text}.tar")
        assert isinstance(address, Address)
        assert [each.url for each in expand(address)] == [f"https://host/train-{each}.tar" for each in expected]
    assert location_of("file:///tmp/a%20b.tar") == Path("/tmp/a b.tar")
    assert location_of("a/b.tar") == Path("a/b.tar")


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"s3://bucket/a\.tar needs a package .*pip install 'udkd\[remote\]'"):
        convert_address("s3://bucket/a.tar", tmp_path / "d")


def convert_again(source: Path, folder: Path, options: dict[str, object]) -> None:
    """In a forked process, with workers of its own."""
    pool._idle = None
    converted(source, folder, **options, workers=2)


def test_a_killed_conversion_of_a_stream_continues_to_the_same_bytes(tmp_path: Path) -> None:
    files = {f"train/c{n % 3}/{n}.jpg": photo(n % 50, 60, 80) for n in range(160)} | {
        f"val/c{n}/v.jpg": photo(n) for n in range(3)
    }
    options = {"formats": (), "shard_samples": 20}
    path = tmp_path / "t.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(files), 1))
    complete = contents(converted(path, tmp_path / "complete", **options).path)
    child = forked(convert_again, path, tmp_path / "d", options)
    sidecar = tmp_path / "d" / "train" / "samples-00000.rows.json"
    assert wait_until(lambda: sidecar.exists() or os.waitpid(child, os.WNOHANG) != (0, 0), every_s=0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    unfinished = (tmp_path / "d" / "unfinished.json").exists()
    killed_ns = time.time_ns()
    converted(path, tmp_path / "d", **options, workers=2)
    assert contents(tmp_path / "d") == complete
    shard = tmp_path / "d" / "train" / "samples-00000.tar"
    assert not unfinished or shard.stat().st_mtime_ns < killed_ns  # it was kept, and the stream passed over
