"""The replacements for what macOS lacks, and complete commands without it; text files in any locale."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.commands import set_options
from tests.factories import SMALL
from tests.timeouts import scaled
from udkd.utils.operating_system import available_cores, die_with_parent, reserve_space

ROOT = Path(__file__).resolve().parents[2]
LINUX_ONLY = """
import ctypes
import os

for name in (
    *("copy_file_range", "eventfd", "memfd_create", "pidfd_open", "pipe2", "posix_fadvise", "posix_fallocate"),
    *("sched_getaffinity", "sched_setaffinity", "setresuid", "splice"),
    *("O_DIRECT", "O_LARGEFILE", "O_NOATIME", "O_PATH", "O_TMPFILE"),
):
    delattr(os, name)
os.process_cpu_count = os.cpu_count


def without_linux(library, name):
    if name in ("prctl", "mallopt"):
        raise AttributeError(name)
    return find(library, name)


find, ctypes.CDLL.__getattr__ = ctypes.CDLL.__getattr__, without_linux
"""
"""A sitecustomize.py, which the workers import too: sys.platform stays, as NumPy's and PyTorch's files are those of Linux."""


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 6})
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == os.cpu_count()


@pytest.mark.parametrize("system", ["Linux", "macOS"])
def test_space_is_reserved(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "macOS":
        monkeypatch.delattr(os, "posix_fallocate")
    with open(tmp_path / "file", "wb") as file:
        file.write(b"udkd")
        file.flush()
        reserve_space(file.fileno(), 1000)
        assert file.seek(0, os.SEEK_END) == 1000
        reserve_space(file.fileno(), 10)
        with pytest.raises(OSError, match=r"No space left|too large"):
            reserve_space(file.fileno(), 1 << 60)
    assert (tmp_path / "file").read_bytes() == b"udkd" + bytes(996)


def test_without_prctl_a_process_outlives_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name, use_errno: object())
    die_with_parent(signal.SIGKILL)


@pytest.mark.parametrize("folder", ["udkd", "data_prep"])
def test_text_files_are_read_as_utf8_in_any_locale(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read_text":
                assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


SMALLEST = set_options(*SMALL, "train.epochs=1", "teacher.batch_size=4", "fit.epochs=1", "fit.architecture=squeezenet1_1")
CONVERT = (
    ["data", "synth", "images", "--classes", "2", "--images", "8", "--val-images", "4", "--workers", "1"],
    ["data", "convert", "images", "data", "--formats", "resident"],
)
TRAIN = (
    ["teacher", "fit", "data", "teacher", "--recipe", "smoke", *SMALLEST],
    ["cache", "build", "data", "teacher", "cache", "--recipe", "smoke", *SMALLEST],
    ["train", "smoke", "--data", "data", "--cache", "cache", "--out", "run", *SMALLEST],
    ["eval", "run", "--teacher", "teacher"],
    ["report", "run"],
)


@pytest.mark.parametrize("commands", [CONVERT, pytest.param(CONVERT + TRAIN, marks=pytest.mark.long)], ids=["convert", "all"])
def test_commands_without_what_linux_alone_has(commands: Sequence[list[str]], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LINUX_ONLY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    for arguments in commands:
        command = [sys.executable, "-P", "-m", "udkd", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=scaled(300), check=False
        )
        assert not done.returncode, f"{arguments}\n{done.stderr}"
