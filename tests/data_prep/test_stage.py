"""`udkd data stage`: the copy is the same dataset, whatever the source, the kills, and the number of processes."""

import json
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from tests.cli.commands import code_of, inside, refused, set_options
from tests.data_prep.file_server import FileServer, file_server
from tests.data_prep.helpers import contents, converted, photo, run, start, write_tree
from tests.factories import SMALL, make_dataset, make_teacher
from tests.forks import die_at, forked
from tests.timeouts import scaled, wait_until
from udkd.data import dataset as dataset_module
from udkd.data.dataset import DatasetFolder
from udkd.data.shards import ShardPacker
from udkd.data_prep import stage as stage_module
from udkd.data_prep.formats import WRITERS, derive_formats
from udkd.data_prep.sources import byte_stream
from udkd.data_prep.sources.address import Address, Location
from udkd.data_prep.stage import Staged, stage
from udkd.data_prep.verify import verify
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.files import FolderLock
from udkd.utils.progress import SILENT

RECORDS = ["dataset.json", "train/manifest.parquet", "val/manifest.parquet", "report.json"]
SHARDS = [*(f"train/samples-0000{n}.tar" for n in range(3)), "val/samples-00000.tar"]
FILES = {f"train/c{n % 3}/{n}.jpg": photo(n, 90, 120) for n in range(28)} | {f"val/c{n}/v.jpg": photo(n) for n in range(3)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with shards only: three of train, one of which has a gap, and one of val."""
    root = tmp_path_factory.mktemp("source")
    tree = write_tree(root / "tree", FILES | {"train/c0/0bad.jpg": b"x"})
    return converted(tree, root / "d", side=128, shard_samples=10, formats=(), on_bad="skip").path


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A copy of the source, to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "source"))


@pytest.fixture
def server(source: Path) -> Iterator[FileServer]:
    with file_server() as each:
        each.files = {f"d/{path.relative_to(source)}": path.read_bytes() for path in source.rglob("*") if path.is_file()}
        yield each


@pytest.fixture(autouse=True)
def _no_waits_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_stream, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("no_proxy", "*")


def copy(source: Location, folder: Path, *formats: str) -> Staged | None:
    return stage(source, folder, formats=formats, observer=SILENT)


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def image_byte(folder: Path, sample_id: int) -> int:
    """The position, in its shard, of a byte of a train sample."""
    return int(DatasetFolder.open(folder).train.offset[sample_id]) + 30


def first_half(source: Path, folder: Path) -> None:
    """What a copy that was killed in its second shard leaves."""
    data = source / "train" / "samples-00002.tar"
    shutil.move(data, data.with_name("away"))
    try:
        with pytest.raises(DataError, match=r"samples-00002\.tar cannot be read"):
            copy(source, folder)
    finally:
        shutil.move(data.with_name("away"), data)
    second = folder / "train" / "samples-00001.tar"
    second.write_bytes(second.read_bytes()[:20_000])
    second.rename(second.with_name("samples-00001.tar.tmp"))


def test_the_copy_has_the_same_bytes(source: Path, tmp_path: Path) -> None:
    staged = copy(source, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)
    assert verify(tmp_path / "copy", SILENT) == []
    assert staged is not None
    assert staged.kept_bytes == 0
    assert staged.copied_bytes == sum((source / name).stat().st_size - 1024 for name in SHARDS)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*")}
    assert copy(source, tmp_path / "copy") is None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*")} == times


def test_unknown_files_stay_behind(copied: Path, source: Path, tmp_path: Path) -> None:
    write_tree(copied, {"notes.txt": b"x", "train/samples-00009.tar": b"x", "train/canvas.npy.tmp": b"x", "test/a": b"x"})
    copy(copied, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


def test_a_cache_fits_both(tmp_path: Path) -> None:
    """Built on either, accepted with the other; the source has the resident format, too."""
    dataset = make_dataset(tmp_path / "source", per_class=2, val_per_class=1)
    source = dataset.path
    copy(source, tmp_path / "copy")
    teacher = make_teacher(tmp_path / "teacher", dataset).path
    settings = set_options(*SMALL, "train.epochs=1", "students=[{architecture='squeezenet1_1', lr=0.01}]", "teacher.views=1")
    for n, (built, used) in enumerate([(source, tmp_path / "copy"), (tmp_path / "copy", source)]):
        more = ("--teacher", teacher, "--device", "cpu", *settings)
        cache, out = tmp_path / f"cache{n}", tmp_path / f"run{n}"
        assert code_of("cache", "build", "smoke", "--data", built, "--out", cache, *more) == 0
        assert code_of("train", "smoke", "--data", used, "--cache", cache, "--out", out, *more) == 0
        assert json.loads((out / "run.json").read_text())["allowed"] == []


def test_http_one_file_after_the_other(source: Path, tmp_path: Path, server: FileServer) -> None:
    """Only what the records name, once; also through drops. Then all that is asked for is the header."""
    server.drop_after = 30_000
    staged = copy(Address(server.address("d?key=abracadabra")), tmp_path / "copy")
    assert staged is not None
    assert contents(tmp_path / "copy") == contents(source)
    assert [path.removeprefix("d/") for path, asked in server.requests if not asked] == RECORDS + SHARDS
    assert any(asked for _, asked in server.requests)
    server.requests.clear()
    assert copy(Address(server.address("d/")), tmp_path / "copy") is None
    assert server.requests == [("d/dataset.json", "")]


def test_fsspec(source: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(str(source), "/stage-test/d", recursive=True)
    try:
        copy(Address("memory://stage-test/d"), tmp_path / "copy")
    finally:
        fsspec.filesystem("memory").rm("/stage-test", recursive=True)
    assert contents(tmp_path / "copy") == contents(source)


def test_addresses_of_files_in_a_folder() -> None:
    for url, expected in (
        ("https://u:p@host/d/?sig=a/b", "https://u:p@host/d/train/a?sig=a/b"),
        ("http://host/d#x", "http://host/d/train/a#x"),
        ("s3://bucket/what?", "s3://bucket/what?/train/a"),
        ("memory://d//", "memory://d/train/a"),
    ):
        assert (Address(url) / "train" / "a").url == expected


def test_it_resumes_in_the_middle_of_a_shard(
    source: Path, tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard is not asked for, the second from the first image that is missing on."""
    monkeypatch.setattr(byte_stream, "JUMP", 5000)
    monkeypatch.setattr(byte_stream, "FIRST_BLOCK", 1000)
    monkeypatch.setattr(byte_stream, "DEPTH", 1)
    first_half(source, tmp_path / "copy")
    address = Address(server.address("d"))
    staged = copy(address, tmp_path / "copy")
    assert staged is not None
    assert contents(tmp_path / "copy") == contents(source)
    train = DatasetFolder.open(source).train
    second = [n for n in train.ids.tolist() if train.shard[n] == 1]
    missing = min(n for n in second if train.offset[n] + train.size[n] > 20_000)
    asked = [request for request in server.requests if request[0].endswith(".tar")]
    assert asked == [
        ("d/train/samples-00001.tar", ""),
        ("d/train/samples-00001.tar", f"bytes={train.offset[missing]}-"),
        ("d/train/samples-00002.tar", ""),
        ("d/val/samples-00000.tar", ""),
    ]
    assert staged.kept_bytes == (source / SHARDS[0]).stat().st_size - 1024 + train.offset[missing] - 512


@pytest.mark.parametrize("name", ["train/samples-00000.tar", "train/samples-00001.tar.tmp", "val/manifest.parquet"])
def test_what_an_unfinished_copy_holds_is_not_trusted(source: Path, tmp_path: Path, name: str) -> None:
    first_half(source, tmp_path / "copy")
    for at in (100, 700, 9_000):  # a header, and images
        damage(tmp_path / "copy" / name, at % (tmp_path / "copy" / name).stat().st_size)
    with open(tmp_path / "copy" / name, "ab") as file:
        file.write(bytes(300_000))
    assert copy(source, tmp_path / "copy") is not None
    assert contents(tmp_path / "copy") == contents(source)


def test_killed_at_every_write(source: Path, tmp_path: Path) -> None:
    """Before and after each fsync and rename, and in the middle of each write: refused by all readers, or complete.

    UDKD_LONG_TESTS=1 tries all of these moments, otherwise every third.
    """
    expected, ends = contents(source), []
    step = 1 if os.environ.get("UDKD_LONG_TESTS") else 3
    for call in range(1, 200, step):
        folder = tmp_path / str(call)

        def work(folder: Path = folder, call: int = call) -> None:
            die_at(call, call % 2 == 0, ("fsync", "replace", "pwrite"))
            copy(source, folder)

        ends.append(os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]))
        for resumed in (False, True):
            if resumed:
                copy(source, folder)
            if resumed or (folder / "dataset.json").exists():
                (folder / ".lock").unlink(missing_ok=True)  # of the killed process
                assert contents(folder) == expected
        shutil.rmtree(folder)
        if ends[-1] == 0:
            break
    assert ends == [-signal.SIGKILL] * (len(ends) - 1) + [0]
    assert len(ends) > 30 / step


def test_one_process_works_and_its_death_is_survived(
    source: Path, tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others say that they wait. When the first is killed, one goes on where it was."""
    folder, address = tmp_path / "copy", server.address("d")
    server.drop_after, server.stalls = 30_000, True
    processes = [start("stage", address, folder)]
    assert wait_until(lambda: any(path.endswith("00000.tar") for path, _ in server.requests))
    server.drop_after, server.stalls = 0, False
    processes += [start("stage", address, folder) for _ in range(2)]
    for process in processes[1:]:
        assert process.stderr is not None
        assert f"is being written by process {processes[0].pid}" in (line := process.stderr.readline())
        assert line.endswith("waiting until it has finished\n")
    assert processes[0].poll() is None
    server.requests.clear()
    processes[0].kill()
    processes[0].communicate(timeout=scaled(20))
    outputs = sorted(process.communicate(timeout=scaled(60))[0] for process in processes[1:])
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0, 0]
    assert outputs[0] == f"{folder} is complete: there is nothing to do\n"
    assert outputs[1].startswith(f"{folder}: copied ")
    assert [path for path, _ in server.requests] == [f"d/{name}" for name in ["report.json", *SHARDS]]
    assert contents(folder) == contents(source)


def test_the_wait_is_bounded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_module, "POLL_S", 0.01)
    monkeypatch.setattr(stage_module, "MAX_WAIT_S", 0.05)
    (tmp_path / "copy").mkdir()
    with FolderLock(tmp_path / "copy"):
        result = inside(capsys, "data", "stage", source, tmp_path / "copy")
    assert (result.code, result.out) == (1, "")
    assert result.last.startswith(f"error: {tmp_path / 'copy'} is being written by process {os.getpid()}")
    assert result.err.count("waiting until") == 1
    assert list((tmp_path / "copy").iterdir()) == []


def test_a_silent_server_and_a_signal(source: Path, tmp_path: Path, server: FileServer) -> None:
    """What came before is kept."""
    server.drop_after, server.stalls = 30_000, True
    process = start("stage", server.address("d"), tmp_path / "copy")
    assert wait_until(lambda: any(path.endswith("00000.tar") for path, _ in server.requests))
    assert wait_until(lambda: list((tmp_path / "copy" / "train").glob("*.tar.tmp")))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=scaled(20))
    assert process.returncode == 143
    assert err == "error: stopped by SIGTERM; finished work is kept, the same command resumes\n"
    server.drop_after, server.stalls = 0, False
    copy(Address(server.address("d")), tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


def test_a_network_that_vanishes(source: Path, tmp_path: Path, server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.ranges, server.drop_after = False, 30_000
    result = inside(capsys, "data", "stage", server.address("d"), tmp_path / "copy")
    refused(result, f"{server.address('d/train/samples-00000.tar')} cannot be read beyond byte 30,000", "5 retries")
    assert (tmp_path / "copy" / "train" / "samples-00000.tar.tmp").stat().st_size > 20_000
    server.drop_after = 0
    staged = copy(Address(server.address("d")), tmp_path / "copy")
    assert staged is not None
    assert staged.kept_bytes > 20_000
    assert contents(tmp_path / "copy") == contents(source)


def test_a_damaged_image_in_the_source(copied: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged, train = copied / "train" / "samples-00001.tar", DatasetFolder.open(source).train
    damage(damaged, image_byte(source, 12))
    result = inside(capsys, "data", "stage", copied, tmp_path / "copy")
    refused(result, f"{damaged}: {train.describe(12)} has crc32c ", f"expected {train.crc32c[12]:08x} as in the manifest")
    assert sorted(path.name for path in (tmp_path / "copy" / "train").glob("*.tar*")) == [
        "samples-00000.tar",
        "samples-00001.tar.tmp",
    ]
    refused(inside(capsys, "data", "info", tmp_path / "copy"), "holds no dataset.json")
    shutil.copy(source / "train" / "samples-00001.tar", damaged)
    copy(copied, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


@pytest.mark.parametrize("name", [*RECORDS, SHARDS[-1]])
def test_damaged_and_truncated_files_of_the_source(
    copied: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, which names the file. The space between images and the indices are not read."""
    data = (copied / name).read_bytes()
    changes = [data[: len(data) // 2], b""]
    for changed in changes if name.endswith(".tar") else [*changes, data[:30] + b"\xff" + data[31:]]:
        (copied / name).write_bytes(changed)
        refused(inside(capsys, "data", "stage", copied, tmp_path / "copy"), str(copied / name))
        assert not (tmp_path / "copy" / "dataset.json").exists()
        assert not (tmp_path / "copy" / name).exists()


def test_what_follows_from_the_manifest_is_written_anew(copied: Path, source: Path, tmp_path: Path) -> None:
    """A damaged header or padding and a lost index of the source do not reach the copy."""
    damage(copied / "train" / "samples-00000.tar", 5)
    (copied / "train" / "samples-00000.idx").unlink()
    copy(copied, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


def test_a_count_that_no_checksum_covers(copied: Path, tmp_path: Path) -> None:
    header = json.loads((copied / "dataset.json").read_text())
    header["splits"]["train"]["excluded"] = 0
    (copied / "dataset.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match=r"dataset\.json lists 0 excluded train samples; expected 1"):
        copy(copied, tmp_path / "copy")


@pytest.mark.parametrize("lost", ["train/samples-00001.tar", "val/samples-00000.idx", "val/manifest.parquet", "report.json"])
def test_a_complete_folder_that_lost_a_file_is_mended(source: Path, tmp_path: Path, lost: str) -> None:
    """As by a cleaner of /tmp."""
    copy(source, tmp_path / "copy")
    (tmp_path / "copy" / lost).unlink()
    staged = copy(source, tmp_path / "copy")
    assert staged is not None
    assert contents(tmp_path / "copy") == contents(source)
    assert (staged.copied_bytes > 0) == lost.endswith("00001.tar")


def test_derived_formats(source: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made from the copied shards, with the bytes that the source's have; and later; and again if they are incomplete."""
    every = tuple(WRITERS)
    derive_formats(DatasetFolder.open(copied), every, workers=1, observer=SILENT)
    result = inside(capsys, "data", "stage", copied, tmp_path / "copy", "--formats", "resident,ffcv")
    assert result.err.startswith("not copied, as they can be made from the shards: add --formats dali\n")
    assert result.out.endswith("; derived resident, ffcv\n")
    assert inside(capsys, "data", "stage", copied, tmp_path / "copy").out.endswith("nothing to do\n")
    assert inside(capsys, "data", "stage", copied, tmp_path / "copy", "--formats", "dali").out.endswith(": derived dali\n")
    assert contents(tmp_path / "copy") == contents(copied)
    os.truncate(tmp_path / "copy" / "train" / "canvas.npy", 1000)
    assert copy(copied, tmp_path / "copy", *every) == Staged(formats=("resident",))
    assert contents(tmp_path / "copy") == contents(copied)


def test_the_formats_of_auto(source: Path, tmp_path: Path) -> None:
    """As in convert: resident for a canvas of 128 px."""
    staged = stage(source, tmp_path / "copy", formats=None, observer=SILENT)
    assert staged is not None
    assert staged.formats == ("resident",)


def test_a_killed_derive_is_resumed(source: Path, tmp_path: Path) -> None:
    def work() -> None:
        die_at(1, after=False, functions=("replace",))
        derive_formats(DatasetFolder.open(tmp_path / "copy"), ["resident"], workers=1, observer=SILENT)

    copy(source, tmp_path / "copy", "ffcv")
    expected = contents(tmp_path / "copy")
    os.waitpid(forked(work), 0)
    (tmp_path / "copy" / "dataset.json").rename(tmp_path / "copy" / "staging.json")
    assert list((tmp_path / "copy").rglob("canvas.npy.tmp"))
    assert copy(source, tmp_path / "copy", "ffcv") == Staged(
        kept_bytes=sum((source / name).stat().st_size - 1024 for name in SHARDS), seconds=pytest.approx(0, abs=1e9)
    )
    assert contents(tmp_path / "copy") == expected


REFUSED = {
    "other dataset": ("{source}", "{other}", "holds another dataset, of digest"),
    "unfinished copy of another": ("{source}", "{half}", "holds another dataset, of digest"),
    "other files": ("{source}", "{files}", "holds other files, such as a.txt; expected a new or empty folder"),
    "a file": ("{source}", "{files}/a.txt", "is a file; expected a folder to copy to"),
    "itself": ("{source}", "{source}/../{name}", "are one folder or one inside the other"),
    "inside": ("{source}", "{source}/copy", "are one folder or one inside the other"),
    "around": ("{source}", "{source}/..", "are one folder or one inside the other"),
    "no folder": ("{files}/nowhere", "{new}", "is not a folder; expected a dataset folder"),
    "no dataset": ("{files}", "{new}", "holds no dataset.json"),
    "unfinished": ("{half}", "{new}", "an unfinished conversion or copy"),
    "address without": ("http://{host}/nowhere", "{new}", "/nowhere/dataset.json does not exist (HTTP 404"),
    "protocol": ("nonsense://host/d", "{new}", "unknown protocol"),
    "to an address": ("{source}", "s3://bucket/d", "is an address; expected a folder on this machine"),
    "package": ("{source}", "{new} --formats nonsense", "expected a comma-separated list of resident"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_change_nothing(
    source: Path, tmp_path: Path, server: FileServer, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = converted(write_tree(tmp_path / "t", FILES), tmp_path / "other", side=32, formats=()).path
    half = write_tree(tmp_path / "half", {"staging.json": (other / "dataset.json").read_bytes()})
    names = {"source": source, "name": source.name, "other": other, "half": half, "host": server.host}
    names |= {"files": write_tree(tmp_path / "files", {"a.txt": b"x"}), "new": tmp_path / "new"}
    before, of_source = contents(tmp_path), contents(source)
    first, second, text = (part.format(**names) for part in REFUSED[case])
    refused(inside(capsys, "data", "stage", first, *second.split(" ")), text)
    assert contents(tmp_path) == before
    assert contents(source) == of_source
    assert not (tmp_path / "new").exists()


def test_a_package_that_is_missing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def require() -> None:
        raise ConfigError("a package is missing")

    monkeypatch.setitem(WRITERS, "dali", SimpleNamespace(require=require))
    with pytest.raises(ConfigError):
        copy(source, tmp_path / "copy", "dali")
    assert not (tmp_path / "copy").exists()


def test_too_little_room(source: Path, tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a shard is asked for, and no file is left; what an interrupted copy holds is not counted twice."""
    shards = sum((source / name).stat().st_size for name in SHARDS)
    free = shards - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(DataError, match=r"the shards take 0\.00 GB, the disk of .* free some or give another folder"):
        copy(Address(server.address("d")), tmp_path / "copy")
    assert not any(path.endswith(".tar") for path, _ in server.requests)
    assert contents(tmp_path / "copy") == {}
    free = shards
    with pytest.raises(DataError, match="the shards and resident take"):
        copy(source, tmp_path / "copy", "resident")
    first_half(source, tmp_path / "copy")
    free = shards - (source / SHARDS[0]).stat().st_size - 20_000
    copy(source, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


def test_a_disk_that_becomes_full(source: Path, tmp_path: Path) -> None:
    code, out, err = run("stage", source, tmp_path / "copy", limit_bytes=30_000)
    assert (code, out) == (1, "")
    assert str(tmp_path / "copy") in err.splitlines()[-1]
    assert "Traceback" not in err
    copy(source, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


def test_another_packing_of_the_same_images(source: Path, tmp_path: Path) -> None:
    """A complete folder of other shards is the same dataset; of an unfinished one, what fits is used."""
    other = converted(write_tree(tmp_path / "t", FILES | {"train/c0/0bad.jpg": b"x"}), tmp_path / "other", side=128,
                      shard_samples=4, formats=(), on_bad="skip").path  # fmt: skip
    assert DatasetFolder.open(other).digest == DatasetFolder.open(source).digest
    before = contents(other)
    assert copy(source, other) is None
    assert contents(other) == before
    (other / "dataset.json").rename(other / "staging.json")
    copy(source, other)
    assert contents(other) == contents(source)


def test_many_samples(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening compares a large manifest with the sizes of the shards, which come after it."""
    monkeypatch.setattr(dataset_module, "_ALWAYS_READ", 1)
    copy(source, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


@pytest.mark.parametrize(("sample_id", "size"), [(0, 1), (7, 511), (123_456_789, 512), (999_999_999, 1_300_000)])
def test_tar_headers_are_those_of_tarfile(tmp_path: Path, sample_id: int, size: int) -> None:
    with open(tmp_path / "a.tar", "wb") as file:
        packer = ShardPacker(file)
        packer.add(sample_id, bytes(size), 77)
        packer.finish()
    data = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        for member in archive:
            expected = tarfile.TarInfo(member.name)
            expected.size = member.size
            assert data[member.offset : member.offset_data] == expected.tobuf(format=tarfile.USTAR_FORMAT)
        assert archive.getnames() == [f"{sample_id:09d}.jpg", f"{sample_id:09d}.cls"]
    assert len(data) == stage_module.shard_bytes(512, size)
