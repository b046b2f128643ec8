"""Several processes build one cache: the same bytes for 1, 2 and 3, also under torchrun's launcher; no process is left over."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import torch

from tests.cli import commands
from tests.teacher.cache_fixtures import run, run_in_threads, views_of
from tests.timeouts import scaled, wait_until
from udkd.data.dataset import DatasetFolder
from udkd.teacher.folder import TeacherFolder
from udkd.utils.errors import DataError, ProcessGroupError
from udkd.utils.workers import WorkerGroup, single_process_threads

SETTINGS = ["--device", "cpu", "--backend", "folder"]
SETTINGS += commands.set_options(
    "views.size_px=32",
    "views.resize_px=36",
    "evaluation.resize_px=36",
    "teacher.batch_size=8",
    "train.threads=1",
    "views.seed=3",
    "data.workers=1",
)
BLOCK_ROWS = 8
pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder) -> Path:
    """The cache that one process builds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udkd.teacher.cache.build.BLOCK_ROWS", BLOCK_ROWS)
        return run(tmp_path_factory.mktemp("complete") / "cache", cache_dataset, cache_teacher, 2).folder


def build_args(dataset: DatasetFolder, teacher: TeacherFolder, cache: Path) -> list[str]:
    paths = ["--data", str(dataset.path), "--teacher", str(teacher.path), "--out", str(cache)]
    return ["cache", "build", "smoke", *paths, "--views", "2", *SETTINGS]


@pytest.mark.parametrize("size", [2, 12])
def test_any_size_gives_the_same_bytes(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder, complete: Path, size: int
) -> None:
    """More processes than blocks, too."""
    built = run_in_threads(size, tmp_path / "group", cache_dataset, cache_teacher)
    assert views_of(tmp_path / "group") == views_of(complete)
    assert {each.num_images for each in built} == {2 * len(cache_dataset.split("train").ids)}
    grown = run_in_threads(2, tmp_path / "group", cache_dataset, cache_teacher, views=3)
    assert {each.num_images for each in grown} == {len(cache_dataset.split("train").ids)}


def test_the_error_of_a_worker_reaches_the_main_process(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise DataError("sample 41 of its part is damaged")

    monkeypatch.setattr("udkd.teacher.cache.build.join_view", broken)
    leader, follower = run_in_threads(2, tmp_path, cache_dataset, cache_teacher)
    assert isinstance(follower, DataError)
    assert str(leader) == str(follower), "as it was published"


def test_a_killed_launcher_leaves_no_process_and_torchrun_resumes(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder, complete: Path
) -> None:
    """Three processes without their launcher end; two under the real torchrun resume to the bytes of one."""
    args = build_args(cache_dataset, cache_teacher, tmp_path / "group")
    launcher = commands.start(3, "tests.teacher.workers_command", *args, module="tests.launcher")
    assert wait_until(lambda: launcher.ended() or list((tmp_path / "group").glob("view-*")), 120)
    children = psutil.Process(launcher.pid).children()
    launcher.send_signal(signal.SIGKILL)
    launcher.finish()
    assert len(children) == 4, "three, and the store"
    _, alive = psutil.wait_procs(children, timeout=scaled(60))
    assert not alive, "a process outlived its launcher"
    torchrun = ["--standalone", "--nproc-per-node", "2", "-m", "tests.teacher.workers_command", *args]
    again = commands.run(*torchrun, module="torch.distributed.run")
    assert again.code == 0, again
    assert views_of(tmp_path / "group") == views_of(complete)
    assert again.out.count("mean weight") == 1, "one process prints"
    assert {path.name for path in (tmp_path / "group").iterdir()} == {path.name for path in complete.iterdir()}


def test_a_single_process_needs_no_torchrun() -> None:
    assert WorkerGroup.join({}) == WorkerGroup()
    assert WorkerGroup.join({"WORLD_SIZE": "1", "RANK": "0"}).size == 1
    assert WorkerGroup().add("done", 3) == 3
    second = WorkerGroup(rank=1, size=2, local_rank=1)
    assert [second.device_name(name) for name in ("cuda", "cuda:0", "cpu", "auto")] == ["cuda:1", "cuda:0", "cpu", "auto"]
    assert WorkerGroup().device_name("cuda") == "cuda"


def test_a_group_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udkd.utils.workers.die_with_parent", lambda number: None)
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ProcessGroupError, match="expected to be started by torchrun"):
        WorkerGroup.join({"WORLD_SIZE": "3"})


def test_threads_are_those_of_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udkd.utils.workers._environment_of", lambda process: {"PATH"})
    assert 1 <= single_process_threads() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr("udkd.utils.workers._environment_of", lambda process: {"OMP_NUM_THREADS"})
    torch.set_num_threads(1)
    assert single_process_threads() == 1
