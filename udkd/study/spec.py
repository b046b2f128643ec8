"""Study files: arms to compare, the seeds to repeat them with, and what to hold them against. TOML in, one frozen object out.

An unknown or ill-typed key is a ConfigError with its path. What an arm sets is KEY=VALUE of a recipe, as after --set.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from udkd.utils.errors import ConfigError
from udkd.utils.options import Section, Seed
from udkd.utils.printable import printable, shorten
from udkd.utils.toml_files import load_toml, shipped_names
from udkd.utils.validation import validate

Kind = Literal["runs", "networks", "teachers"]
MOST_ARMS, MOST_SEEDS, MOST_TRIALS = 200, 1000, 10_000
SHARED_FOLDERS = ("teachers", "caches", "runs")
"""What studies in one folder share; a study's own result lies beside them, under its name."""
_NAME_BYTES = 120

Settings = Annotated[tuple[str, ...], Field(max_length=200)]


class Arm(Section):
    """One row of the grid: the base recipe with what this arm changes."""

    name: str = Field(min_length=1, max_length=80)
    set: Settings = Field(default=(), description="KEY=VALUE of the recipe; what an arm sets, --set cannot change")
    students: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="architectures instead of the recipe's; each takes the settings of the recipe's student of that "
        "architecture, else those of its first",
    )
    exact: bool = Field(default=False, description="teacher.views = train.epochs: the teacher sees every view the students see")
    note: str = Field(default="", description="small print beside the name, such as the loss's weights")
    paper: dict[str, float] = Field(default={}, description="top-1 that the paper prints for a student of this arm, percent")
    paper_hours: float | None = Field(default=None, gt=0, description="hours that the paper prints for 50 epochs of this arm")

    @model_validator(mode="after")
    def _name_is_a_line(self) -> Self:
        if printable(self.name, None) != self.name:
            raise ValueError(f"an arm is called {self.name!r}; expected no control characters; change arms.*.name")
        return self


class Contrast(Section):
    """A comparison besides those with the baseline: `arm` against `against`, and what it isolates."""

    arm: str
    against: str
    isolates: str = Field(min_length=1)


class Study(Section):
    """A question, the arms that answer it, and how often each is repeated.

    kind: "runs" trains every arm; "networks" only measures each arm's networks; "teachers" fits one teacher per arm (from
    [fit] of its recipe) and compares the weights they give.
    """

    title: str = Field(min_length=1)
    question: str = ""
    asks: Literal["accuracy", "cost"] = Field(default="accuracy", description="of what; the page answers it first")
    kind: Kind = "runs"
    recipe: str = Field(default="imagenet100-paper", description="the base; --recipe takes another")
    seeds: tuple[Seed, ...] = Field(
        default=(0, 1, 2), min_length=1, max_length=MOST_SEEDS, description="train.seed of the repetitions"
    )
    set: Settings = Field(default=(), description="KEY=VALUE for every arm")
    baseline: tuple[str, ...] = Field(
        default=(),
        max_length=MOST_ARMS,
        description="arms that the others are held against; a student is held against the first that has it",
    )
    arms: tuple[Arm, ...] = Field(min_length=1, max_length=MOST_ARMS)
    contrasts: tuple[Contrast, ...] = Field(default=(), max_length=MOST_ARMS)
    notes: tuple[str, ...] = Field(default=(), max_length=100, description="sentences for the page")

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}; expected a name each; change arms.*.name")
        asked = [*self.baseline, *(name for contrast in self.contrasts for name in (contrast.arm, contrast.against))]
        unknown = [name for name in asked if name not in names]
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
        """How many runs these seeds make of the arms. Raises ConfigError, a ValueError, for more than MOST_TRIALS."""
        number = len(self.arms) * len(seeds)
        if number > MOST_TRIALS:
            raise ConfigError(
                f"{len(self.arms):,} arms and {len(seeds):,} seeds make {number:,} runs; expected up to {MOST_TRIALS:,}; "
                "drop some of them"
            )
        return number

    @model_validator(mode="after")
    def _nothing_is_set_twice(self) -> Self:
        for arm in self.arms:
            if any(setting.partition("=")[0].strip() in ("train.seed", "seed") for setting in (*self.set, *arm.set)):
                raise ValueError(f"arm {arm.name!r} sets train.seed; expected the study's seeds to name it; drop it")
        return self


def shipped_studies() -> list[str]:
    """Names of the studies inside the package."""
    return shipped_names("study")


def study_name(file: str) -> str:
    """The name of a study, as on the command line: of a file without its ending. The result's folder is called after it.

    Raises ConfigError where that would be no folder of its own.
    """
    name = Path(file).stem
    own = printable(name, None) == name and not name.startswith(".") and len(name.encode()) <= _NAME_BYTES
    if not name or not own or name in SHARED_FOLDERS:
        raise ConfigError(
            f"study {shorten(file)!r} would write to a folder {shorten(name)!r}; expected a file name of up to "
            f"{_NAME_BYTES} bytes without a leading dot or control characters, and none of {', '.join(SHARED_FOLDERS)}; "
            "rename the file"
        )
    return name


def load_study(name: str) -> Study:
    """A shipped study by name, or a TOML file by path. Raises ConfigError."""
    return validate(Study, load_toml("study", name), origin=name, noun="study")
