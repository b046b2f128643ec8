"""Training under the real torchrun: kills, stops, restarts and other numbers of processes end in the bits of one process."""

import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests import slurm
from tests.cli import commands
from tests.cli.commands import Command, Result
from tests.timeouts import scaled, wait_until
from tests.training.runs import checkpoint_hash, metrics_without_time
from tests.training.test_processes import SETTINGS
from udkd.data.dataset import DatasetFolder
from udkd.training.run_folder import RunFolder

LONG = pytest.mark.long
DATASET_IMAGES = {"per_class": 12, "val_per_class": 11}
CACHE_SETTINGS = ("teacher.views=2",)
STEPS = 3
EPOCHS = 40 if os.environ.get("UDKD_LONG_TESTS") else 12
KILLS = "UDKD_TESTS_KILLS"
"""Environment variable: how many times test_kills_at_random_moments kills a process."""

ONE_NODE = ("--standalone", "--shutdown-timeout", "60")


@pytest.fixture(scope="module")
def arguments(dataset: DatasetFolder, cache: Path) -> Callable[..., list[str]]:
    def of(out: Path, *settings: str) -> list[str]:
        folders = ["--data", str(dataset.path), "--cache", str(cache), "--out", str(out), "--device", "cpu", "--resume"]
        return ["train", "smoke", *folders, *commands.set_options(*SETTINGS, f"train.epochs={EPOCHS}", *settings)]

    return of


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, arguments: Callable[..., list[str]]) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert commands.run(*arguments(out)).code == 0
    return out


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A run's folder; afterwards no process of it is left."""
    yield tmp_path / "run"
    left = [process for process in psutil.process_iter() if str(tmp_path) in " ".join(_command_line(process))]
    _, alive = psutil.wait_procs(left, timeout=scaled(60))
    for process in alive:
        process.kill()
    assert not alive, "a process outlived its launcher"


def torchrun(size: int, arguments: list[str], *options: str, module: str = "udkd", **more: object) -> Command:
    started = [*(options or ONE_NODE), "--nproc-per-node", str(size), "-m", module, *arguments]
    return commands.start(*started, module="torch.distributed.run", **more)  # type: ignore[arg-type]


def workers(launcher: Command) -> dict[int, psutil.Process]:
    """The processes of a launcher by rank."""
    found = {}
    for process in psutil.Process(launcher.pid).children():
        try:
            found[int(process.environ()["RANK"])] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError):
            continue
    return found


def step(out: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return (RunFolder.open(out).checkpoint_step or 0) if RunFolder.is_at(out) else 0


def trains(launcher: Command, out: Path) -> bool:
    """Wait for a checkpoint that it writes. False: it has ended."""
    before = step(out)
    assert wait_until(lambda: launcher.ended() or step(out) > before, 180)
    return not launcher.ended()


def same(out: Path, other: Path) -> None:
    assert checkpoint_hash(out) == checkpoint_hash(other)
    assert metrics_without_time(out) == metrics_without_time(other)
    assert commands.run("run", "verify", out).code == 0


def lines(result: Result) -> list[str]:
    return [line for line in result.err.splitlines() if line.startswith("error: ")]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_killed_process_is_survived(out: Path, arguments: Callable[..., list[str]], uninterrupted: Path) -> None:
    """kill -9 of one of two; torchrun starts both again. The one test of `make test` that has the real launcher."""
    launcher = torchrun(2, arguments(out), *ONE_NODE, "--max-restarts", "1")
    assert trains(launcher, out)
    workers(launcher)[1].kill()
    ended = launcher.finish(300)
    assert ended.code == 0, ended
    assert len(lines(ended)) <= 1, ended.err
    assert len(RunFolder.open(out).provenance["processes"]) == 2
    same(out, uninterrupted)


@LONG
def test_the_number_of_processes_changes(out: Path, arguments: Callable[..., list[str]], uninterrupted: Path) -> None:
    """4, 2, 1 and 4 processes, each stopped by SIGTERM to torchrun in the middle."""
    for size in (4, 2, 1):
        launcher = torchrun(size, arguments(out))
        assert trains(launcher, out)
        launcher.send_signal(signal.SIGTERM)
        ended = launcher.finish(120)
        assert not lines(ended), ended.err
        assert ended.code != 0
        assert "stopped" in ended.err
    assert STEPS <= step(out) < STEPS * EPOCHS, "it was stopped in the middle"
    assert torchrun(4, arguments(out)).finish(300).code == 0
    assert [len(each["hosts"]) for each in RunFolder.open(out).provenance["processes"]] == [4, 2, 1, 4]
    same(out, uninterrupted)


@LONG
@pytest.mark.parametrize("rank", [0, 3])
def test_a_stop_request_to_one_process(out: Path, arguments: Callable[..., list[str]], uninterrupted: Path, rank: int) -> None:
    """All stop after the same step, at a checkpoint."""
    launcher = torchrun(4, arguments(out))
    assert trains(launcher, out)
    workers(launcher)[rank].send_signal(signal.SIGTERM)
    ended = launcher.finish(120)
    assert ended.code != 0
    assert not lines(ended), ended.err
    assert "Traceback" not in ended.err.split("ChildFailedError")[0].split("torch/distributed/elastic")[0]
    assert step(out) < STEPS * EPOCHS
    assert torchrun(2, arguments(out)).finish(300).code == 0
    same(out, uninterrupted)


@LONG
@pytest.mark.parametrize("size", [1, 4])
def test_no_process_outlives_torchrun(out: Path, arguments: Callable[..., list[str]], uninterrupted: Path, size: int) -> None:
    launcher = torchrun(size, arguments(out))
    assert trains(launcher, out)
    left = list(workers(launcher).values())
    assert len(left) == size
    launcher.send_signal(signal.SIGKILL)
    launcher.finish()
    _, alive = psutil.wait_procs(left, timeout=scaled(60))
    assert not alive
    assert step(out) < STEPS * EPOCHS, "it did not train on without its launcher"
    assert torchrun(4, arguments(out)).finish(300).code == 0
    same(out, uninterrupted)


@LONG
def test_nan_is_not_tried_again(out: Path, arguments: Callable[..., list[str]]) -> None:
    """One line for each start of the group, and nothing is trained again."""
    given = {"module": "tests.training.train_process", "variables": {"NAN": f"3 {STEPS + 1}"}}
    ended = torchrun(4, arguments(out), *ONE_NODE, "--max-restarts", "2", **given).finish(300)  # type: ignore[arg-type]
    assert ended.code != 0
    assert len(set(lines(ended))) == 1, ended.err
    assert len(lines(ended)) <= 3
    assert f"step {STEPS + 1} (epoch 2, slice 3 of 4, rank 3 on " in lines(ended)[0]
    assert len(RunFolder.open(out).provenance["processes"]) == 1
    assert step(out) == STEPS


@LONG
def test_kills_at_random_moments(out: Path, arguments: Callable[..., list[str]], uninterrupted: Path) -> None:
    """kill -9 of a random process, of torchrun or of all; each start has another number of processes."""
    print("seed", seed := random.randrange(1 << 32))  # shown where it fails
    drawn, kills = random.Random(seed), 0
    wanted = int(os.environ.get(KILLS, "5"))
    while True:
        size = drawn.choice((1, 2, 4))
        launcher = torchrun(size, arguments(out), *ONE_NODE, "--max-restarts", str(drawn.choice((0, 1))))
        while kills < wanted and not launcher.ended():
            # From the imports to an epoch's end: after a random step, or so many seconds.
            _wait_for_step(launcher, out, step(out) + drawn.randrange(3 * STEPS), drawn.uniform(1, 30))
            kills += 1
            _kill(launcher, drawn)
        ended = launcher.finish(600)
        assert "Traceback" not in "\n".join(lines(ended))
        if kills >= wanted and ended.code == 0:
            break
        if ended.code == 0:
            shutil.rmtree(out)  # it was done before all kills: begin again
    same(out, uninterrupted)


def _wait_for_step(launcher: Command, out: Path, wanted: int, seconds: float) -> None:
    wait_until(lambda: launcher.ended() or step(out) >= wanted, seconds)


def _kill(launcher: Command, drawn: random.Random) -> None:
    try:
        members = list(workers(launcher).values())
        chosen = drawn.choice(([psutil.Process(launcher.pid)], members, [drawn.choice(members)] if members else []))
        for process in chosen:
            process.kill()
    except psutil.NoSuchProcess:
        pass  # it has ended meanwhile


# --- several machines: network namespaces


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=60)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces that are connected by a virtual cable."""
    names = tuple(f"udkd-{os.getpid()}-{letter}" for letter in "ab")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "veth-a", "netns", names[0], "type", "veth", "peer", "name", "veth-b", "netns", names[1])
        for name, device, address in zip(names, ("veth-a", "veth-b"), ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            _ip("-n", name, "addr", "add", address, "dev", device)
            _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for name in names:
            _ip("netns", "delete", name, check=False)
        pytest.skip(f"network namespaces cannot be made: {error.stderr!r}")
    yield names[0], names[1]
    for name in names:
        _ip("netns", "delete", name, check=False)


class Machine:
    """torchrun in a namespace."""

    def __init__(self, name: str, size: int, arguments: list[str], log: Path, *options: str, first: bool) -> None:
        device, address = ("veth-a", "10.77.0.1") if first else ("veth-b", "10.77.0.2")
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "run"]
        rendezvous += ["--rdzv-conf", f"is_host={int(first)},join_timeout=300,last_call_timeout=5", "--local-addr", address]
        command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, *options, "--nproc-per-node", str(size)]
        # PyTorch 2.14 lets no machine join later without the first variable.
        variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1"}
        with open(log, "w") as file:
            self.process = psutil.Popen(
                ["ip", "netns", "exec", name, *command, "-m", "udkd", *arguments],
                cwd=commands.ROOT,
                env=commands.ENVIRONMENT | variables,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.log = log

    def code(self, seconds: float = 300) -> int:
        try:
            return int(self.process.wait(scaled(seconds)))
        finally:
            self.kill()

    def kill(self) -> None:
        """Every process of the machine at once."""
        everything = [self.process, *self.process.children(recursive=True)] if self.process.is_running() else [self.process]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def text(self) -> str:
        return self.log.read_text()


@LONG
def test_two_machines(
    tmp_path: Path, out: Path, arguments: Callable[..., list[str]], uninterrupted: Path, machines: tuple[str, str]
) -> None:
    given = arguments(out)
    both = [Machine(name, 2, given, tmp_path / f"{n}.log", "--nnodes", "2", first=n == 0) for n, name in enumerate(machines)]
    assert [machine.code() for machine in both] == [0, 0], [machine.text() for machine in both]
    assert sum(machine.text().count("finished: ") for machine in both) == 1, "one process prints"
    same(out, uninterrupted)


@LONG
def test_a_machine_that_is_lost(
    tmp_path: Path, out: Path, arguments: Callable[..., list[str]], uninterrupted: Path, machines: tuple[str, str]
) -> None:
    """The other one goes on with half of the processes."""
    elastic = ("--nnodes", "1:2", "--max-restarts", "3")
    first, second = (
        Machine(name, 2, arguments(out), tmp_path / f"{n}.log", *elastic, first=n == 0) for n, name in enumerate(machines)
    )
    assert wait_until(lambda: step(out) > 0 or first.process.poll() is not None, 180), first.text()
    second.kill()
    assert first.code() == 0, first.text()
    sizes = [len(each["hosts"]) for each in RunFolder.open(out).provenance["processes"]]
    assert re.fullmatch("2?42", "".join(map(str, sizes))), sizes
    same(out, uninterrupted)


@LONG
def test_a_machine_that_joins(
    tmp_path: Path, out: Path, arguments: Callable[..., list[str]], uninterrupted: Path, machines: tuple[str, str]
) -> None:
    elastic = ("--nnodes", "1:2", "--max-restarts", "3")
    first = Machine(machines[0], 2, arguments(out), tmp_path / "0.log", *elastic, first=True)
    assert wait_until(lambda: step(out) > 0 or first.process.poll() is not None, 180), first.text()
    second = Machine(machines[1], 2, arguments(out), tmp_path / "1.log", *elastic, first=False)
    codes = first.code(), second.code()
    assert codes == (0, 0), first.text() + second.text()
    assert [len(each["hosts"]) for each in RunFolder.open(out).provenance["processes"]] == [2, 4]
    same(out, uninterrupted)


# --- SLURM


def script_of_docs(arguments: list[str]) -> str:
    """The page's batch script for two nodes of two processes on this machine, where the nodes' names are no hosts."""
    page = (commands.ROOT / "docs" / "distributed.md").read_text()
    script = page.split("```sh\n")[1].split("```")[0]
    for of_page, here in (
        (" --gpus-per-node=8", ""),
        ("cpus-per-task=64", "cpus-per-task=2"),
        ("torchrun --nnodes", f"{sys.executable} -m torch.distributed.run --nnodes"),
        ("--nproc-per-node 8", "--nproc-per-node 2"),
        ("$head:29500", f"127.0.0.1:{slurm.free_ports(1)[0]}"),
    ):
        assert of_page in script, of_page
        script = script.replace(of_page, here)
    begin, end = script.index("-m udkd train"), script.index(" &\n")
    return script[:begin] + shlex.join(["-m", "udkd", *arguments]) + script[end:]


@LONG
def test_the_batch_script_of_the_docs(
    tmp_path: Path, out: Path, arguments: Callable[..., list[str]], uninterrupted: Path
) -> None:
    """Requeued by hand during training, then by the signal SLURM sends before the time limit; it resumes each time."""
    if reason := slurm.missing():
        pytest.skip(f"SLURM: {reason}")
    log = tmp_path / "train.log"
    with slurm.one_host_slurm() as cluster:
        (tmp_path / "train.sh").write_text(script_of_docs(arguments(out)))
        chdir, output = f"--chdir={commands.ROOT}", f"--output={log}"
        job = cluster.call("sbatch", "--parsable", chdir, output, str(tmp_path / "train.sh")).strip()

        def stop(*command: str) -> None:
            before = step(out)
            assert wait_until(lambda: step(out) > before or not cluster.unfinished(), 300), log.read_text()
            cluster.call(*command, job)
            assert wait_until(lambda: cluster.state(job).startswith("PENDING"), 120), cluster.state(job)
            assert step(out) < STEPS * EPOCHS, log.read_text()

        stop("scontrol", "requeue")
        stop("scancel", "--batch", "--signal=USR1")
        assert wait_until(lambda: not cluster.unfinished(), 600), log.read_text()
        assert cluster.state(job) == "COMPLETED 0:0", log.read_text()
    assert [len(each["hosts"]) for each in RunFolder.open(out).provenance["processes"]] == [4, 4, 4]
    assert log.read_text().count("resumed at step") == 2
    same(out, uninterrupted)
