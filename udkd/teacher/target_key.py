"""What a run's targets mean, by the names of CacheKey's fields: what a builder writes and a trainer asks for."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from udkd.augment import apply as augment
from udkd.augment import views
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.losses.estimator import Estimator
from udkd.losses.storage import Storage
from udkd.teacher.cache.key import CacheKey, Differing, key_differences
from udkd.teacher.frozen import precision_text


def target_fields(recipe: Recipe, dataset: DatasetFolder, pixel_class: str) -> dict[str, object]:
    """The fields of a cache's key that follow from recipe, data and backend; the teachers' own are Panel.describe()."""
    canonical = recipe.teacher.views == "eval"
    return {
        "dataset_digest": dataset.digest,
        "split": "train",
        "pixel_class": pixel_class,
        "policy": "canonical" if canonical else "views",
        "views": asdict(recipe.teacher_spec),
        "views_version": views.VERSION,
        "seed": None if canonical else recipe.views.seed,
        "augment_version": augment.VERSION,
        "normalisation": {"mean": augment.MEAN, "std": augment.STD},
        "num_classes": len(dataset.classes),
        "estimator": recipe.teacher.estimation.text,
        "precision": precision_text(recipe.teacher.precision, folded=recipe.teacher.fold_bn, compiled=recipe.teacher.compile),
    }


_OPTIONS = {
    "dataset_digest": "--data",
    "num_classes": "--data",
    "teacher": "--teacher",
    "teacher_sha256": "--teacher",
    "pixel_class": "--backend",
    "device": "--device",
    "features": "--features",
}
_EVALUATION = {"scheme": "evaluation.scheme", "size_px": "views.size_px", "resize_px": "evaluation.resize_px"}


def building_remedy(key: CacheKey, differing: Differing) -> str:
    """What to do where the folder to build in holds another cache."""
    mends = advice(key, differing)
    return f"{mends + ' to go on with it, ' if mends else ''}build into another folder, or delete that one"


def advice(key: CacheKey, differing: Differing, settings: Sequence[str] = ()) -> str:
    """The settings and options that make a command ask for what a cache of `key` holds, as far as there are any.

    settings: further ones, which come first.
    """
    names = [name for name, _, _ in differing]
    given = dict.fromkeys([*settings, *(setting for name in names for setting in _settings(key, name))])
    options = dict.fromkeys(_OPTIONS[name] for name in names if name in _OPTIONS)
    words = [f"give {' '.join(f'--set {setting}' for setting in given)}"] if given else []
    return " and ".join([*words, f"another {', '.join(options)}"] if options else words)


def training_remedy(
    key: CacheKey, num_views: int, recipe: Recipe, dataset: DatasetFolder, pixel_class: str, differing: Differing
) -> str:
    """What to do where a run does not fit a cache: settings for this cache, or a cache for these settings.

    num_views: that the cache has. Where the policy differs most fields do: that is said, and the rest by what is left then.
    """
    views = "eval" if key.policy == "canonical" else num_views
    if (recipe.teacher.views == "eval") == (views == "eval"):
        holds, settings = "", []
    else:
        recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"views": views})})
        holds = f"the cache holds {'one evaluation view' if views == 'eval' else f'{num_views} augmented views'}; "
        settings = [f"teacher.views={views}"]
    meaning = target_fields(recipe, dataset, pixel_class)
    left, _ = key_differences(key, meaning)
    beyond = [field for field in differing if field[0].split(".")[0] not in meaning]
    mends = advice(key, [*left, *beyond], settings)
    more = ", or allow it" if [name for name, _, _ in differing] == ["storage"] else ""
    ours = f"{holds}{mends} to train with it{more}, or " if mends else ""
    return f"{ours}build a cache for these settings"


def _settings(key: CacheKey, name: str) -> list[str]:
    """A recipe's settings under which a field of a key is as it is, as --set takes them; none where no setting decides it."""
    group, _, inner = name.partition(".")
    if group == "views" and inner in key.views:
        place = f"views.{inner}" if key.policy == "views" else _EVALUATION.get(inner)
        return [f"{place}={_toml(key.views[inner])}"] if place else []
    if name == "policy":
        return ["teacher.views=eval" if key.policy == "canonical" else "teacher.views=K"]
    if name == "storage":
        storage = Storage.parse(key.storage)
        return [f"teacher.logits_dtype={storage.dtype}", f"teacher.top_k={storage.top_k}"]
    if name == "estimator":
        kind = Estimator.parse(key.estimator)
        numbers = [f"teacher.mc_samples={kind.passes}", f"teacher.dropout={kind.p}", f"teacher.dropout_seed={kind.seed}"]
        return [f"teacher.estimator={kind.kind}", *(numbers if kind.kind == "mc_dropout" else ())]
    if name == "precision":
        levers = {"teacher.fold_bn": "batch norm folded", "teacher.compile": "compiled"}
        dtype, *words = key.precision.split(", ")
        return [f"teacher.precision={dtype}", *(f"{lever}={_toml(word in words)}" for lever, word in levers.items())]
    places = {"seed": "views.seed", "threads": "train.threads", "teacher_batch": "teacher.batch_size"}
    return [f"{places[name]}={_toml(getattr(key, name))}"] if name in places and getattr(key, name) is not None else []


def _toml(value: object) -> str:
    """A value as one word of a shell: lists without spaces."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
