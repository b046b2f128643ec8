"""Where a study's things lie: teachers, caches and runs that several studies may share, and each study's own result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udkd.conductors.study.plan import Trial
from udkd.formats.config import Recipe
from udkd.formats.run import RunFolder
from udkd.words.errors import RunError
from udkd.words.files import write_json


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """Paths inside OUT. name: the study's."""

    out: Path
    name: str

    @property
    def result(self) -> Path:
        """The study's JSON, table and page."""
        return self.out / self.name

    def teacher(self, name: str) -> Path:
        return self.out / "teachers" / name

    def cache(self, name: str) -> Path:
        return self.out / "caches" / name

    def run(self, name: str) -> Path:
        return self.out / "runs" / name

    def cache_cost(self, name: str) -> dict[str, float]:
        """Images and seconds that building a cache has taken so far."""
        file = self.out / "caches" / f"{name}.json"
        return dict(json.loads(file.read_text())) if file.exists() else {"images": 0.0, "seconds": 0.0}

    def add_cache_cost(self, name: str, images: int, seconds: float) -> None:
        before = self.cache_cost(name)
        if images:
            value = {"images": before["images"] + images, "seconds": before["seconds"] + seconds}
            write_json(self.out / "caches" / f"{name}.json", value)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A run's finished epochs; nothing where it has not begun."""
    try:
        return RunFolder.open(path).metrics()
    except RunError:
        return []


def is_finished(path: Path, recipe: Recipe) -> bool:
    """Whether a run has been trained to its end, its last checkpoint included."""
    rows = rows_of(path)
    if len(rows) < recipe.train.epochs:
        return False
    return RunFolder.open(path).checkpoint_step == int(rows[-1]["step"])


def epochs_done(path: Path) -> int:
    return len(rows_of(path))


def described(trial: Trial) -> str:
    return f"{trial.arm}, seed {trial.seed}"
