"""Starts a study as several commands: on SLURM through submitit, or on this machine.

Three steps: `--only prepare` makes the teacher and the caches, then every process trains its `--share I/N`, then `--only page`
writes the result from all runs.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from udkd.study.share import Share
from udkd.utils.errors import ConfigError, RunError
from udkd.utils.progress import Observer
from udkd.utils.signals import signal_handler

MAX_SHARES = 1000
"""Of one array: SLURM's default MaxArraySize is 1,001."""

_MAX_TIMEOUTS = 100
"""How often a job that reaches its time limit goes on. A limit too short for any progress would otherwise run for ever."""

_KILL_S = 600
"""How long a job that has got SIGTERM waits for SLURM to end it."""

_SET_HERE = ("array", "dependency", "error", "kill-on-invalid-dep", "open-mode", "output", "requeue", "signal", "time")
_PASS_CPUS = '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'
"""From SLURM 22.05 to 23.11 srun does not take sbatch's --cpus-per-task: one core would run all threads."""


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """A study's command, to be run in parts. options: all but those that choose the part, and the studies' names."""

    options: Sequence[str]
    studies: Sequence[str]

    def part(self, *options: str) -> list[str]:
        """The words of a process that does one part, such as "--only=prepare"."""
        return [sys.executable, "-m", "udkd", "study", *self.options, *options, "--", *self.studies]

    def share(self, share: Share) -> list[str]:
        """The words of a process that trains a share."""
        return self.part(f"--share={share}")


class SlurmTask:
    """A command in a SLURM job, for submitit to pickle and call there.

    When the job is requeued, by SLURM or because its time is up, the command gets SIGTERM and stops at a checkpoint; it is
    started again in the next job.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._child = 0
        self._terminated = False

    def __call__(self) -> None:
        """Run the command. Exits with its code if that is not 0."""
        import submitit

        # SLURM signals all processes of the job, so the command gets SIGTERM from it, and would die of the warning.
        signal.signal(signal.SIGTERM, self._on_terminate)
        warning = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        self._child = os.posix_spawn(self._command[0], self._command, os.environ, setsigmask=[warning])
        code = self._wait()
        if code and self._terminated:
            time.sleep(_KILL_S)  # an end before SLURM's would count as the job's failure, and it would not be requeued
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """Called by submitit when the job's time is nearly up, before it requeues the job: what the next job runs."""
        from submitit.helpers import DelayedSubmission

        if not self._terminated:  # a second signal would end it without a checkpoint
            self._terminated = True
            os.kill(self._child, signal.SIGTERM)
        self._wait()
        return DelayedSubmission(SlurmTask(self._command))

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True

    def _wait(self) -> int:
        """The command's exit code; 0 where that has been fetched already."""
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        except ChildProcessError:
            return 0


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """Of each job: GPUs and the limit in minutes. at_once: running shares, None for no limit. options: of sbatch."""

    gpus: int
    minutes: int
    at_once: int | None
    options: Mapping[str, str | bool]


def parse_slurm_options(words: Sequence[str]) -> dict[str, str | bool]:
    """Long options of sbatch: KEY=VALUE, or KEY for one without a value. Raises ConfigError for those that are set here."""
    options: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        if not name or name in _SET_HERE:
            raise ConfigError(
                f"--slurm {word}; expected KEY=VALUE, a long option of sbatch, and none of {', '.join(_SET_HERE)}; drop it "
                "(--minutes sets the time, --at-once the number of jobs)"
            )
        options[name] = value if equals else True
    return options


def submit_to_slurm(command: StudyCommand, shares: Sequence[Share], folder: Path, settings: SlurmSettings) -> dict[str, str]:
    """Submit the three steps; their logs will be in `folder`. Returns the job ids, by step: prepare, shares, page.

    Raises ConfigError without submitit, RunError where SLURM refuses; then no job is left.
    """
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError
    except ModuleNotFoundError:
        raise ConfigError("submitit is not installed; expected the cluster extra; run: pip install 'udkd[cluster]'") from None

    def submit(tasks: Sequence[list[str]], gpus: int, after: Mapping[str, str]) -> str:
        executor = SlurmExecutor(folder, max_num_timeout=_MAX_TIMEOUTS)
        executor.update_parameters(
            job_name=f"udkd study {' '.join(Path(study).stem for study in command.studies)}",
            time=settings.minutes,
            gpus_per_node=gpus or None,
            array_parallelism=settings.at_once or len(tasks),
            stderr_to_stdout=True,
            setup=[_PASS_CPUS],
            additional_parameters={"requeue": True, **settings.options, **after},
        )
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises, too
            jobs = executor.submit_array([SlurmTask(task) for task in tasks])
        undo.callback(jobs[0].cancel, check=False)
        return str(jobs[0].job_id).split("_")[0]

    with contextlib.ExitStack() as undo:
        try:
            prepare = submit([command.part("--only=prepare")], settings.gpus, {})
            # Without the second option the array would wait for ever where the preparation has failed.
            after = {"dependency": f"afterok:{prepare}", "kill-on-invalid-dep": "yes"}
            array = submit([command.share(share) for share in shares], settings.gpus, after)
            page = submit([command.part("--only=page")], 0, {"dependency": f"afterany:{array}"})
        except (RuntimeError, FailedJobError) as error:  # RuntimeError: there is no srun
            raise RunError(f"SLURM refused a job ({error}); expected three jobs; check --slurm, --gpus, --minutes") from None
        undo.pop_all()
    return {"prepare": prepare, "shares": array, "page": page}


def run_locally(command: StudyCommand, shares: Sequence[Share], folder: Path, gpus: Sequence[str], observer: Observer) -> int:
    """Prepare, then train all shares at the same time, one process each; their output is in `folder`.

    gpus: values of CUDA_VISIBLE_DEVICES that the shares take in turn. Ctrl-C, SIGTERM and SIGHUP are passed on to them, so that
    they stop at a checkpoint. Returns 0, the code of a preparation that failed, or 128 + the signal's number.
    """
    children: list[subprocess.Popen[bytes]] = []
    stopped = 0

    def start(words: Sequence[str], log: Path | None, environment: Mapping[str, str]) -> None:
        # In a session of its own: Ctrl-C in a terminal would reach it twice, and the second ends it without a checkpoint.
        with contextlib.ExitStack() as stack:
            output = None if log is None else stack.enter_context(open(log, "ab"))
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        children.append(child)
        undo.callback(child.terminate)  # where one of the next does not start; without effect on one that has ended
        if stopped:
            child.send_signal(stopped - 128)

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = 128 + number
        for child in children:
            child.send_signal(number)

    with signal_handler(on_signal), contextlib.ExitStack() as undo:
        start(command.part("--only=prepare"), None, os.environ)
        if code := children[0].wait():
            return stopped or code
        folder.mkdir(parents=True, exist_ok=True)
        observer.note(f"{len(shares)} processes train the runs; their output is in {folder}")
        for share in shares:
            if not stopped:
                visible = {"CUDA_VISIBLE_DEVICES": gpus[share.index % len(gpus)]} if gpus else {}
                log = folder / f"share-{share.index}-of-{share.count}.log"
                start(command.share(share), log, os.environ | visible)
        for child in children:
            child.wait()
    return stopped
