"""What two runs are compared by."""

import json
from pathlib import Path

from torch import Tensor

from udkd.training.run_folder import RunFolder


def checkpoint_hash(out: Path) -> str:
    return str(json.loads((out / "checkpoints" / "last.json").read_text())["sha256"])


def checkpoint_tensors(out: Path) -> dict[str, Tensor]:
    return dict(RunFolder.open(out).load().tensors)


def metrics_without_time(out: Path) -> list[dict[str, object]]:
    rows = RunFolder.open(out).metrics()
    return [{name: value for name, value in row.items() if name not in ("seconds", "images_per_s")} for row in rows]
