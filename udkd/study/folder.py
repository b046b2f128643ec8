"""Layout of a study's folder: teachers, caches and runs that several studies may share, and each study's result."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from udkd.config.recipe import Recipe
from udkd.study.plan import Trial
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import RunError
from udkd.utils.files import read_regular, write_bytes
from udkd.utils.json_checksum import dump_checked, load_checked

_MAX_BYTES = 1 << 20


class _CacheCost(BaseModel):
    """Contents of caches/NAME.json: images for which the teacher computed logits, and the seconds that took."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    images: float = Field(ge=0)
    seconds: float = Field(ge=0)


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """Paths inside OUT. name: the study's name."""

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
        """Images and seconds of building a cache so far."""
        file = self.out / "caches" / f"{name}.json"
        if not file.exists():
            return _CacheCost(images=0.0, seconds=0.0).model_dump()
        try:
            return _CacheCost.model_validate(load_checked(read_regular(file, _MAX_BYTES))).model_dump()
        except ValueError as error:  # includes pydantic's ValidationError
            reason = str(error).splitlines()[0]
            raise RunError(f"{file} is damaged ({reason}); expected the build time of that cache; remove it") from None

    def add_cache_cost(self, name: str, images: int, seconds: float) -> None:
        """Add the images and seconds of a build to a cache's cost."""
        stored = self.cache_cost(name)
        if images:
            value = {"images": stored["images"] + images, "seconds": stored["seconds"] + seconds}
            write_bytes(self.out / "caches" / f"{name}.json", dump_checked(value))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """A run's rows of metrics.jsonl; none where it has not begun. Raises RunError where it is damaged."""
    return RunFolder.open(path).metrics() if RunFolder.is_at(path) else []


def is_finished(path: Path, recipe: Recipe) -> bool:
    """Whether a run has all its epochs and its last checkpoint."""
    rows = read_metrics(path)
    if len(rows) < recipe.train.epochs:
        return False
    return RunFolder.open(path).checkpoint_step == int(rows[-1]["step"])


def trial_label(trial: Trial) -> str:
    return f"{trial.arm}, seed {trial.seed}"
