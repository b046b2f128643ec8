"""Durable files: old or new after a kill at any moment, one writer per folder, errors that name the file."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.timeouts import scaled
from udkd.utils import files
from udkd.utils.errors import BusyError, UserError
from udkd.utils.files import (
    FolderLock,
    atomic_write,
    read_exact_json,
    read_regular,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
OLD, NEW = b"old" * 1000, b"new" * 300_000
KILLED_AT = """
import os, signal, sys
from udkd.utils import files
def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
moment = sys.argv[2]
if moment == "in the middle":
    with files.atomic_write(files.Path(sys.argv[1])) as file:
        file.write(b"new" * 100_000); file.flush(); die()
elif moment == "before the data is synced": os.fsync = die
elif moment == "before the rename": os.replace = die
elif moment == "before the folder is synced": files.fsync_folder = die
files.write_bytes(files.Path(sys.argv[1]), b"new" * 300_000)
"""
MOMENTS = {
    "in the middle": OLD,
    "before the data is synced": OLD,
    "before the rename": OLD,
    "before the folder is synced": NEW,
    "never": NEW,
}


def python(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


def test_json_stores_file_names_that_are_not_text(tmp_path: Path) -> None:
    """Ordinary text keeps its bytes; a byte that is not UTF-8 is read back unchanged."""
    value = {"path": os.fsdecode(b"a\xff"), "Größe": "日本 \U0001f41d"}
    write_json(tmp_path / "x.json", value)
    data = (tmp_path / "x.json").read_bytes()
    assert data == '{\n  "Größe": "日本 \U0001f41d",\n  "path": "a\\udcff"\n}\n'.encode()
    assert os.fsencode(read_exact_json(tmp_path / "x.json")["path"]) == b"a\xff"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_the_old_or_the_new_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    code = subprocess.run(python(KILLED_AT, path, moment), check=False).returncode
    assert code == (0 if moment == "never" else -signal.SIGKILL)
    assert path.read_bytes() == MOMENTS[moment]
    write_bytes(path, b"again")  # leftovers of the kill do no harm
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"again"


def test_a_kill_at_a_random_moment(tmp_path: Path) -> None:
    program = (
        "import sys; from udkd.utils.files import *\n"
        "n = 0\n"
        "while True: n += 1; write_bytes(Path(sys.argv[1]), str(n % 10).encode() * (1 + n % 7 * 100_000))"
    )
    path = tmp_path / "file"
    for n in range(4):
        process = subprocess.Popen(python(program, path))
        while not path.exists():
            time.sleep(0.002)
        time.sleep(0.013 * n)
        process.kill()
        process.wait()
        content = path.read_bytes()
        assert len(set(content)) == 1
        assert len(content) % 100_000 == 1
        path.unlink()


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def fail_while_writing(error: type[BaseException]) -> None:
        with atomic_write(path) as file:
            file.write(NEW)
            raise error

    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            fail_while_writing(error)
        assert path.read_bytes() == OLD
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """A limit on file size simulates the full disk: the kernel refuses the write at the same point."""
    program = (
        "import resource, signal, sys; from udkd.utils.files import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: write_bytes(Path(sys.argv[1]), bytes(1_000_000))\n"
        "except OSError as error: print(error.errno, error.filename)"
    )
    path = tmp_path / "file"
    path.write_bytes(OLD)
    output = subprocess.run(python(program, path), capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(errno.EFBIG), str(path)]
    assert path.read_bytes() == OLD
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_impossible_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_bytes(tmp_path / "nowhere" / "file", b"")
    assert "nowhere" in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_bytes(tmp_path / "folder", b"")
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="plain"):
        write_bytes(tmp_path / "plain" / "file", b"")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "plain"]


def test_json_of_a_value_is_always_the_same_bytes(tmp_path: Path) -> None:
    one, other = {"b": [1, 2.5, None], "a": "größer", "c": {"y": 1, "x": True}}, {}
    for name in ("c", "a", "b"):
        other[name] = one[name]
    write_json(tmp_path / "1", one)
    write_json(tmp_path / "2", other)
    text = (tmp_path / "1").read_text()
    assert (tmp_path / "2").read_text() == text
    assert json.loads(text) == one
    assert "größer" in text
    assert text.endswith("}\n")
    assert sha256_file(tmp_path / "1") == sha256_file(tmp_path / "2")
    write_text(tmp_path / "3", "abc")
    assert sha256_file(tmp_path / "3") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


HOLDER = """
import sys, time
from udkd.utils.files import *
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_writer_names_the_first_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(python(HOLDER, tmp_path), stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # a failed attempt keeps the holder's name
            with pytest.raises(BusyError) as caught, FolderLock(tmp_path):
                pass
            assert re.search(rf"process {holder.pid} on {re.escape(platform.node())} since {TIME} UTC;", str(caught.value))
            assert str(tmp_path) in str(caught.value)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with FolderLock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_the_holders_time_is_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with FolderLock(tmp_path) as lock:
            written = datetime.fromisoformat(lock.path.read_text().split(" since ")[1].replace(" UTC", "+00:00"))
            assert abs(written.timestamp() - lock.path.stat().st_mtime) < 600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_lock_file_of_version_0_1_is_read(tmp_path: Path) -> None:
    """It has the process id alone."""
    (tmp_path / ".lock").write_text("4711")
    with open(tmp_path / ".lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match=r"is being written by process 4711; expected one writer"), FolderLock(tmp_path):
            pass
        with pytest.raises(BusyError, match=r"is being written by process 4711; expected one writer"):
            FolderLock(tmp_path).require_free()


def test_one_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(BusyError, match=f"process {os.getpid()} on "), FolderLock(tmp_path):
        pass
    with pytest.raises(ValueError, match="inside"), FolderLock(tmp_path):
        raise ValueError("inside")
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [], "a released lock leaves nothing"


RACER = """
import os, sys
from udkd.utils.errors import BusyError
from udkd.utils.files import *
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
held = 0
while held < rounds:
    try:
        with FolderLock(folder):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails if two hold the lock
            number = int((folder / "count").read_text())
            (folder / "count").write_text(str(number + 1))
            (folder / "inside").unlink()
        held += 1
    except BusyError:
        pass
"""


def test_two_racing_processes_never_hold_a_folder_together(tmp_path: Path) -> None:
    """The file is removed with every release, so its name refers to a new file each time: no two hold it together."""
    rounds = 300
    (tmp_path / "count").write_text("0")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(python(RACER, tmp_path, rounds), **pipes) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    output = [racer.communicate(timeout=scaled(100))[1] for racer in racers]
    assert output == ["", ""]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert (tmp_path / "count").read_text() == str(2 * rounds)
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_lock_file_removed_and_created_again_is_left_to_its_holder(tmp_path: Path) -> None:
    """A user removes it by hand: the first holder removes only its file, and the second still keeps others out."""
    with contextlib.ExitStack() as second:
        with FolderLock(tmp_path):
            (tmp_path / ".lock").unlink()
            second.enter_context(FolderLock(tmp_path))
        with pytest.raises(BusyError), FolderLock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_removed_between_opening_and_locking_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, real = FolderLock(tmp_path), fcntl.flock
    first.__enter__()

    def late(file: BinaryIO, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        first.__exit__(None, None, None)  # the moment before the second locks what it has opened
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with FolderLock(tmp_path), pytest.raises(BusyError, match=f"process {os.getpid()} on "), FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_that_lives_on_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Workers are forked while a folder is written; one that outlives the writing must not lock the folder."""
    program = (
        "import os, sys, time; from udkd.utils.files import *\n"
        "with FolderLock(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child == 0: time.sleep(60); os._exit(0)\n"
        "print(child, flush=True)\n"
        "with FolderLock(Path(sys.argv[1])): print('again', flush=True)\n"
        "os._exit(0)"
    )
    done = subprocess.Popen(python(program, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.stdout is not None
    child = int(done.stdout.readline())
    try:
        assert done.stdout.readline() == "again\n"
        done.wait()
        with FolderLock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        done.wait()
        done.stdout.close()


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), FolderLock(tmp_path / "nowhere"):
        pass


def test_no_link_is_followed_when_writing(tmp_path: Path) -> None:
    """With links under the names that we write to, their targets stay unchanged."""
    target, folder = tmp_path / "target", tmp_path / "folder"
    target.write_bytes(OLD)
    folder.mkdir()
    for link in (os.symlink, os.link):
        link(target, folder / "file.tmp")
        write_bytes(folder / "file", NEW)
        assert (folder / "file").read_bytes() == NEW
        assert target.read_bytes() == OLD
        link(target, folder / ".lock")
        with pytest.raises(UserError, match="remove it"), FolderLock(folder):
            pass
        assert target.read_bytes() == OLD
        (folder / ".lock").unlink()
    os.mkfifo(folder / ".lock")
    with pytest.raises(UserError, match="remove it"), FolderLock(folder):
        pass
    (folder / "final").symlink_to(target)
    write_bytes(folder / "final", NEW)
    assert target.read_bytes() == OLD
    assert not (folder / "final").is_symlink()


def test_two_writers_of_one_file_never_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WAIT_S", 0.1)
    with atomic_write(tmp_path / "file") as file:
        file.write(OLD)
        with pytest.raises(BusyError, match="another process"):
            write_bytes(tmp_path / "file", NEW)
        file.write(OLD)
    assert (tmp_path / "file").read_bytes() == OLD * 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


MIXER = """
import sys; from udkd.utils.files import *
for n in range(100): write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * (100_000 + n))
"""


def test_writers_that_race_for_one_file(tmp_path: Path) -> None:
    racers = [subprocess.Popen(python(MIXER, tmp_path / "file", letter), stderr=subprocess.PIPE, text=True) for letter in "abc"]
    while any(racer.poll() is None for racer in racers):
        with contextlib.suppress(FileNotFoundError):
            assert len(set((tmp_path / "file").read_bytes())) == 1
    assert [racer.communicate()[1] for racer in racers] == [""] * 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="not a regular file"):
            read_regular(tmp_path / name)
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "link", len(OLD)) == OLD
    with pytest.raises(ValueError, match="3,000 bytes, more than 2,999"):
        read_regular(tmp_path / "file", len(OLD) - 1)
