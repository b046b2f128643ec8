"""RUN/checkpoints: safetensors files named by step, and last.json, which names the newest with its sha256.

A checkpoint's file holds its progress too, in its header, so that one sha256 covers all of it; last.json has its own checksum
and is replaced last: at every moment it points at a complete file. Format 1 kept the progress in last.json.
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

from udkd.training.run_records import CheckpointProgress, LastCheckpoint, first_problem, raise_unreadable, read_record
from udkd.utils.errors import RunError
from udkd.utils.files import read_regular, write_bytes
from udkd.utils.json_checksum import dump_checked
from udkd.utils.parsing import parse_json

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
        self._last = folder / "last.json"

    @property
    def exist(self) -> bool:
        """Whether there is a checkpoint."""
        return self._last.exists()

    @property
    def last(self) -> LastCheckpoint:
        """The content of last.json. Raises RunError where it is damaged."""
        last, _ = read_record(self._last, LastCheckpoint, checked=self._checked, remedy=_REMEDY)
        return last

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, point last.json at it, then drop older ones. On an error the previous one remains the newest."""
        progress = json.dumps(checkpoint.progress.model_dump(exclude_none=True))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        data = save(tensors, metadata={_HEADER: progress})
        file = self._folder / f"step-{checkpoint.progress.step:09d}.safetensors"
        write_bytes(file, data)
        write_bytes(self._last, dump_checked({"file": file.name, "sha256": hashlib.sha256(data).hexdigest()}))
        self.drop_older(file.name)

    def drop_older(self, newest: str) -> None:
        """Remove all other checkpoints, including files that a killed process left. The caller holds the run's lock."""
        for old in self._folder.glob("step-*.safetensors*"):
            if old.name != newest:
                old.unlink()

    def load(self) -> Checkpoint:
        """The newest checkpoint; if another process replaces it meanwhile, the new one. Raises RunError where it is damaged."""
        last = self.last
        while True:
            try:
                return self._load(last)
            except RunError:
                newer = self.last
                if newer == last:
                    raise
                last = newer

    def _load(self, last: LastCheckpoint) -> Checkpoint:
        file = self._folder / last.file
        try:
            data = read_regular(file)
        except FileNotFoundError:
            raise RunError(f"{file} is missing; expected the newest checkpoint; {_REMEDY}") from None
        except (OSError, ValueError) as error:
            raise_unreadable(file, error, _REMEDY)
        if hashlib.sha256(data).hexdigest() != last.sha256:
            raise RunError(f"{file} is damaged; expected the sha256 that last.json records; {_REMEDY}")
        try:
            checkpoint = Checkpoint(tensors=load(data), progress=last.progress or _progress(data))
        except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that PyTorch does not have
            raise_unreadable(file, error, _REMEDY)
        if checkpoint.progress.step != last.step:
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
