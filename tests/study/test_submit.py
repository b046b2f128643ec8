"""udkd study --share, --only and --submit: on this machine, where locks do not work, and on SLURM."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import slurm
from tests.cli.commands import ROOT, failed, inside, refused, run, start
from tests.cli.test_study_command import GRID
from tests.forks import forked
from tests.preload import without_locks
from tests.timeouts import scaled, wait_until
from udkd.data.dataset import DatasetFolder
from udkd.study.share import Share
from udkd.study.submit import SlurmTask, StudyCommand, parse_slurm_options, run_locally
from udkd.teacher.folder import TeacherFolder
from udkd.utils.errors import ConfigError
from udkd.utils.progress import SILENT

DATASET_IMAGES = {"per_class": 6, "val_per_class": 3}
TRAINED = re.compile(r"^run \d+ of \d+: (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.toml"
    file.write_text(GRID)
    return file


Arguments = list[object]


@pytest.fixture
def arguments(dataset: DatasetFolder, teacher: TeacherFolder, grid: Path) -> Arguments:
    """Of udkd study, without --out."""
    return [grid, "--data", dataset.path, "--teacher", teacher.path]


def checkpoints(out: Path) -> dict[str, str]:
    """The sha256 of each run's last checkpoint."""
    return {file.parents[1].name: json.loads(file.read_text())["sha256"] for file in out.glob("runs/*/checkpoints/last.json")}


# Shares of the command


def test_shares_of_a_study_give_its_table(tmp_path: Path, arguments: Arguments) -> None:
    arguments = ["study", *arguments, "--seeds", "0", "--out"]
    study = functools.partial(run, *arguments)
    whole = start(*arguments, tmp_path / "whole")
    out = tmp_path / "out"
    failed(study(out, "--share", "0/2"), "lacks a cache of grid; expected teacher and caches before --share", "--only prepare")
    early = study(out, "--only", "page")
    assert (early.code, early.last) == (75, "unfinished: 0 of 2 runs are done; the same command without --only resumes")
    ready = study(out, "--only", "prepare", "--json")
    assert (ready.code, ready.out, ready.last) == (0, "", "teacher and caches are ready")
    assert not (out / "runs").exists()
    shares = [start(*arguments, out, "--share", f"{index}/2", "--json") for index in range(2)]
    ended = [share.finish(120) for share in shares]
    assert [each.code for each in ended] == [0, 0], ended
    assert sum(each.err.count("validation top-1") for each in ended) == 4, "two runs of two epochs, each once"
    first = [TRAINED.findall(each.err)[0] for each in ended]
    assert first == ["hard, seed 0", "distilled, seed 0"]
    assert all(re.fullmatch(r"finished: share ./2: [12] of all 2 runs are done", each.last) for each in ended)
    page = study(out, "--only", "page", "--json")
    assert (page.code, page.last) == (0, "finished: 2 of 2 runs are done")
    assert json.loads(page.out)["grid"]["progress"]["finished"] == 2
    assert whole.finish(120).code == 0
    assert checkpoints(out) == checkpoints(tmp_path / "whole")
    assert (out / "grid" / "table.csv").read_bytes() == (tmp_path / "whole" / "grid" / "table.csv").read_bytes()
    assert list((out / ".processes").iterdir()) == []


def test_options_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = functools.partial(inside, capsys, "study", *arguments, "--out", tmp_path / "o")
    refused(here("--share", "2/2"), "--share '2/2'; expected I/N with I from 0 to N - 1, such as 0/4; correct it")
    refused(here("--share", "0/2", "--submit", "slurm"), "--share and --submit; expected one of them; drop the others")
    refused(here("--only", "page", "--dry-run"), "--only and --dry-run; expected one of them")
    refused(here("--at-once", "2"), "--at-once without --submit; expected both or none")
    refused(here("--submit", "local", "--gpus", "0"), "without --submit slurm; expected them for SLURM's jobs; drop them")
    refused(here("--slurm", "partition=x"), "without --submit slurm")
    refused(here("--submit", "slurm", "--slurm", "time=3"), "--slurm time=3; expected KEY=VALUE, a long option of sbatch")
    table4 = ["study", "table4", *arguments[1:3], "--out", tmp_path / "o", "--share", "0/2"]
    refused(inside(capsys, *table4), "table4 and --share; expected studies that train runs; drop one of them")
    assert here("--submit", "nowhere").code == 2
    assert here("--submit", "slurm", "--minutes", "4").code == 2
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(here("--submit", "slurm"), 'SLURM refused a job (Could not detect "srun"')
    monkeypatch.setitem(sys.modules, "submitit", None)
    refused(
        here("--submit", "slurm"), "submitit is not installed; expected the cluster extra; run: pip install 'udkd[cluster]'"
    )
    assert not (tmp_path / "o" / "runs").exists()


def python(arguments: Sequence[object], variables: Mapping[str, str]) -> "subprocess.Popen[str]":
    """A command of a process of its own, which reads LD_PRELOAD."""
    words = [sys.executable, "-m", "udkd", *map(str, arguments)]
    return subprocess.Popen(words, cwd=ROOT, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.long
def test_where_locks_exclude_nothing_shares_train_no_run_twice_and_plain_studies_are_refused(
    tmp_path: Path, arguments: Arguments
) -> None:
    variables = without_locks(tmp_path) | {"OMP_NUM_THREADS": "1"}
    # Enough epochs that both are at work when the first asks whether locks exclude.
    study = ["study", *arguments, "--set", "train.epochs=10", "--out"]
    assert run(*study, tmp_path / "out", "--only", "prepare").code == 0
    shares = [python([*study, tmp_path / "out", "--share", f"{index}/2"], variables) for index in range(2)]
    errors = [share.communicate(timeout=scaled(300))[1] for share in shares]
    assert [share.returncode for share in shares] == [0, 0], errors
    assert [TRAINED.findall(text) for text in errors] == [
        ["hard, seed 0", "hard, seed 1"],
        ["distilled, seed 0", "distilled, seed 1"],
    ]
    warning = rf"warning: locks in {tmp_path / 'out'} (do not exclude process \d+ on host|exclude no process;)"
    assert any(re.search(warning, text) for text in errors), errors
    assert run(*study, tmp_path / "out", "--only", "page").code == 0

    plain = [python([*study, tmp_path / "plain"], variables) for _ in range(2)]
    errors = [each.communicate(timeout=scaled(300))[1] for each in plain]
    refusals = [text for text in errors if re.search(r"^error: locks in .* do not exclude process \d+ on host", text, re.M)]
    assert refusals, errors
    assert all(text.count("error:") == 1 for text in refusals)
    trained = [name for text in errors for name in TRAINED.findall(text)]
    assert len(trained) == len(set(trained)), "no run twice"


# On this machine

CHILD = """
import os, signal, sys, time
def stop(number, frame):
    print("stopped by", number, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print(*sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class FakeCommand(StudyCommand):
    """Python programs instead of studies. prepare, share: their last lines."""

    options: Sequence[str] = ()
    studies: Sequence[str] = ()
    prepare: str = ""
    train: str = field(default="")

    def part(self, *options: str) -> list[str]:
        return [sys.executable, "-c", CHILD + (self.prepare if options == ("--only=prepare",) else self.train), *options]


def test_each_share_is_a_process_with_its_own_gpu_and_log(tmp_path: Path) -> None:
    assert run_locally(FakeCommand(), Share.all(3), tmp_path / "jobs", ["4", "7"], SILENT) == 0
    logs = {file.name: file.read_text() for file in (tmp_path / "jobs").iterdir()}
    assert logs == {f"share-{n}-of-3.log": f"--share={n}/3 {gpu}\n" for n, gpu in enumerate(["4", "7", "4"])}


def test_nothing_is_trained_where_the_preparation_fails(tmp_path: Path) -> None:
    command = FakeCommand(prepare="sys.exit(3)")
    assert run_locally(command, Share.all(2), tmp_path / "jobs", [], SILENT) == 3
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_shares_once(tmp_path: Path, kind: signal.Signals) -> None:
    command = FakeCommand(train="time.sleep(600)")
    child = forked(lambda: sys.exit(run_locally(command, Share.all(2), tmp_path / "jobs", [], SILENT)))
    logs = [tmp_path / "jobs" / f"share-{index}-of-2.log" for index in range(2)]
    assert wait_until(lambda: all(log.exists() and log.read_text() for log in logs))
    os.kill(child, kind)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + kind
    assert [log.read_text().splitlines()[1:] for log in logs] == [[f"stopped by {kind.value}"]] * 2


@pytest.mark.long
def test_a_study_on_this_machine(tmp_path: Path, arguments: Arguments) -> None:
    out = tmp_path / "out"
    study = ["study", *arguments, "--out", out, "--set=train.epochs=8", "--device=cpu", "--submit=local", "--at-once=2"]
    stopped = start(*study)
    assert wait_until(lambda: len(checkpoints(out)) == 2 or stopped.ended())
    stopped.send_signal(signal.SIGINT)
    assert stopped.finish(120).code == 130
    assert len(list((out / "jobs").iterdir())) == 2
    assert all("stopped at a checkpoint" in log.read_text() for log in (out / "jobs").iterdir())
    again = run(*study)
    assert (again.code, again.last) == (0, "finished: 4 of 4 runs are done"), again
    whole = run("study", *arguments, "--out", tmp_path / "whole", "--set=train.epochs=8")
    assert whole.code == 0, whole
    assert checkpoints(out) == checkpoints(tmp_path / "whole")
    assert "page: " in run(*study).out, "nothing is left to start"


# On SLURM


def test_options_of_sbatch() -> None:
    words = ["partition=gpu", "cpus_per_task=8", "--exclusive", "comment=a=b", "constraint="]
    assert parse_slurm_options(words) == {
        "partition": "gpu",
        "cpus-per-task": "8",
        "exclusive": True,
        "comment": "a=b",
        "constraint": "",
    }
    for word in ("array=0-3", "--signal=TERM@3", "open_mode=append", "", "=x", "--"):
        with pytest.raises(ConfigError, match="expected KEY=VALUE"):
            parse_slurm_options([word])


def test_a_task_of_slurm_that_is_warned_stops_its_command_and_waits_for_it(tmp_path: Path) -> None:
    """As submitit does it, whose handler calls `checkpoint`; SLURM sends the warning to the command, too."""
    pytest.importorskip("submitit")
    marks = [tmp_path / name for name in ("ready", "saved")]
    save = f"signal.signal(15, lambda *_: (time.sleep(0.3), open({str(marks[1])!r}, 'w'), sys.exit(143)))\n"
    command = [sys.executable, "-c", CHILD + save + f"open({str(marks[0])!r}, 'w')\ntime.sleep(600)"]

    def work() -> None:
        os.setpgid(0, 0)
        task = SlurmTask(command)

        def on_warning(number: int, frame: object) -> None:
            again = task.checkpoint()
            assert marks[1].exists()
            assert (again.function._command, again.args) == (command, ())
            os._exit(17)

        signal.signal(signal.SIGUSR2, on_warning)
        task()

    child = forked(work)
    assert wait_until(marks[0].exists)
    os.killpg(child, signal.SIGUSR2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


def test_a_task_of_slurm_ends_with_its_commands_code() -> None:
    pytest.importorskip("submitit")
    for code in (0, 1, 75):
        child = forked(SlurmTask([sys.executable, "-c", f"import sys; sys.exit({code})"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Slurm]:
    pytest.importorskip("submitit")
    if reason := slurm.missing():
        pytest.skip(f"SLURM: {reason}")
    with slurm.one_host_slurm() as running:
        yield running


def submitted(cluster: slurm.Slurm, *arguments: object) -> dict[str, str]:
    """The ids of the jobs, by step, and the folder of their logs."""
    options = ["--device=cpu", "--submit=slurm", "--json", "--slurm=mem=1000"]
    result = run("study", *arguments, *options, variables=cluster.variables)
    assert result.code == 0, result
    jobs: dict[str, str] = json.loads(result.out)
    return jobs


def log(jobs: Mapping[str, str], job: str) -> str:
    return (Path(jobs["logs"]) / f"{job}_0_log.out").read_text()


def wait_for_end(cluster: slurm.Slurm, at_once: int | None = None) -> None:
    """Until SLURM has no job left; at_once: of the array, at most this many run at any time."""
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, sum("_" in job for job in cluster.tasks("RUNNING")))
        return not cluster.unfinished()

    assert wait_until(ended, 600, every_s=0.2), cluster.unfinished()
    assert at_once is None or most == at_once


@pytest.mark.long
def test_a_study_on_slurm_with_relative_paths(
    cluster: slurm.Slurm, tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, grid: Path
) -> None:
    """Requeued by SLURM and at the end of its time, it goes on with the same bits; at most two of its tasks run at once."""
    study, set_epochs = os.path.relpath(grid, ROOT), "--set=train.epochs=30"
    paths = ["--data", os.path.relpath(dataset.path, ROOT), "--teacher", teacher.path]
    whole = run("study", study, *paths, "--out", tmp_path / "whole", set_epochs)
    assert whole.code == 0, whole
    out = tmp_path / "out"
    jobs = submitted(cluster, study, *paths, "--out", os.path.relpath(out, ROOT), set_epochs, "--at-once=2")
    assert wait_until(lambda: len(checkpoints(out)) >= 2 or not cluster.unfinished(), 300)
    first, second = (f"{jobs['shares']}_{index}" for index in range(2))
    cluster.call("scontrol", "requeue", first)
    cluster.call("scancel", "--signal=USR2", second)  # what SLURM sends when the time is nearly up
    wait_for_end(cluster, at_once=2)
    for job in (jobs["prepare"], *(f"{jobs['shares']}_{index}" for index in range(4)), jobs["page"]):
        assert cluster.state(job) == "COMPLETED 0:0", log(jobs, job)
    for job in (first, second):
        assert log(jobs, job).count("stopped at a checkpoint") == 1
        assert len(re.findall("Starting with JobEnvironment", log(jobs, job))) == 2
    # A task that is requeued leaves its run; whichever task is next goes on with it.
    resumed = "".join(log(jobs, f"{jobs['shares']}_{index}") for index in range(4)).count("resumed at step")
    assert resumed == 2
    assert "finished: 4 of 4 runs are done" in log(jobs, jobs["page"])
    assert checkpoints(out) == checkpoints(tmp_path / "whole")
    assert (out / "grid" / "table.csv").read_bytes() == (tmp_path / "whole" / "grid" / "table.csv").read_bytes()
    done = run("study", study, *paths, "--out", out, set_epochs, "--submit=slurm", variables=cluster.variables)
    assert (done.code, done.last) == (0, "finished: 4 of 4 runs are done"), "nothing is submitted"
    assert cluster.unfinished() == []


@pytest.mark.long
def test_a_preparation_that_fails_ends_all_jobs(cluster: slurm.Slurm, tmp_path: Path, arguments: Arguments) -> None:
    broken = tmp_path / "caches"
    broken.write_text("a file where a folder should be")
    jobs = submitted(cluster, *arguments, "--out", tmp_path)
    wait_for_end(cluster)
    assert cluster.state(jobs["prepare"]) == "FAILED 1:0", log(jobs, jobs["prepare"])
    assert cluster.state(jobs["shares"]).startswith("CANCELLED")
    assert cluster.state(jobs["page"]).startswith("FAILED 75")
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.long
def test_a_cancelled_task_is_not_requeued(cluster: slurm.Slurm, tmp_path: Path, arguments: Arguments) -> None:
    jobs = submitted(cluster, *arguments, "--out", tmp_path, "--set=train.epochs=2000", "--at-once=1")
    assert wait_until(lambda: checkpoints(tmp_path), 300)
    cluster.call("scancel", jobs["shares"])
    wait_for_end(cluster)
    assert cluster.state(f"{jobs['shares']}_0").startswith("CANCELLED")
    assert "stopped at a checkpoint" in log(jobs, f"{jobs['shares']}_0")


@pytest.mark.long
def test_what_slurm_refuses_leaves_no_job(cluster: slurm.Slurm, tmp_path: Path, arguments: Arguments) -> None:
    study = ["study", *arguments, "--out", tmp_path, "--device=cpu", "--submit=slurm"]
    for option, reason in (("partition=none", "invalid partition specified: none"), ("no-such=3", "no-such")):
        result = run(*study, f"--slurm={option}", variables=cluster.variables)
        assert re.fullmatch(rf"error: SLURM refused a job \(.*{reason}.*\); expected .*; check --slurm.*\n", result.err), result
        assert result.code == 1
    assert cluster.unfinished() == []
