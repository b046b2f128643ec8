"""An epoch's metrics as TensorBoard scalars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_scalars(folder: Path, row: Mapping[str, Any], names: Sequence[str]) -> None:
    """Add one row of metrics.jsonl to an event file in `folder`. names: the students'."""
    from torch.utils.tensorboard import SummaryWriter  # an extra that only this option needs

    with SummaryWriter(str(folder)) as writer:
        for index, name in enumerate(names):
            for term, values in row["train"].items():
                if values[index] is not None:  # a student before its start_epoch
                    writer.add_scalar(f"train/{term}/{name}", values[index], row["step"])
            for metric, value in (row["val"]["students"][index] or {}).items():
                writer.add_scalar(f"val/{metric}/{name}", value, row["step"])
        writer.add_scalar("images_per_s", row["images_per_s"], row["step"])
