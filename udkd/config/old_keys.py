"""Recipe keys before 0.1.0. Old run folders can still be opened; an old key in a recipe is an error that names the new one."""

from collections.abc import Mapping
from typing import Any

_STUDENT = {"weight": "loss_weight", "join_epoch": "start_epoch", "start": "init_from", "start_student": "init_from_student"}
_NAMES: dict[str, dict[str, str]] = {
    "": {"tune": "perf"},
    "evaluation": {"flip": "flip_tta"},
    "teacher": {"batch": "batch_size", "storage": "logits_dtype", "passes": "mc_samples", "folded": "fold_bn"},
    "fit": _STUDENT,
    "students.*": _STUDENT,
    "loss": {
        "direction": "kl",
        "hard": "label_loss",
        "weight": "sample_weight",
        "weight_control": "sample_weight_control",
        "weight_mean_one": "sample_weight_mean_one",
        "weight_seed": "sample_weight_seed",
    },
    "loss.schedules.*": {"shape": "kind"},
    "methods.attention": {"factor": "weight"},
    "methods.fitnets": {"factor": "weight"},
    "methods.crd": {"factor": "weight", "numbers": "embed_dim"},
    "methods.reviewkd": {"factor": "weight"},
    "train": {"batch": "batch_size", "average": "ema_decay", "loss": "loss_impl", "lr_batch": "lr_base_batch_size"},
}
"""Section -> old key -> new key. A * stands for any key or list index."""
_VALUES: dict[tuple[str, str], dict[Any, Any]] = {
    ("loss", "kl"): {"student_teacher": "reverse", "teacher_student": "forward"},
    ("teacher", "views"): {"canonical": "eval"},
}
_DROPPED: dict[str, dict[str, Any]] = {"perf": {"streams": False, "realize_reads": 0, "autotune": False}}
"""Section -> removed key -> its former default. No measurement showed that these keys help."""
_STUDENT_ADDED: dict[str, Any] = {
    "pretrained": False,
    "frozen": [],
    "mean": [],
    "std": [],
    "optimizer": "SGD",
    "optimizer_options": {},
    "decay_1d": True,
    "clip_norm": 0.0,
    "schedule": "cosine",
    "lr_end": 0.0,
    "step_epochs": [],
    "step_gamma": 0.1,
    "decay_epochs": 0.0,
}
_ADDED: dict[str, dict[str, Any]] = {
    "views": {
        "interpolation": "bilinear",
        "policy": "none",
        "policy_ops": 2,
        "policy_magnitude": 9.0,
        "policy_spread": 0.0,
        "warp": "nearest",
        "fill": [0, 0, 0],
        "jitter": "float",
        "hue": 0.0,
        "ops": [],
        "erase_prob": 0.0,
        "erase_area": [0.02, 0.33],
        "erase_ratio": [0.3, 3.3],
        "erase_fill": "mean",
        "mixup": 0.0,
        "cutmix": 0.0,
        "mix_prob": 1.0,
        "mix_switch_prob": 0.5,
    },
    "teacher": {"size_px": 0, "resize_px": 0},
    "fit": _STUDENT_ADDED,
    "students.*": _STUDENT_ADDED,
    "train": {
        "accumulate": 1,
        "slices": 1,
        "parallel": "slices",
        "deterministic": False,
        "loggers": [],
        "checkpoint_minutes": 0.0,
        "keep_checkpoints": 1,
        "keep_best": False,
    },
}
"""Section -> key that later versions added -> its default, with which a recipe is what it was without the key."""
_STEPS = {"streamed": ("stream", False), "resident": ("resident", False), "captured": ("resident", True)}
"""The old train.steps -> the new train.input and train.cuda_graph."""

_NOT_ADDED = object()


def current(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the plain values of a stored recipe to the current keys; values under current keys are unchanged."""
    renamed: dict[str, Any] = _renamed(values, "", _NAMES)
    for (section, key), names in _VALUES.items():
        _replace(_section(renamed, section), key, names)
    for section, keys in _DROPPED.items():
        for key in keys:
            _section(renamed, section).pop(key, None)
    train = _section(renamed, "train")
    if train.get("steps") in _STEPS:
        train["input"], train["cuda_graph"] = _STEPS[train.pop("steps")]
    return renamed


def original(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the plain values of a recipe, or of some of its sections, to the keys before 0.1.0.

    Studies name their folders after a digest of these values, so that folders from before 0.1.0 are still found.
    """
    values = dict(_without_added(values, ""))
    for (section, key), names in _VALUES.items():
        _replace(values.get(section, {}), key, {new: old for old, new in names.items()})
    if "train" in values:
        train = values["train"]
        pair = (train.pop("input"), train.pop("cuda_graph"))
        train["steps"] = next(old for old, new in _STEPS.items() if new == pair)
    for section, defaults in _DROPPED.items():
        if section in values:
            values[section] |= defaults
    back = {path: {new: old for old, new in names.items()} for path, names in _NAMES.items()}
    renamed: dict[str, Any] = _renamed(values, "", back)
    return renamed


def _without_added(value: Any, path: str) -> Any:
    """A copy of plain values, without the keys that were added later and have their defaults."""
    if isinstance(value, Mapping):
        kept = {key: inner for key, inner in value.items() if _ADDED.get(path, {}).get(key, _NOT_ADDED) != inner}
        return {key: _without_added(inner, _below(path, key)) for key, inner in kept.items()}
    if isinstance(value, list | tuple):
        return [_without_added(inner, f"{path}.*") for inner in value]
    return value


def changes(values: Mapping[str, Any]) -> list[str]:
    """Texts about keys and values from before 0.1.0 in a recipe, such as "train.batch is now train.batch_size"."""
    texts = _renamed_keys(values, "")
    for (section, key), names in _VALUES.items():
        value = values[section].get(key) if isinstance(values.get(section), Mapping) else None
        if isinstance(value, str) and value in names:
            texts.append(f'{section}.{key} = "{value}" is now "{names[value]}"')
    for section, dropped in _DROPPED.items():
        keys = values[section] if isinstance(values.get(section), Mapping) else {}
        texts += [f"{section}.{key} was removed: no measurement showed that it helps" for key in dropped if key in keys]
    if isinstance(values.get("train"), Mapping) and "steps" in values["train"]:
        texts.append("train.steps is now train.input (stream or resident) and train.cuda_graph (true or false)")
    return texts


def _renamed(value: Any, path: str, names: Mapping[str, Mapping[str, str]]) -> Any:
    if isinstance(value, Mapping):
        return {names.get(path, {}).get(key, key): _renamed(inner, _below(path, key), names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(inner, f"{path}.*", names) for inner in value]
    return value


def _renamed_keys(value: Any, path: str, prefix: str = "") -> list[str]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    texts = []
    for key, inner in pairs:
        if key in _NAMES.get(path, {}):
            texts.append(f"{prefix}{key} is now {prefix}{_NAMES[path][key]}")
        texts += _renamed_keys(inner, _below(path, str(key)), f"{prefix}{key}.")
    return texts


def _below(path: str, key: str) -> str:
    return f"{path}.*" if f"{path}.*" in _NAMES else f"{path}.{key}".removeprefix(".")


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section's values; empty if a damaged file has something else there."""
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _replace(section: dict[str, Any], key: str, values: Mapping[Any, Any]) -> None:
    if isinstance(section.get(key), str):
        section[key] = values.get(section[key], section[key])
