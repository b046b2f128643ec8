"""Study files: the arms to compare, the seeds to repeat them with, and the baseline. TOML in, one frozen object out.

An unknown or ill-typed key is a ConfigError with its path. An arm's settings are KEY=VALUE of a recipe, as after --set.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from udkd.utils.errors import ConfigError
from udkd.utils.options import Section, Seed
from udkd.utils.printable import printable, shorten
from udkd.utils.toml_files import load_toml, shipped_names
from udkd.utils.validation import validate

StudyKind = Literal["runs", "networks", "teachers"]
MAX_ARMS, MAX_SEEDS, MAX_TRIALS = 200, 1000, 10_000
SHARED_FOLDERS = ("teachers", "caches", "runs", "jobs")
"""Sub-folders that all studies in one folder share; jobs holds the logs of --submit. Each study's result is in a sub-folder of
the study's name."""
_NAME_BYTES = 120
_RENAMED = {"asks": "metric", "exact": "teacher_views"}  # names before 0.1.0

Settings = Annotated[tuple[str, ...], Field(max_length=200)]


class Arm(Section):
    """One row of the grid: the base recipe and this arm's changes to it."""

    name: str = Field(min_length=1, max_length=80)
    set: Settings = Field(default=(), description="KEY=VALUE of the recipe; takes precedence over --set")
    students: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="architectures instead of the recipe's; each takes the settings of the recipe's student of that "
        "architecture, or of its first student",
    )
    teacher_views: Literal["recipe", "all"] = Field(
        default="recipe", description="all: teacher.views = train.epochs, so that the teacher sees every view the students see"
    )
    note: str = Field(default="", description="small print beside the name, such as the loss weights")
    paper: dict[str, float] = Field(default={}, description="top-1 printed in the paper for each student of this arm, percent")
    paper_hours: float | None = Field(default=None, gt=0, description="hours printed in the paper for 50 epochs of this arm")

    @model_validator(mode="after")
    def _name_is_a_line(self) -> Self:
        if printable(self.name, None) != self.name:
            raise ValueError(f"an arm is called {self.name!r}; expected no control characters; change arms.*.name")
        return self


class Contrast(Section):
    """A comparison in addition to those with the baseline: `arm` with `against`, and the difference that it isolates."""

    arm: str
    against: str
    isolates: str = Field(min_length=1)


class Study(Section):
    """A question, the arms that answer it, and the seeds of each arm.

    kind: "runs" trains every arm; "networks" only measures each arm's networks; "teachers" fits one teacher per arm (by the
    [fit] section of its recipe) and compares their sample weights.
    """

    title: str = Field(min_length=1)
    question: str = ""
    metric: Literal["accuracy", "cost"] = Field(default="accuracy", description="what the page shows first")
    kind: StudyKind = "runs"
    recipe: str = Field(default="imagenet100-paper", description="the base recipe; --recipe overrides it")
    seeds: tuple[Seed, ...] = Field(
        default=(0, 1, 2), min_length=1, max_length=MAX_SEEDS, description="train.seed of the repetitions"
    )
    set: Settings = Field(default=(), description="KEY=VALUE for every arm")
    baseline: tuple[str, ...] = Field(
        default=(),
        max_length=MAX_ARMS,
        description="arms to compare the others with; a student is compared with the first of them that has it",
    )
    arms: tuple[Arm, ...] = Field(min_length=1, max_length=MAX_ARMS)
    contrasts: tuple[Contrast, ...] = Field(default=(), max_length=MAX_ARMS)
    notes: tuple[str, ...] = Field(default=(), max_length=100, description="sentences printed on the page")

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}; expected different names; change arms.*.name")
        used = [*self.baseline, *(name for contrast in self.contrasts for name in (contrast.arm, contrast.against))]
        unknown = [name for name in used if name not in names]
        if unknown:
            raise ValueError(
                f"no arm is called {unknown[0]!r}; expected one of {', '.join(names)}; change baseline or contrasts"
            )
        return self

    @model_validator(mode="after")
    def _seeds_fit(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {shorten(str(list(self.seeds)))}; expected different numbers from 0; change seeds")
        self.trials(self.seeds)
        return self

    def trials(self, seeds: Sequence[int]) -> int:
        """Number of runs: arms times seeds. Raises ConfigError, a ValueError, for more than MAX_TRIALS."""
        number = len(self.arms) * len(seeds)
        if number > MAX_TRIALS:
            raise ConfigError(
                f"{len(self.arms):,} arms and {len(seeds):,} seeds make {number:,} runs; expected up to {MAX_TRIALS:,}; "
                "drop some of them"
            )
        return number

    @model_validator(mode="after")
    def _no_arm_sets_the_seed(self) -> Self:
        for arm in self.arms:
            if any(setting.partition("=")[0].strip() in ("train.seed", "seed") for setting in (*self.set, *arm.set)):
                raise ValueError(f"arm {arm.name!r} sets train.seed, which the study's seeds set; expected other keys; drop it")
        return self

    def stored(self) -> dict[str, Any]:
        """Plain values as in study.json, which keeps the key names from before 0.1.0."""
        values = self.model_dump(mode="json")
        arms = [{**arm, "exact": arm["teacher_views"] == "all"} for arm in values["arms"]]
        values |= {"asks": values.pop("metric"), "arms": [_without(arm, "teacher_views") for arm in arms]}
        return values

    @classmethod
    def of_stored(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `stored`."""
        arms = [{**arm, "teacher_views": "all" if arm["exact"] else "recipe"} for arm in values["arms"]]
        current = {**values, "metric": values["asks"], "arms": [_without(arm, "exact") for arm in arms]}
        return cls.model_validate_json(json.dumps(_without(current, "asks")))


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def shipped_studies() -> list[str]:
    """Names of the studies that come with the package."""
    return shipped_names("study")


def study_name(file: str) -> str:
    """A study's name, which is also its result folder's: the file name without its suffix.

    Raises ConfigError where that is not a usable folder name, or is one of SHARED_FOLDERS.
    """
    name = Path(file).stem
    usable = printable(name, None) == name and not name.startswith(".") and len(name.encode()) <= _NAME_BYTES
    if not name or not usable or name in SHARED_FOLDERS:
        raise ConfigError(
            f"study {shorten(file)!r} would write to a folder {shorten(name)!r}; expected a file name of up to "
            f"{_NAME_BYTES} bytes without a leading dot or control characters, and none of {', '.join(SHARED_FOLDERS)}; "
            "rename the file"
        )
    return name


def load_study(name: str) -> Study:
    """A shipped study by name, or a TOML file by path. Raises ConfigError."""
    values = load_toml("study", name)
    arms = values.get("arms")
    for table in (values, *(arm for arm in (arms if isinstance(arms, list) else ()) if isinstance(arm, dict))):
        for key in _RENAMED.keys() & table.keys():
            raise ConfigError(f"{name}: {key} is not a key of a study; expected its new name, {_RENAMED[key]}; correct it")
    return validate(Study, values, origin=name, noun="study")
