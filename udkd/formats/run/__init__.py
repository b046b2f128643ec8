"""A run is a folder: config.json, run.json, metrics.jsonl, checkpoints, eval.json and a report."""

from udkd.formats.run.checkpoints import Checkpoint
from udkd.formats.run.folder import RunFolder, flat
from udkd.formats.run.records import Figures, Progress

__all__ = ["Checkpoint", "Figures", "Progress", "RunFolder", "flat"]
