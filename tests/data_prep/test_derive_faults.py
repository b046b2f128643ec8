"""Deriving formats under faults: kills at any time, a full disk, a dead worker, a damaged shard. Nothing is left behind."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data_prep.helpers import ROOT, children, contents, converted, photo, run, start, write_tar
from tests.timeouts import scaled, wait_until
from udkd.data.dataset import DatasetFolder
from udkd.data.derived import DERIVED
from udkd.data_prep.formats import WRITERS, derive_formats
from udkd.data_prep.verify import verify
from udkd.utils.errors import DataError
from udkd.utils.progress import Silent

EVERY = tuple(WRITERS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {f"train/c{n % 3}/{n}.jpg": photo(n % 40, 150, 200) for n in range(600)}
    files |= {f"val/c{n}/v.jpg": photo(n) for n in range(3)}
    return write_tar(tmp_path_factory.mktemp("faults") / "t.tar", files)


@pytest.fixture(scope="module")
def bare(source: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    """A dataset with shards only, to be copied."""
    return converted(source, tmp_path_factory.mktemp("bare") / "d", formats=(), shard_samples=100)


@pytest.fixture
def folder(bare: DatasetFolder, tmp_path: Path) -> DatasetFolder:
    return DatasetFolder.open(Path(shutil.copytree(bare.path, tmp_path / "d")))


@pytest.mark.long
def test_derive_killed_at_random_moments(folder: DatasetFolder) -> None:
    """The folder stays valid, a format is complete or absent, and the final bytes do not depend on the kills."""
    bare = contents(folder.path)
    derive_formats(folder, EVERY, workers=1, observer=Silent())
    intact = contents(folder.path)
    derive = ("derive", folder.path, "--formats", ",".join(EVERY), "--workers", 2)
    started = time.monotonic()
    assert run(*derive)[0] == 0
    seconds = time.monotonic() - started
    rng = random.Random(0)
    for _ in range(4):
        process = start(*derive)
        time.sleep(seconds * rng.uniform(0.35, 1))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=scaled(20))
        dataset = DatasetFolder.open(folder.path)
        for split in dataset.splits.values():
            for name in EVERY:
                assert not split.has(name) or list(WRITERS[name].problems(split)) == []
        assert {name: digest for name, digest in contents(folder.path).items() if name in bare and name != ".lock"} == {
            name: digest for name, digest in bare.items() if name != ".lock"
        }
    assert run(*derive)[0] == 0
    assert contents(folder.path) == intact
    assert verify(folder.path, Silent()) == []


@pytest.mark.parametrize("name", EVERY)
def test_what_a_killed_derive_leaves_is_named_and_repaired(tmp_path: Path, name: str) -> None:
    """SIGKILL before and after every fsync and rename of the packing process, and at random times."""
    files = {f"{split}/c{n % 2}/{n}.jpg": photo(n % 9, 60, 80) for split in ("train", "val") for n in range(12)}
    folder = converted(write_tar(tmp_path / "t.tar", files), tmp_path / "d", formats=(), shard_samples=5)
    bare = set(contents(folder.path))
    derive_formats(folder, [name], workers=1, observer=Silent())
    intact = contents(folder.path)
    with open(tmp_path / "attempts.json", "w") as file:
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("kill_derive.py")), str(folder.path), name],
            stdout=file,
            timeout=scaled(200),
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    left = 0
    for attempt in json.loads((tmp_path / "attempts.json").read_text()):
        assert attempt["code"] in (-signal.SIGKILL, 0)
        files_left = set(attempt["files"]) - bare - set(attempt["described"])
        left += len(files_left)
        for file in files_left:
            assert any(str(folder.path / file) in line for line in attempt["problems"]), (file, attempt["problems"])
        assert bool(files_left) == bool(attempt["problems"])
    assert left > 3
    derive_formats(folder, [name], workers=1, observer=Silent())
    assert contents(folder.path) == intact
    assert verify(folder.path, Silent()) == []


@pytest.mark.parametrize("name", ["resident", "dali", pytest.param("ffcv", marks=pytest.mark.long)])
def test_a_full_disk(folder: DatasetFolder, tmp_path: Path, name: str) -> None:
    """A limit on file size simulates the full disk: the same OSError at the same points."""
    before = contents(folder.path)
    (tmp_path / "tmp").mkdir()
    code, _, err = run(
        *("derive", folder.path, "--formats", name, "--workers", 2),
        limit_bytes=100_000,
        environment={"TMPDIR": str(tmp_path / "tmp")},
    )
    assert code == 1, err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert contents(folder.path) == before
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", EVERY)
def test_a_damaged_shard_is_named_and_nothing_is_left(folder: DatasetFolder, name: str) -> None:
    train = folder.split("train")
    path = train.shard_path(333)
    data = bytearray(path.read_bytes())
    data[int(train.offset[333]) + 50] ^= 1
    path.write_bytes(data)
    before = contents(folder.path)
    with pytest.raises(DataError, match=r"train sample 333 \(c1/.*do not match their checksum"):
        derive_formats(folder, [name], workers=2, observer=Silent())
    assert contents(folder.path) == before
    assert folder.formats == ("shards",)


@pytest.mark.parametrize("name", ["resident", "dali"])
def test_a_dead_worker(source: Path, tmp_path: Path, name: str) -> None:
    folder = converted(source, tmp_path / "d", formats=(), shard_samples=30, side=200)
    before = contents(folder.path)
    pattern = DERIVED[name].data[0]
    process = start("derive", folder.path, "--formats", name, "--workers", 2)
    assert wait_until(lambda: list(folder.split("train").path.glob(pattern + "*")) or process.poll() is not None, every_s=0.005)
    process.send_signal(signal.SIGSTOP)  # or its workers may be gone before one is killed
    workers = children(process.pid)
    if workers:
        os.kill(min(workers), signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    if not workers:
        process.communicate(timeout=scaled(20))
        pytest.skip("it was done before a worker could be killed")
    _, err = process.communicate(timeout=scaled(30))
    if process.returncode:
        assert "was killed by signal 9" in err.splitlines()[-1]
        assert contents(folder.path) == before


def orphans() -> set[str]:
    """Shared memory that no running process has mapped: other programs may use some."""
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped += maps.read_text()
    return {name for name in os.listdir("/dev/shm") if f"/dev/shm/{name}" not in mapped}


def test_nothing_is_left_outside_the_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    shared = orphans()
    code, _, err = run(
        *("convert", source, tmp_path / "d", "--side", 64, "--formats", ",".join(EVERY), "--workers", 2),
        environment={"TMPDIR": str(tmp_path / "tmp")},
    )
    assert code == 0, err
    assert wait_until(lambda: orphans() <= shared, every_s=0.2), "semaphores of others live for a moment"
    assert list((tmp_path / "tmp").iterdir()) == []
