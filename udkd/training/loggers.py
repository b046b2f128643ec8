"""Loggers: where a run's figures go besides metrics.jsonl, which stays the record (train.loggers)."""

import csv
import io
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

from udkd.utils.errors import ConfigError, RunError
from udkd.utils.files import read_regular, write_bytes, write_json
from udkd.utils.parsing import parse_json
from udkd.utils.printable import printable, shorten

Values = Mapping[str, float]
"""The figures of one epoch by name: val/top1/STUDENT, train/loss/STUDENT, lr/STUDENT, images_per_s and so on."""


class Logger(Protocol):
    """Receives the figures of each epoch."""

    def log(self, step: int, values: Values) -> None:
        """The figures of the epoch that ended at `step`, a number of training steps."""

    def close(self) -> None:
        """The run has ended or was stopped."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a logger is opened with.

    folder: the run's. recipe: plain values. logged: (step, values) of the epochs that a resumed run keeps; an earlier process
    may have logged later ones, which come again.
    """

    folder: Path
    recipe: Mapping[str, Any]
    logged: Sequence[tuple[int, Values]]

    @property
    def step(self) -> int:
        """The step of the last kept epoch; 0 in a new run."""
        return self.logged[-1][0] if self.logged else 0


OpenLogger = Callable[[LoggedRun], Logger]
_OPENERS: dict[str, OpenLogger] = {}
_Open = TypeVar("_Open", bound=OpenLogger)
_EXTRAS = ("tensorboard", "wandb", "mlflow")
"""Loggers that need a package; package, logger and udkd's extra have the same name."""


def register_logger(name: str) -> Callable[[_Open], _Open]:
    """Make a function or class that takes a LoggedRun and returns a Logger available in train.loggers as `name`."""
    assert name not in _OPENERS, f"a logger {name} is registered already"

    def add(opener: _Open) -> _Open:
        _OPENERS[name] = opener
        return opener

    return add


def require_loggers(names: Sequence[str]) -> None:
    """ConfigError: a name that is not registered, or one whose package is missing. Nothing is imported or written."""
    for name in names:
        if name not in _OPENERS:
            raise ConfigError(f"train.loggers names {shorten(name)!r}; expected {', '.join(_OPENERS)}; correct it")
        spec = find_spec(name) if name in _EXTRAS else None
        # A folder of this name, such as the wandb/ that it writes, is a namespace package without origin.
        if name in _EXTRAS and (spec is None or spec.origin is None):
            raise ConfigError(
                f"train.loggers names {name}, which is not installed; expected its package; pip install 'udkd[{name}]'"
            )


class Loggers:
    """The loggers of a run. One that fails is named in a note and dropped: training continues. Close it after use.

    RunError: a logger cannot start.
    """

    def __init__(self, names: Sequence[str], run: LoggedRun, note: Callable[[str], None]) -> None:
        self._note = note
        self._loggers: dict[str, Logger] = {}
        for name in names:
            try:
                self._loggers[name] = _OPENERS[name](run)
            except Exception as error:  # whatever a service's client raises
                self.close()
                raise RunError(
                    f"the logger {name} cannot start ({_reason(error)}); expected it to; correct that or drop it from "
                    "train.loggers, and use --resume"
                ) from error

    def log(self, step: int, values: Values) -> None:
        """See Logger."""
        self._each(lambda logger: logger.log(step, values))

    def close(self) -> None:
        """See Logger."""
        self._each(lambda logger: logger.close())
        self._loggers.clear()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # whatever a service's client raises
                del self._loggers[name]
                self._note(f"the logger {name} failed ({_reason(error)}) and is dropped; metrics.jsonl has all figures")


def _reason(error: Exception) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split()), 300)


def epoch_values(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """A row of metrics.jsonl as named numbers, without those of students that have not started. names: the students'."""
    values: dict[str, float | None] = {name: row[name] for name in ("epoch", "images_per_s", "seconds")}
    for index, name in enumerate(names):
        score = row["val"]["students"][index]
        values |= {f"val/{metric}/{name}": value for metric, value in (score or {}).items()}
        values |= {f"train/{term}/{name}": column[index] for term, column in row["train"].items()}
        values[f"lr/{name}"] = row["lr"][index] if score else None
    values |= {f"val/{metric}/ensemble": value for metric, value in row["val"]["ensemble"].items()}
    return {name: value for name, value in values.items() if value is not None}


@register_logger("csv")
class CsvLogger:
    """RUN/metrics.csv: a header and a row per epoch, rewritten with each, so that a reader never sees half a line."""

    def __init__(self, run: LoggedRun) -> None:
        self._file = run.folder / "metrics.csv"
        self._rows: list[tuple[int, Values]] = list(run.logged)

    def log(self, step: int, values: Values) -> None:
        """See Logger. A student that starts later adds its columns on the right."""
        self._rows.append((step, values))
        columns = dict.fromkeys(name for _, row in self._rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": number, **row} for number, row in self._rows)
        write_bytes(self._file, text.getvalue().encode())

    def close(self) -> None:
        """See Logger."""


@register_logger("tensorboard")
class TensorBoardLogger:
    """Event files in RUN/tensorboard. After a resume TensorBoard hides what an earlier process logged of later steps."""

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra

        purge_step = run.step + 1 if any((run.folder / "tensorboard").glob("events*")) else None
        self._writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge_step)

    def log(self, step: int, values: Values) -> None:
        """See Logger."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See Logger."""
        self._writer.close()


class _ServiceRun:
    """RUN/NAME.json: which run of a service this one is, and the last step it was sent, as services cannot take steps back."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / f"{name}.json"
        self.id: str | None = None
        self._step = 0
        if self._file.exists():
            stored = parse_json(read_regular(self._file, 1 << 16))
            self.id, self._step = str(stored["run_id"]), int(stored["step"])

    def is_new(self, step: int) -> bool:
        return step > self._step

    def store(self, run_id: str, step: int = 0) -> None:
        self.id, self._step = run_id, max(step, self._step)
        write_json(self._file, {"run_id": run_id, "step": self._step})


@register_logger("wandb")
class WandbLogger:
    """A run of Weights & Biases, which its own environment variables configure: WANDB_PROJECT, WANDB_MODE and others.

    Project "udkd" and folder RUN/wandb unless they say otherwise.
    """

    def __init__(self, run: LoggedRun) -> None:
        import wandb  # an extra that takes a second

        self._stored = _ServiceRun(run.folder, "wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "udkd"),
            name=os.environ.get("WANDB_NAME", run.folder.resolve().name),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            id=self._stored.id,
            resume="allow",
            config=dict(run.recipe),
            reinit="create_new",  # leaves a run that the calling program has open alone
            settings=wandb.Settings(console="off"),  # the terminal stays the command's own
        )
        self._stored.store(self._run.id)

    def log(self, step: int, values: Values) -> None:
        """See Logger."""
        if self._stored.is_new(step):
            self._run.log(dict(values), step=step)
            self._stored.store(self._run.id, step)

    def close(self) -> None:
        """See Logger."""
        self._run.finish()


@register_logger("mlflow")
class MlflowLogger:
    """A run of MLflow: on the tracking server that MLFLOW_TRACKING_URI or the program names, else in files in RUN/mlruns.

    Its experiment is MLFLOW_EXPERIMENT_NAME, else "udkd".
    """

    def __init__(self, run: LoggedRun) -> None:
        import mlflow  # an extra that takes two seconds
        from mlflow.entities import Metric, Param

        if mlflow.is_tracking_uri_set():
            uri = mlflow.get_tracking_uri()
        else:
            uri = (run.folder / "mlruns").resolve().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow's other local store needs more than the extra
        self._metric = Metric
        self._stored = _ServiceRun(run.folder, "mlflow")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if self._stored.id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "udkd")
            experiment = self._client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
            created = self._client.create_run(experiment_id, run_name=run.folder.resolve().name)
            self._stored.store(created.info.run_id)
            params = [Param(name, json.dumps(section)[:6000]) for name, section in run.recipe.items()]  # its limit
            self._client.log_batch(self._stored.id, params=params)
        self._client.update_run(self._stored.id, status="RUNNING")

    def log(self, step: int, values: Values) -> None:
        """See Logger. Characters of a student's name that MLflow refuses become underscores."""
        if self._stored.is_new(step):
            now_ms = int(time.time() * 1000)
            metrics = [self._metric(re.sub(r"[^\w\-. /]", "_", name), value, now_ms, step) for name, value in values.items()]
            self._client.log_batch(self._stored.id, metrics=metrics)
            self._stored.store(str(self._stored.id), step)

    def close(self) -> None:
        """See Logger."""
        self._client.set_terminated(self._stored.id)
