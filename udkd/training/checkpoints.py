"""RUN/checkpoints: safetensors files named by step, and last.json, which names the newest with its sha256.

A checkpoint's file holds its progress too, in its header, so that one sha256 covers all of it; last.json has its own checksum
and is replaced last: at every moment it points at a complete file. It also names the older checkpoints that are kept, and
best.json names the best. Format 1 kept the progress in last.json.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from udkd.models.state_dicts import plain_tensors
from udkd.training.run_records import (
    BestCheckpoint,
    CheckpointProgress,
    LastCheckpoint,
    StoredCheckpoint,
    first_problem,
    raise_unreadable,
    read_record,
)
from udkd.utils.errors import RunError
from udkd.utils.files import read_regular, write_bytes
from udkd.utils.json_checksum import dump_checked
from udkd.utils.parsing import parse_json
from udkd.utils.printable import shorten

_REMEDY = "restore it or train again"
_HEADER = "progress"  # a single entry: safetensors writes several in any order


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run at one step: tensors by name, and its progress."""

    tensors: Mapping[str, Tensor]
    progress: CheckpointProgress

    def require_counts(self, *, batch: int, epochs: int, steps_per_epoch: int | None = None) -> None:
        """RunError unless the counters fit each other and the recipe. steps_per_epoch: of the data, where known."""
        step, stored = self.progress.step, self.progress.steps_per_epoch
        if stored != (steps_per_epoch or stored):
            raise RunError(f"the checkpoint has {stored} steps per epoch; expected {steps_per_epoch} of this data; {_REMEDY}")
        if step > epochs * stored:
            raise RunError(f"the checkpoint is at step {step:,}; expected at most {epochs * stored:,}; {_REMEDY}")
        count, seen = self.tensors.get("tally.count"), step % stored * batch
        if count is None or count.dim() or int(count) != seen:
            stored_count = "no count" if count is None else count.tolist()
            raise RunError(
                f"the checkpoint at step {step} has {stored_count} of the images seen in its epoch; expected {seen}; {_REMEDY}"
            )


class Checkpoints:
    """The folder of a run's checkpoints. checked: its last.json must carry a checksum."""

    def __init__(self, folder: Path, *, checked: bool) -> None:
        self._folder = folder
        self._checked = checked
        self._last, self._best = folder / "last.json", folder / "best.json"

    @property
    def exist(self) -> bool:
        """Whether there is a checkpoint."""
        return self._last.exists()

    @property
    def last(self) -> LastCheckpoint:
        """The content of last.json. Raises RunError where it is damaged."""
        last, _ = read_record(self._last, LastCheckpoint, checked=self._checked, remedy=_REMEDY)
        return last

    @property
    def best(self) -> BestCheckpoint | None:
        """The content of best.json, None without one. Raises RunError where it is damaged."""
        if not self._best.exists():
            return None
        return read_record(self._best, BestCheckpoint, checked=True, remedy=_REMEDY)[0]

    @property
    def names(self) -> list[str]:
        """Of all that are kept: "last", "best" where there is one, and the steps of the older ones as text."""
        return ["last", *(["best"] if self.best else []), *(str(record.step) for record in self.last.older)]

    def save(self, checkpoint: Checkpoint, keep: int = 1) -> None:
        """Write a checkpoint, point last.json at it, then drop all but the `keep` newest and the best.

        On an error the previous one remains the newest.
        """
        progress = json.dumps(checkpoint.progress.model_dump(exclude_none=True))
        data = save(plain_tensors(checkpoint.tensors), metadata={_HEADER: progress})
        file = self._folder / f"step-{checkpoint.progress.step:09d}.safetensors"
        older: list[StoredCheckpoint] = []
        if keep > 1 and self.exist:
            last = self.last
            # Not one of format 1, whose progress is in the last.json that is about to be replaced.
            known = [record for record in ((last, *last.older) if last.progress is None else ()) if record.file != file.name]
            older = known[: keep - 1]
        write_bytes(file, data)
        record: dict[str, object] = {"file": file.name, "sha256": hashlib.sha256(data).hexdigest()}
        if older:
            record["older"] = [record.model_dump(include={"file", "sha256"}) for record in older]
        write_bytes(self._last, dump_checked(record))
        self.drop_others()

    def keep_best(self, top1: float) -> None:
        """Make the newest checkpoint the best one if its `top1`, percent, is above that of the best so far."""
        best, last = self.best, self.last
        if last.progress is not None:  # as in `save`
            return
        if best is None or top1 > best.top1 or best.file == last.file:
            write_bytes(self._best, dump_checked({"file": last.file, "sha256": last.sha256, "top1": top1}))
            self.drop_others()

    def drop_others(self) -> None:
        """Remove the files that no record names, also what a killed process left. The caller holds the run's lock."""
        last, best = self.last, self.best
        kept = {record.file for record in (last, *last.older, *([best] if best else []))}
        for old in self._folder.glob("step-*.safetensors*"):
            if old.name not in kept:
                old.unlink()

    def load(self, name: str = "last") -> Checkpoint:
        """The newest checkpoint, or another one of `names`; if another process replaces it meanwhile, the new one.

        Raises RunError where it is damaged or not there.
        """
        record = self._record(name)
        while True:
            try:
                return self._load(record)
            except RunError:
                newer = self._record(name)
                if newer == record:
                    raise
                record = newer

    def _record(self, name: str) -> StoredCheckpoint:
        if name == "last":
            return self.last
        best = self.best
        if name == "best" and best is not None:
            return best
        last = self.last
        for record in (last, *last.older, *([best] if best else [])):
            if str(record.step) == name:
                return record
        remedy = "train with train.keep_best = true to have the best" if name == "best" else "name one of those"
        raise RunError(f"{self._folder} holds no checkpoint {shorten(name)}; expected {', '.join(self.names)}; {remedy}")

    def _load(self, record: StoredCheckpoint) -> Checkpoint:
        file = self._folder / record.file
        try:
            data = read_regular(file)
        except FileNotFoundError:
            raise RunError(f"{file} is missing; expected a checkpoint; {_REMEDY}") from None
        except (OSError, ValueError) as error:
            raise_unreadable(file, error, _REMEDY)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise RunError(f"{file} is damaged; expected the sha256 that was recorded for it; {_REMEDY}")
        progress = record.progress if isinstance(record, LastCheckpoint) else None
        try:
            checkpoint = Checkpoint(tensors=load(data), progress=progress or _progress(data))
        except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that PyTorch does not have
            raise_unreadable(file, error, _REMEDY)
        if checkpoint.progress.step != record.step:
            raise_unreadable(file, ValueError(f"it holds step {checkpoint.progress.step}, unlike its name"), _REMEDY)
        return checkpoint


def _progress(data: bytes) -> CheckpointProgress:
    """The progress in the header of a checkpoint's file. Raises ValueError."""
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    try:
        return CheckpointProgress.model_validate(parse_json(header["__metadata__"][_HEADER]))
    except (KeyError, TypeError):
        raise ValueError("its header lacks its progress") from None
    except ValidationError as error:
        raise ValueError(first_problem(error.errors(include_url=False))) from None
