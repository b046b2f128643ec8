"""Trains a job with several processes of this machine, which torchrun starts; for programs that are one process themselves."""

import contextlib
import re
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import psutil

from udkd.config.loading import recipe_toml
from udkd.training.exchange import require_divisible
from udkd.training.setup import TrainJob
from udkd.utils.errors import RunError
from udkd.utils.files import write_text
from udkd.utils.launcher import module_command, module_environment

_POLL_S = 0.2
_OF_TORCHRUN = re.compile(r"[WEI]\d{4} ")
_ERROR = "error: "
_LAST = (_ERROR, "stopped after step", "finished: ")


def train_with_processes(job: TrainJob, processes: int) -> None:
    """`udkd train` of a job by several processes, until it is finished, or stopped at a checkpoint.

    Their notes go to the job's observer. Raises ConfigError: they cannot share the recipe's work. RunError: their error.
    """
    require_divisible(job.recipe.train, len(job.recipe.students), processes)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        recipe = Path(folder) / "recipe.toml"
        write_text(recipe, recipe_toml(job.recipe))
        child = subprocess.Popen(
            _command(job, recipe, processes),
            env={"OMP_NUM_THREADS": "1"} | module_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C would end it without a checkpoint
        )
        stack.callback(_end, child)
        error: list[str] = []
        reader = threading.Thread(target=_read, args=(child, job, error), daemon=True)
        reader.start()
        asked = False
        while True:
            try:
                code = child.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                # One process is enough, as they agree on the step. torchrun would kill them after some time.
                asked = asked or (job.stopped() and _terminate_one(child))
        reader.join(timeout=10)
    if error and not error[0].startswith("stopped by"):  # while it started
        raise RunError(error[0])
    if code and not (asked or job.stopped()):
        raise RunError(f"torchrun ended with exit code {code}; expected 0; run it again")


def _command(job: TrainJob, recipe: Path, processes: int) -> list[str]:
    device = job.device.type if job.device.index is None else str(job.device)
    options = {"--data": job.data, "--out": job.out, "--cache": job.cache, "--teacher": job.teacher, "--device": device}
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    launch = ["--standalone", "--nproc-per-node", processes, "-m", "udkd", "train", recipe]
    return module_command("udkd.utils.torchrun", [*launch, *words, "--resume"])


def _read(child: "subprocess.Popen[str]", job: TrainJob, error: list[str]) -> None:
    """Pass the processes' notes on, and keep their error; what follows their last line is torchrun's own report."""
    assert child.stderr is not None
    ended = False
    with child.stderr:
        for line in child.stderr:
            text = line.rstrip()
            if text.startswith(_ERROR) and not ended:
                error.append(text.removeprefix(_ERROR))
            elif text and not ended and not _OF_TORCHRUN.match(text):
                job.observer.note(text)
            ended = ended or text.startswith(_LAST)


def _terminate_one(child: "subprocess.Popen[str]") -> bool:
    """Ask one of the processes that train to stop; False where there is none yet."""
    try:
        workers = psutil.Process(child.pid).children()
        if workers:
            workers[0].send_signal(signal.SIGTERM)
        return bool(workers)
    except psutil.Error:
        return False


def _end(child: "subprocess.Popen[str]") -> None:
    """End the processes where this one goes on without them."""
    if child.poll() is None:
        child.terminate()
        child.wait()
