"""From a study file to runs: every arm's recipe for every seed, and the folders of runs, caches and teachers.

Folders are named by a digest of what determines their content, so two arms, or two studies in one folder, that need the same
run share it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from udkd.config.loading import load_recipe
from udkd.config.old_keys import original
from udkd.config.recipe import Recipe
from udkd.config.sections import StudentSection
from udkd.study.spec import Arm, Study
from udkd.utils.errors import ConfigError
from udkd.utils.toml_files import toml_value

_NAME_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One cell of the grid: an arm's recipe for one seed."""

    arm: str
    seed: int
    recipe: Recipe

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss uses a teacher."""
        return self.recipe.needs_teacher

    @property
    def needs_cache(self) -> bool:
        """Whether the teacher's logits come from a cache."""
        return self.needs_teacher and self.recipe.teacher.source == "cache"

    @property
    def num_views(self) -> int:
        """Number of cached views it needs."""
        views = self.recipe.teacher.views
        return 1 if views == "eval" else views

    def run_name(self, dataset_digest: str, teacher_sha256: str) -> str:
        """The name of its run folder: a digest of all that determines its numbers; the [data] section does not."""
        teacher = teacher_sha256 if self.needs_teacher else None
        return digest([without_data(self.recipe), dataset_digest, teacher])

    def cache_name(self, dataset_digest: str, teacher_sha256: str) -> str:
        """The name of its cache folder: a digest of what determines its targets, except the number of views."""
        recipe, is_eval = self.recipe, self.recipe.teacher.views == "eval"
        spec, seed = recipe.teacher_spec.key_values, None if is_eval else recipe.views.seed
        settings = original({"teacher": recipe.teacher.model_dump(mode="json", exclude={"source", "views"})})["teacher"]
        values = [is_eval, spec, seed, settings, recipe.data.backend, dataset_digest, teacher_sha256]
        values += ["features"] if recipe.pools_features else []
        # Stored caches have these names, so the digest keeps its values and their order.
        return ("canonical-" if is_eval else "views-") + digest(values)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study with all its recipes resolved. name: of the study file. base: the recipe without any arm's changes.

    trials: seed by seed, so that a stopped study has complete comparisons.
    """

    name: str
    study: Study
    base: Recipe
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]

    @property
    def needs_teacher(self) -> bool:
        return any(trial.needs_teacher for trial in self.trials)

    @property
    def arms(self) -> tuple[Arm, ...]:
        return self.study.arms

    def recipe_of(self, arm: str) -> Recipe:
        """An arm's recipe for the first seed."""
        return next(trial.recipe for trial in self.trials if trial.arm == arm)


def make_plan(
    name: str, study: Study, *, recipe: str | None = None, overrides: Sequence[str] = (), seeds: Sequence[int] = ()
) -> StudyPlan:
    """Resolve a study. recipe, seeds: replace the study's. overrides: KEY=VALUE for every arm, applied before the arm's.

    Raises ConfigError, which names the arm, where the settings give no valid recipe.
    """
    if any(override.partition("=")[0].strip() == "train.seed" for override in overrides):
        raise ConfigError("--set train.seed; expected only the study's seeds to set it; use --seeds")
    base_name, common = recipe or study.recipe, [*study.set, *overrides]
    base = load_recipe(base_name, common)
    chosen = tuple(seeds or study.seeds)
    study.trials(chosen)
    recipes = {arm.name: _recipe(base_name, base, common, arm) for arm in study.arms}
    trials = tuple(
        Trial(arm=name, seed=seed, recipe=recipe.with_seed(seed)) for seed in chosen for name, recipe in recipes.items()
    )
    return StudyPlan(name=name, study=study, base=base, seeds=chosen, trials=trials)


def _recipe(base_name: str, base: Recipe, common: Sequence[str], arm: Arm) -> Recipe:
    overrides = [f"students={_students(base, arm.students)}"] if arm.students else []
    overrides += [f"teacher.views={base.train.epochs}"] if arm.teacher_views == "all" else []
    try:
        return load_recipe(base_name, [*common, *overrides, *arm.set])
    except ConfigError as error:
        raise ConfigError(f"arm {arm.name!r}: {error}") from None


def _students(base: Recipe, architectures: Sequence[str]) -> str:
    """Students of these architectures, as TOML; see Recipe.with_students."""
    return f"[{', '.join(_inline(section) for section in base.with_students(architectures).students)}]"


def _inline(section: StudentSection) -> str:
    return toml_value(section.model_dump(mode="json"))


def teacher_name(recipe: Recipe, dataset_digest: str) -> str:
    """The name of the folder of the teacher that a recipe fits on a dataset."""
    decisive = {
        name: value
        for name, value in without_data(recipe.for_teacher()).items()
        if name in ("views", "evaluation", "students", "train")
    }
    return digest([decisive, dataset_digest])


def without_data(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values (see `original`) without the [data] section, which changes no pixel."""
    return {name: value for name, value in original(recipe.to_dict()).items() if name != "data"}


def digest(value: object) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_NAME_CHARACTERS]
