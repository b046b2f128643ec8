"""A run is a folder: config.json, run.json, metrics.jsonl, checkpoints, eval.json and a report.

Checkpoints are safetensors files named by step; checkpoints/last.json names the newest with its sha256 and is replaced last,
so that at every moment it points at a whole file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from udkd.words.errors import MismatchError, RunError
from udkd.words.files import write_bytes, write_json, write_text

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A moment of a run: tensors by name, and JSON values (step, epoch, …)."""

    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]


class RunFolder:
    """Reads and writes one run. Only this module knows the names of the files inside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoints = path / "checkpoints"
        self._metrics = path / "metrics.jsonl"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> "RunFolder":
        """Begin a run. Raises RunError where the folder already holds one."""
        run = cls(path)
        if (path / "config.json").exists():
            raise RunError(f"{path} already holds a run; expected a new folder; go on with --resume or choose another")
        run._checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(path / "run.json", dict(provenance) | {"format": FORMAT})
        write_text(run._metrics, "")
        write_json(path / "config.json", config)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run. Raises RunError where there is none."""
        run = cls(path)
        if not (path / "config.json").is_file():
            raise RunError(f"{path} is no run (no config.json); expected a folder made by udkd train")
        found = run.provenance.get("format")
        if found != FORMAT:
            raise RunError(f"{path} has run format {found}; expected {FORMAT}; use the version of udkd that made it")
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The full recipe, as plain values."""
        return self._read("config.json")

    @property
    def provenance(self) -> dict[str, Any]:
        """Data, cache, versions, hardware, command."""
        return self._read("run.json", "dataset", "dataset_digest")

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What udkd eval found, or None."""
        return self._read("eval.json") if (self.path / "eval.json").exists() else None

    @property
    def predictions_path(self) -> Path:
        """Where udkd eval keeps what each classifier says of each image (formats.predictions)."""
        return self.path / "predictions.safetensors"

    @property
    def classes(self) -> list[str] | None:
        """Wnid (or folder name) of each output of the students, in order; None where run.json does not say."""
        return self.provenance.get("classes")

    def write_evaluation(self, values: Mapping[str, Any]) -> None:
        write_json(self.path / "eval.json", values)

    def require_config(self, config: Mapping[str, Any], stored_config: Mapping[str, Any] | None = None) -> None:
        """Raise MismatchError naming every key in which a resumed run's recipe differs; `data` may (it changes no pixel).

        stored_config: the stored one, completed with the defaults of keys that did not exist when the run began.
        """
        stored, wanted = flat(stored_config or self.config), flat(config)
        fields = [
            (name, stored.get(name), wanted.get(name))
            for name in sorted(stored.keys() | wanted.keys())
            if stored.get(name) != wanted.get(name) and not name.startswith("data.")
        ]
        if fields:
            raise MismatchError(f"the run in {self.path}", fields, "resume with the recipe it was begun with")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row; the file is rewritten whole, so that a reader never sees half a line."""
        write_text(self._metrics, self._metrics.read_text() + json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All rows, in order."""
        try:
            return [json.loads(line) for line in self._metrics.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise RunError(f"{self._metrics} cannot be read ({error}); expected one JSON object a line; train again") from None

    def drop_metrics_after(self, step: int) -> None:
        """Forget rows that a run resumed at `step` will write again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        write_text(self._metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole, point last.json at it, then drop older ones. An error leaves the previous one in force."""
        step = checkpoint.progress["step"]
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
        file = self._checkpoints / f"step-{step:09d}.safetensors"
        write_bytes(file, data)
        sha256 = hashlib.sha256(data).hexdigest()
        write_json(self._checkpoints / "last.json", {"file": file.name, "sha256": sha256, "progress": checkpoint.progress})
        for old in self._checkpoints.glob("step-*.safetensors"):
            if old != file:
                old.unlink()

    @property
    def has_checkpoint(self) -> bool:
        return (self._checkpoints / "last.json").exists()

    @property
    def checkpoint_step(self) -> int | None:
        """How many steps the newest checkpoint has behind it, or None where there is none; no weights are read."""
        return int(self._read("checkpoints/last.json", "progress")["progress"]["step"]) if self.has_checkpoint else None

    def load(self) -> Checkpoint:
        """The newest checkpoint. Raises RunError where there is none or its bytes are not those recorded."""
        if not self.has_checkpoint:
            raise RunError(f"{self.path} has no checkpoint yet; expected at least one finished epoch; train it first")
        last = self._read("checkpoints/last.json", "file", "sha256", "progress")
        file = self._checkpoints / Path(last["file"]).name
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            raise RunError(f"{file} is missing; expected the newest checkpoint; restore it or train again") from None
        if hashlib.sha256(data).hexdigest() != last["sha256"]:
            raise RunError(f"{file} is damaged; expected the sha256 that last.json records; restore it or train again")
        return Checkpoint(tensors=load(data), progress=last["progress"])

    def _read(self, name: str, *required: str) -> dict[str, Any]:
        try:
            values = json.loads((self.path / name).read_text())
            if not isinstance(values, dict) or any(key not in values for key in required):
                raise ValueError(f"it lacks {', '.join(required) or 'an object'}")
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name} cannot be read ({error}); expected JSON; train again") from None
        return values


def flat(values: Mapping[str, Any] | list[Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted path."""
    items = enumerate(values) if isinstance(values, list) else values.items()
    result: dict[str, Any] = {}
    for name, value in items:
        path = f"{prefix}{name}"
        result |= flat(value, path + ".") if isinstance(value, Mapping | list) and value else {path: value}
    return result
