"""The fields of a cache's key that follow from a recipe: a build writes them, a training run requires them."""

import json
from collections.abc import Sequence

from udkd.augment import apply as augment
from udkd.augment import views
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.losses.estimator import Estimator
from udkd.losses.storage import Storage
from udkd.teacher.cache.key import CacheKey, Differing, key_differences
from udkd.teacher.frozen import precision_text


def target_fields(recipe: Recipe, dataset: DatasetFolder, pixel_class: str) -> dict[str, object]:
    """The key fields that follow from recipe, data and backend; TeacherEnsemble.describe() has the teachers' fields."""
    is_eval = recipe.teacher.views == "eval"
    return input_fields(dataset.digest, "train", pixel_class) | {
        "policy": "canonical" if is_eval else "views",
        "views": recipe.teacher_spec.key_values,
        "seed": None if is_eval else recipe.views.seed,
        "num_classes": len(dataset.classes),
        "estimator": recipe.teacher.estimator_settings.text,
        "teacher_size_px": recipe.rendered_px,
        "precision": precision_text(recipe.teacher.precision, folded=recipe.teacher.fold_bn, compiled=recipe.teacher.compile),
    }


def input_fields(digest: str, split: str, pixel_class: str) -> dict[str, object]:
    """The key fields of the data and of this code's versions. With the views and the preprocessing they determine the input."""
    return {
        "dataset_digest": digest,
        "split": split,
        "pixel_class": pixel_class,
        "views_version": views.VERSION,
        "augment_version": augment.VERSION,
    }


_SIZES = ("size_px", "resize_px")
_OPTIONS = {
    "dataset_digest": "--data",
    "num_classes": "--data",
    "teacher": "--teacher",
    "teacher_sha256": "--teacher",
    "pixel_class": "--backend",
    "device": "--device",
    "features": "--features",
}


def building_remedy(key: CacheKey, differing: Differing) -> str:
    """What to do where the folder to build in holds another cache."""
    if key.claimed:
        return "it was imported, and a build computes other targets: build into another folder, or delete that one"
    change = advice(key, differing)
    return f"{change + ' to continue it, ' if change else ''}build into another folder, or delete that one"


def advice(key: CacheKey, differing: Differing, settings: Sequence[str] = ()) -> str:
    """The settings and options with which a command would match a cache of `key`; "" where there are none.

    settings: further ones, which come first.
    """
    names = [name for name, _, _ in differing]
    all_settings = dict.fromkeys([*settings, *(setting for name in names for setting in _settings(key, name))])
    options = dict.fromkeys(_OPTIONS[name] for name in names if name in _OPTIONS)
    parts = [f"give {' '.join(f'--set {setting}' for setting in all_settings)}"] if all_settings else []
    return " and ".join([*parts, f"another {', '.join(options)}"] if options else parts)


def training_remedy(
    key: CacheKey, num_views: int, recipe: Recipe, dataset: DatasetFolder, pixel_class: str, differing: Differing
) -> str:
    """What to do where a run does not match a cache: change the settings, or build a cache for them.

    num_views: of the cache. Where the policy differs, most fields do, so the advice names the policy and only those fields
    that would still differ after changing it.
    """
    views = "eval" if key.policy == "canonical" else num_views
    if (recipe.teacher.views == "eval") == (views == "eval"):
        holds, settings = "", []
    else:
        recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"views": views})})
        holds = f"the cache holds {'one evaluation view' if views == 'eval' else f'{num_views} augmented views'}; "
        settings = [f"teacher.views={views}"]
    fields = {name: value for name, value in target_fields(recipe, dataset, pixel_class).items() if name not in key.claimed}
    remaining, _ = key_differences(key, fields)
    others = [field for field in differing if field[0].split(".")[0] not in fields]
    change = advice(key, [*remaining, *others], settings)
    allow = ", or allow it" if [name for name, _, _ in differing] == ["storage"] else ""
    this_cache = f"{holds}{change} to train with it{allow}, or " if change else ""
    return f"{this_cache}build a cache for these settings"


def _settings(key: CacheKey, name: str) -> list[str]:
    """The recipe settings that give a key's field its value, as --set takes them; none where no setting decides it."""
    group, _, inner = name.partition(".")
    if group == "views" and inner in views.VIEW_FIELDS:
        if key.policy == "views":
            value = key.views.get(inner, views.LATER_DEFAULTS.get(inner))
            return [] if inner == "ops_version" else [_shell_word(f"views.{inner}={_toml(value)}")]
        if inner == "scheme":
            return [f"evaluation.scheme={key.views[inner]}"]
        # Both: the size before the crop is in proportion to the size where it is not set.
        return [f"teacher.{name}={_toml(key.views[name])}" for name in ("size_px", "resize_px")] if inner in _SIZES else []
    if name == "teacher_size_px":
        return [f"teacher.size_px={key.teacher_size_px}"]
    if name == "policy":
        return ["teacher.views=eval" if key.policy == "canonical" else "teacher.views=K"]
    if name == "storage":
        storage = Storage.parse(key.storage)
        return [f"teacher.logits_dtype={storage.dtype}", f"teacher.top_k={storage.top_k}"]
    if name == "estimator":
        estimator = Estimator.parse(key.estimator)
        dropout = [
            f"teacher.mc_samples={estimator.mc_samples}",
            f"teacher.dropout={estimator.p}",
            f"teacher.dropout_seed={estimator.seed}",
        ]
        return [f"teacher.estimator={estimator.kind}", *(dropout if estimator.kind == "mc_dropout" else ())]
    if name == "precision":
        flags = {"teacher.fold_bn": "batch norm folded", "teacher.compile": "compiled"}
        dtype, *applied = key.precision.split(", ")
        return [f"teacher.precision={dtype}", *(f"{setting}={_toml(flag in applied)}" for setting, flag in flags.items())]
    settings = {"seed": "views.seed", "threads": "train.threads", "teacher_batch": "teacher.batch_size"}
    return [f"{settings[name]}={_toml(getattr(key, name))}"] if name in settings and getattr(key, name) is not None else []


def _toml(value: object) -> str:
    """A value as --set takes it, without spaces."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        tables = [",".join(f"{name}={json.dumps(each)}" for name, each in table.items()) for table in value]
        return f"[{','.join(f'{{{table}}}' for table in tables)}]"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _shell_word(setting: str) -> str:
    """In quotes where a shell would change it."""
    return f"'{setting}'" if '"' in setting else setting
