"""A worker process ends with its torchrun, even while it imports: tested with real ones, killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli import commands
from tests.cli.commands import ROOT
from tests.timeouts import scaled
from udkd.utils.errors import ProcessGroupError
from udkd.utils.launcher import is_torchrun_worker, module_command, module_environment
from udkd.utils.workers import WorkerGroup

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "udkd", "eval", "nowhere"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


def test_the_working_directory_provides_no_modules(tmp_path: Path) -> None:
    for name in ("data_prep.py", "udkd.py", "typer.py"):
        (tmp_path / name).write_text("raise SystemExit(77)")
    command = module_command("udkd.data_prep", ["synth", "--help"])
    done = subprocess.run(command, env=module_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Write synthetic images" in done.stdout
    named = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=module_environment() | named, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 77, "PYTHONPATH is the user's choice"


@pytest.fixture
def slow_torch(tmp_path: Path) -> Path:
    """A fake torch whose import reports that it has begun and takes an hour: a process that is not ended stays there."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(3600)\n")
    return tmp_path


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that is bound but not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def worker_environment(slow_torch: Path, port: int, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(slow_torch), str(ROOT)])
    group = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return os.environ | {"PYTHONPATH": path} | group | more


def test_a_launcher_that_dies_while_its_process_imports(slow_torch: Path) -> None:
    """Its store answers at first, as torchrun's does."""
    with socket.create_server(("127.0.0.1", 0)) as store:
        environment = worker_environment(slow_torch, store.getsockname()[1], TORCHELASTIC_USE_AGENT_STORE="True")
        launcher = subprocess.Popen(
            [sys.executable, "-c", PARENT], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert launcher.stdout is not None
        child = psutil.Process(int(launcher.stdout.readline()))
        assert launcher.stdout.readline() == "importing\n"
        assert child.is_running()
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        _, alive = psutil.wait_procs([child], timeout=scaled(60))
        launcher.stdout.close()
    for process in alive:
        process.kill()
    assert not alive


def test_a_launcher_that_exits_before_its_process_starts(slow_torch: Path, silent_port: int) -> None:
    environment = worker_environment(slow_torch, silent_port, TORCHELASTIC_USE_AGENT_STORE="True")
    done = subprocess.run(
        [sys.executable, "-m", "udkd", "eval", "nowhere"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=scaled(100), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the torchrun that started this process has exited; expected it until the end; run it again\n"


def test_a_launcher_that_exits_during_the_imports(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at once, without the wait for a slow network."""
    monkeypatch.setattr("udkd.utils.workers.die_with_parent", lambda number: None)
    group = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent_port)}
    with pytest.raises(ProcessGroupError, match="the torchrun that started this process has exited"):
        WorkerGroup.join(group | {"TORCHELASTIC_USE_AGENT_STORE": "True"})


def test_workers_of_torchrun_are_recognised() -> None:
    assert not any(is_torchrun_worker(environment) for environment in ({}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}))
    assert is_torchrun_worker({"WORLD_SIZE": "2"})


def test_torchrun_killed_as_soon_as_its_processes_exist() -> None:
    """The real launcher and the real imports. Its store outlives it by some 30 ms, so that a process may find it still open,
    begin its imports and see only after them that the launcher is gone."""
    torchrun = ["--standalone", "--nproc-per-node", 2, "--no-python"]
    program = [sys.executable, "-m", "udkd", "cache", "build", "--data", "data", "--teacher", "teacher", "--out", "cache"]
    launcher = commands.start(*torchrun, *program, module="torch.distributed.run")
    watched, children = psutil.Process(launcher.pid), []
    while not launcher.ended() and len(children) < 2:
        children = watched.children(recursive=True)
        time.sleep(0.005)
    launcher.send_signal(signal.SIGKILL)
    launcher.finish()
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=scaled(100))
    for process in alive:
        process.kill()
    assert not alive
