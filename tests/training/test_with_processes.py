"""Runs of several processes that a program starts itself, as `udkd study --nproc-per-run` does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.factories import small_recipe
from tests.observers import Notes
from tests.training.runs import checkpoint_hash, metrics_without_time
from udkd.data.dataset import DatasetFolder
from udkd.training.trainer import TrainJob, train
from udkd.training.with_processes import train_with_processes
from udkd.utils.errors import ConfigError, RunError

CPU = torch.device("cpu")
SLICED = ("train.slices=2", "train.epochs=2")


@pytest.mark.long
def test_stopped_and_resumed_it_ends_in_the_bits_of_one_process(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    job = TrainJob(recipe=small_recipe(*SLICED), data=dataset.path, out=tmp_path / "one", device=CPU, cache=cache)
    train(job)
    notes, out = Notes(), tmp_path / "two"
    job = replace(job, out=out, observer=notes)
    begun = out / "config.json"
    train_with_processes(replace(job, stopped=begun.exists), 2)
    assert any(line.startswith("stopped after step") for line in notes.lines), notes.lines
    train_with_processes(job, 2)
    assert checkpoint_hash(out) == checkpoint_hash(tmp_path / "one")
    assert metrics_without_time(out) == metrics_without_time(tmp_path / "one")
    assert any("epoch 2: validation top-1" in line for line in notes.lines)
    assert not any("torch/distributed" in line or "Traceback" in line for line in notes.lines)


@pytest.mark.long
def test_their_error_is_raised(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    job = TrainJob(recipe=small_recipe(*SLICED), data=dataset.path, out=tmp_path / "run", device=CPU, cache=tmp_path / "none")
    with pytest.raises(RunError, match="none: no such folder; expected a finished teacher cache"):
        train_with_processes(job, 2)
    with pytest.raises(ConfigError, match=r"3 processes train together and train\.slices is 2"):
        train_with_processes(job, 3)
