"""The folder of a run: config.json, run.json, metrics.jsonl, checkpoints, students, eval.json, predictions.safetensors.

eval-NAME.json is of other data. train.log, the loggers' files, profile and what was exported are beside them; `udkd train` also
makes the folders teacher and cache (udkd.training.make_targets).

Since format 2 every JSON file, and every line of metrics.jsonl, carries its own checksum (udkd.utils.json_checksum). Runs of
format 1 have none; their types and counts are checked against each other.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from udkd.training.checkpoints import Checkpoint, Checkpoints
from udkd.training.run_records import (
    AnyFormat,
    Config,
    Evaluation,
    OtherEvaluation,
    Provenance,
    read_epochs,
    read_record,
    without_none,
)
from udkd.utils.errors import MismatchError, RunError
from udkd.utils.files import FolderLock, write_bytes
from udkd.utils.folder_kinds import require_no_other
from udkd.utils.json_checksum import dump_checked, dump_checked_line

FORMAT = 2
UNCHECKED = 1
"""The format without checksums."""

_LOOP_KEYS = ("loggers", "tensorboard", "log_every", "checkpoint_", "keep_")
_MAY_DIFFER = ("data.", *(f"train.{key}" for key in _LOOP_KEYS))
"""Beginnings of the keys that a resumed run may have other values of: they change no pixel and no weight."""

_EVALUATING = ".eval.lock"  # not `.lock`, which a trainer may hold: both can run at the same time


class RunFolder:
    """Reads and writes one run. Only this package knows the names of the files inside."""

    def __init__(self, path: Path, run_format: int = FORMAT) -> None:
        self.path = path
        self.format = run_format
        self._checked = run_format != UNCHECKED
        self._checkpoints = Checkpoints(path / "checkpoints", checked=self._checked)
        self._metrics = path / "metrics.jsonl"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> "RunFolder":
        """Create a run, also in place of one that has kept nothing (`is_begun`).

        Raises RunError where the folder already holds another run, or a dataset, teacher or cache.
        """
        run = cls(path)
        if run.is_begun and not cls.is_at(path):
            raise RunError(f"{path} holds a run without config.json; expected all of its files; restore it or choose another")
        if run.is_begun:
            raise RunError(f"{path} already holds a run; expected a new folder; continue it with --resume or choose another")
        require_no_other(path, "run")
        (path / "config.json").unlink(missing_ok=True)  # of a run that has kept nothing: no mixture of both can be resumed
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_bytes(path / "run.json", dump_checked({**provenance, "format": FORMAT}))
        write_bytes(run._metrics, b"")
        write_bytes(path / "config.json", dump_checked(config))
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run. Raises RunError where there is none, or its run.json is damaged."""
        if not cls.is_at(path):
            raise RunError(f"{path} is not a run (no config.json); expected a folder made by udkd train")
        return cls(path, _provenance(path)["format"])

    @classmethod
    def open_damaged(cls, path: Path) -> "RunFolder":
        """Like `open`, but accepts an unreadable run.json, so that the other files can be checked."""
        try:
            return cls.open(path)
        except RunError:
            if cls.is_at(path) or (path / "run.json").is_file():
                return cls(path, UNCHECKED)
            raise

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether `path` holds a run."""
        return (path / "config.json").is_file()

    @property
    def is_begun(self) -> bool:
        """Whether the run has kept anything: a checkpoint, a row of metrics, or files that were made of them."""
        kept = [*(self.path / "checkpoints").glob("*"), *(self.path / "students").glob("*"), *self.path.glob("*eval*.json")]
        return bool(kept) or (self._metrics.is_file() and self._metrics.stat().st_size > 0)

    @property
    def config(self) -> dict[str, Any]:
        """The full recipe, as plain values."""
        return read_record(self.path / "config.json", Config, checked=self._checked, remedy="restore it or train again")[1]

    @property
    def provenance(self) -> dict[str, Any]:
        """Data, cache, versions, hardware, command (`run_records.Provenance`), fields without a value left out."""
        return _provenance(self.path)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The result of udkd eval (`run_records.Evaluation`), or None."""
        path = self.path / "eval.json"
        if not path.exists():
            return None
        # A run of format 1 may have been evaluated by a later version, so its eval.json may have a checksum.
        return read_record(path, Evaluation, checked=self._checked, remedy="run udkd eval again")[1]

    @property
    def predictions_path(self) -> Path:
        """Where udkd eval stores predictions (udkd.training.predictions)."""
        return self.path / "predictions.safetensors"

    def student_path(self, name: str) -> Path:
        """Where a student's weights are for other libraries (udkd.training.student_files)."""
        return self.path / "students" / f"{name.replace('/', '-')}.safetensors"

    @property
    def classes(self) -> list[str] | None:
        """Wnid (or folder name) of each output of the students, in order; None where run.json lacks them."""
        return self.provenance.get("classes")

    def evaluating(self) -> FolderLock:
        """The lock for writing predictions and eval.json, which belong together."""
        return FolderLock(self.path, _EVALUATING)

    def write_evaluation(self, values: Mapping[str, Any]) -> None:
        write_bytes(self.path / "eval.json", dump_checked(values))

    def other_evaluation(self, name: str) -> dict[str, Any] | None:
        """The result of udkd eval on other data (`run_records.OtherEvaluation`), or None."""
        path = self.other_evaluation_path(name)
        if not path.exists():
            return None
        return read_record(path, OtherEvaluation, checked=True, remedy="remove it and run udkd eval again")[1]

    @property
    def other_evaluations(self) -> list[str]:
        """The names of the results on other data, sorted."""
        return sorted(path.stem.removeprefix("eval-") for path in self.path.glob("eval-*.json"))

    def other_evaluation_path(self, name: str) -> Path:
        return self.path / f"eval-{name}.json"

    def write_other_evaluation(self, values: Mapping[str, Any]) -> None:
        write_bytes(self.other_evaluation_path(values["name"]), dump_checked(values))

    def require_config(self, config: Mapping[str, Any], stored_config: Mapping[str, Any] | None = None) -> None:
        """MismatchError unless a resumed run has the same recipe; what changes no bit of the result may differ.

        stored_config: the stored one, completed with the defaults of keys that did not exist when the run began.
        """
        stored, wanted = flatten(stored_config or self.config), flatten(config)
        fields = [
            (name, stored.get(name), wanted.get(name))
            for name in sorted(stored.keys() | wanted.keys())
            if stored.get(name) != wanted.get(name) and not name.startswith(_MAY_DIFFER)
        ]
        if fields:
            remedy = "resume with the recipe it began with"
            if [name for name, _, _ in fields] == ["train.epochs"]:
                remedy = "use --extend EPOCHS to train on, or resume with the epochs it has"
            raise MismatchError(f"the run in {self.path}", fields, remedy)

    def extend(self, epochs: int, step: int) -> bool:
        """Record another number of epochs, from `step` on: in run.json, then in config.json. False: it has that number."""
        config, provenance = self.config, self.provenance
        if config["train"]["epochs"] == epochs:
            return False
        extensions = provenance.get("extended", [])
        change = {"epochs_before": config["train"]["epochs"], "epochs": epochs, "step": step}
        if change not in extensions[-1:]:  # a process may have been killed between the two files
            provenance["extended"] = [*extensions, change]
            write_bytes(self.path / "run.json", dump_checked(provenance))
        config["train"]["epochs"] = epochs
        write_bytes(self.path / "config.json", dump_checked(config))
        return True

    def add_processes(self, step: int, hosts: Sequence[str]) -> None:
        """Record in run.json the processes that train the run from `step` on, by the host of each rank."""
        provenance = self.provenance
        provenance["processes"] = [*provenance.get("processes", []), {"step": step, "hosts": list(hosts)}]
        write_bytes(self.path / "run.json", dump_checked(provenance))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row; the complete file is rewritten, so that a reader never sees half a line."""
        self._write_metrics([*self.metrics(), row])

    def metrics(self) -> list[dict[str, Any]]:
        """All rows in order, as `run_records.Epoch`. RunError: damaged rows, or not of as many students as config.json has."""
        # A run of format 1 that a later version resumed has checksums.
        rows = read_epochs(self._metrics, checked=self._checked)
        students = len(self.config.get("students", ()))
        if rows and students not in (0, len(rows[0]["lr"])):
            raise RunError(
                f"{self._metrics} is of {len(rows[0]['lr'])} students; expected {students} as in config.json; train again"
            )
        return rows

    def drop_metrics_after(self, step: int) -> None:
        """Drop the rows after `step`, which a resumed run writes again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        self._write_metrics(rows)

    def _write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_bytes(self._metrics, b"".join(map(dump_checked_line, rows)))

    def save(self, checkpoint: Checkpoint, keep: int = 1) -> None:
        """Make this the newest checkpoint, of `keep` that are kept. On an error the previous one remains the newest."""
        self._checkpoints.save(checkpoint, keep)

    def keep_best(self, top1: float) -> None:
        """Keep the newest checkpoint as the best, if its `top1` is the highest so far."""
        self._checkpoints.keep_best(top1)

    @property
    def has_checkpoint(self) -> bool:
        return self._checkpoints.exist

    @property
    def checkpoint_step(self) -> int | None:
        """The step of the newest checkpoint, or None without one; no weights are read."""
        return self._checkpoints.last.step if self.has_checkpoint else None

    def load(self, name: str = "last") -> Checkpoint:
        """The checkpoint "last", "best", or of a step, as text. Raises RunError where there is none or it is damaged."""
        if not self.has_checkpoint:
            raise RunError(f"{self.path} has no checkpoint yet; expected at least one finished epoch; train it first")
        return self._checkpoints.load(name)

    def drop_other_checkpoints(self) -> None:
        """Remove files that a process left when it was killed while saving. The caller holds the run's lock."""
        self._checkpoints.drop_others()

    def _load_all(self) -> None:
        for name in self._checkpoints.names if self.has_checkpoint else []:
            self.load(name)

    def problems(self) -> list[str]:
        """The problem of each damaged file of the run, without predictions: a line each, none where all are intact."""
        problems = []
        readers: list[Callable[[], object]] = [
            lambda: self.config,
            lambda: self.provenance,
            lambda: read_epochs(self._metrics, checked=self._checked),
            lambda: self.evaluation,
            *(partial(self.other_evaluation, name) for name in self.other_evaluations),
            self._load_all,
        ]
        for read in readers:
            try:
                read()
            except RunError as error:
                problems.append(str(error))
        return problems


def _provenance(path: Path) -> dict[str, Any]:
    file, remedy = path / "run.json", "restore it or train again"
    run_format = read_record(file, AnyFormat, checked=False, remedy=remedy)[0].format
    if run_format not in (UNCHECKED, FORMAT):
        raise RunError(f"{path} has run format {run_format}; expected {FORMAT}; use the version of udkd that made it")
    return without_none(read_record(file, Provenance, checked=run_format != UNCHECKED, remedy=remedy)[1])


def epoch_seconds(rows: Sequence[Mapping[str, Any]], batch_size: int) -> list[float]:
    """Seconds of training steps in each epoch, from rows of metrics.jsonl."""
    # By steps and images/s: `seconds` is too short for an epoch that was resumed in the middle.
    steps = pairwise([0, *(row["step"] for row in rows)])
    return [batch_size * (after - before) / row["images_per_s"] for (before, after), row in zip(steps, rows, strict=True)]


def flatten(values: Mapping[str, Any] | list[Any], prefix: str = "", *, lists: bool = True) -> dict[str, Any]:
    """Nested values by dotted path. lists: give each item of a list its own path, by index."""
    items = enumerate(values) if isinstance(values, list) else values.items()
    result: dict[str, Any] = {}
    for name, value in items:
        path = f"{prefix}{name}"
        nested = isinstance(value, Mapping) or (lists and isinstance(value, list))
        result |= flatten(value, path + ".", lists=lists) if nested and value else {path: value}
    return result
