"""CacheKey: everything that decides a cached target. Every file of a cache stores it."""

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from udkd.augment.views import FIRST_FIELDS, LATER_DEFAULTS, OPS_VERSION, VERSION, VIEW_FIELDS, ViewSpec
from udkd.losses.estimator import Estimator
from udkd.losses.storage import Storage
from udkd.utils.errors import CacheError, ConfigError

FORMAT_VERSION = 1
"""Raise it whenever the meaning of any byte of a view file changes."""

Differing = Sequence[tuple[str, object, object]]
"""(name, stored value, wanted value) of fields that differ."""

_PRECISION = re.compile(r"(float32|bfloat16|float16)(, batch norm folded)?(, compiled)?")
_OMITTED = {"features", "teacher_size_px", "claimed"}  # from a key's text, where they are 0 or empty
_SHOWN = 200  # characters of a value in an error


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that decides the bits of a cache, except the number of views, so that views can be added.

    These fields define the meaning of a target. A training run compares those that it knows:

    dataset_digest:  of the dataset folder: pixels, labels, class order, exclusions.
    split:           "train" | "val".
    pixel_class:     how the backend decoded, `Backend.describe()`.
    policy:          "canonical" (one view, the evaluation view) | "views" (view v of the training views).
    views:           the view spec as plain values; views_version is the drawing code's VERSION.
    seed:            of the views; None for canonical, which has no randomness.
    augment_version: of the code that turns a canvas into pixels.
    normalisation:   the preprocessing of the teacher's input as plain values: mean, std, and interpolation if not bilinear.
    num_classes:     C.
    teacher:         architecture; teacher_sha256 is of its weights.
    estimator:       how one target comes from the teacher, `udkd.losses.estimator.Estimator.text`: "plain" is one pass in
                     evaluation mode. Of an ensemble, teacher and teacher_sha256 name all members in order, between " + ".

    These describe the computation, which changes only a target's last bits. Adding views and resuming need all fields equal:

    precision:       of the teacher's arithmetic, such as "float32" or "bfloat16".
    device:          "cpu" | "cuda".
    threads:         of the CPU's arithmetic; 0 on a GPU.
    channels_last:   layout of the teacher's activations.
    teacher_batch:   rows of the one batch shape that the teacher runs on.
    block_rows:      consecutive ids that are computed and checksummed together.
    storage:         how logits are stored, `udkd.losses.storage.Storage.text`: "float16" | "float32", "… top-32".
    uncertainties:   names of the stored float32 [N] arrays; "entropy" is always one.
    features:        D, the number of pooled features stored with each target as float16; 0 for none.
    teacher_size_px: side of the teacher's input where it is not that of `views`, else 0.
    claimed:         of imported logits, the names of the fields that are the importer's claim, sorted: nothing computed them,
                     and a training run does not compare them. Empty for a cache that a build computed.

    The key's text omits the last three where they are 0 or empty, so that caches without them have the same bytes as before
    these fields existed.
    """

    format_version: int = FORMAT_VERSION
    dataset_digest: str
    split: str
    pixel_class: str
    policy: Literal["canonical", "views"]
    views: dict[str, object]
    views_version: int
    seed: int | None
    augment_version: int
    normalisation: dict[str, object]
    num_classes: int
    teacher: str
    teacher_sha256: str
    estimator: str = "plain"
    precision: str
    device: str
    threads: int
    channels_last: bool
    teacher_batch: int
    block_rows: int
    storage: str = "float16"
    uncertainties: tuple[str, ...] = ("entropy",)
    features: int = 0
    teacher_size_px: int = 0
    claimed: tuple[str, ...] = ()

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    def __post_init__(self) -> None:
        # Tuples become lists, as JSON returns them, so that a key equals its copy on disk.
        object.__setattr__(self, "views", _plain(self.views))
        object.__setattr__(self, "normalisation", _plain(self.normalisation))
        assert self.block_rows > 0, "a block holds at least one row"
        assert self.num_classes > 0, "a target has at least one class"
        assert self.features >= 0, "a target has no or some features"
        assert self.uncertainties[:1] == ("entropy",), "the entropy is always stored, and first"
        assert Storage.parse(self.storage).top_k < self.num_classes, "the top-k form leaves classes out"
        Estimator.parse(self.estimator)

    @property
    def num_members(self) -> int:
        """M, the number of predictions averaged into a target: networks of an ensemble, or passes with dropout."""
        estimator = Estimator.parse(self.estimator)
        return estimator.mc_samples if estimator.kind == "mc_dropout" else self.teacher_sha256.count(" + ") + 1

    @property
    def mixes(self) -> bool:
        """Whether its views mix pairs of samples. CacheError: it was made by another version, whose views are unknown here."""
        if set(self.views) <= set(FIRST_FIELDS):
            return False
        if self.views_version != VERSION or self.views.get("ops_version", OPS_VERSION) != OPS_VERSION:
            raise CacheError(
                f"views of version {self.views_version}, operations of version {self.views.get('ops_version')}; expected "
                f"{VERSION} and {OPS_VERSION}; build the cache again"
            )
        return ViewSpec.from_key_values(self.views).mixes

    def to_json(self) -> str:
        """One line with sorted keys: equal keys give equal text."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value or name not in _OMITTED}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "CacheKey":
        """Read `to_json`'s text. CacheError names a field that is missing, unknown, of the wrong type, or impossible."""
        try:
            key = _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, first["loc"])) or "the text"
            raise CacheError(
                f"cache key: {path}: {first['msg']}; expected a key of format {FORMAT_VERSION}; rebuild the cache"
            ) from None
        missing = {field.name for field in dataclasses.fields(cls)} - json.loads(text).keys() - _OMITTED
        if missing:
            raise CacheError(
                f"cache key without {', '.join(sorted(missing))}; expected a key of format {FORMAT_VERSION}; rebuild the cache"
            )
        name = _impossible_field(key)
        if name:
            value = _short(getattr(key, name))
            raise CacheError(f"cache key: {name} is {value!r}; expected what a build writes; rebuild the cache")
        return key


Remedy = Callable[[CacheKey, Differing], str]
"""What a user can do about the fields in which a stored key differs from the expected one."""


def _impossible_field(key: CacheKey) -> str:
    """The first field with a value that no build writes, or "". The rest of the code relies on these checks."""
    estimator = Estimator.parse(key.estimator)
    has_seed = key.policy == "views"
    is_mean = estimator.kind in ("mc_dropout", "ensemble")
    possible = {
        "format_version": key.format_version == FORMAT_VERSION,
        "split": key.split in ("train", "val"),
        "views": key.views_version != VERSION or _is_view_spec(key.views),
        "seed": 0 <= key.seed < 2**63 if key.seed is not None and has_seed else key.seed is None and not has_seed,
        "num_classes": key.num_classes < 2**31,
        "estimator": estimator.text == key.estimator
        and (estimator.kind != "mc_dropout" or (0 < estimator.p < 1 and estimator.mc_samples < 2**16)),
        "teacher_sha256": not is_mean or key.num_members > 1,
        "uncertainties": key.uncertainties == estimator.uncertainties,
        "precision": _PRECISION.fullmatch(key.precision) is not None,
        "device": key.device in ("cpu", "cuda"),
        "threads": 0 <= key.threads < 2**16,
        "teacher_batch": 0 < key.teacher_batch < 2**31,
        "teacher_size_px": 0 <= key.teacher_size_px <= 65_535 and (has_seed or not key.teacher_size_px),
        "claimed": set(key.claimed) <= set(_KEY_FIELDS) and list(key.claimed) == sorted(set(key.claimed)),
    }
    return next((name for name, holds in possible.items() if not holds), "")


def _is_view_spec(values: Mapping[str, object]) -> bool:
    """Whether a spec has these plain values. Earlier caches lack the later fields; those of another version are not known."""
    if not set(FIRST_FIELDS) <= set(values):
        return False
    version = values.get("ops_version", OPS_VERSION)
    if type(version) is int and version != OPS_VERSION:
        return True
    if not set(values) <= set(VIEW_FIELDS):
        return False
    try:
        return _plain(ViewSpec.from_key_values(values).key_values) == values
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):  # of values of any type
        return False


_ADAPTER = TypeAdapter(CacheKey)
_KEY_FIELDS = tuple(field.name for field in dataclasses.fields(CacheKey))


def key_differences(
    key: CacheKey, expected: Mapping[str, object], allow: Collection[str] = ()
) -> tuple[list[tuple[str, object, object]], list[str]]:
    """Compare a stored key with the fields that the caller knows.

    Returns (name, stored, expected) of every forbidden difference, and the names of the fields whose difference is allowed.
    Inside `views` and `normalisation` each entry is a separate field, such as "views.size_px"; allowing "views" allows
    them all. ConfigError: `allow` holds a name that no key has.
    """
    for name in allow:
        if name.split(".")[0] not in _KEY_FIELDS:
            raise ConfigError(f"allowed field {name!r}; expected one of {', '.join(_KEY_FIELDS)}; correct it")
    stored = _flat({name: getattr(key, name) for name in expected if name in _KEY_FIELDS})
    expected = _flat(expected)
    refused, allowed = [], []
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            if name in allow or name.split(".")[0] in allow:
                allowed.append(name)
            else:
                refused.append((name, _short(stored.get(name)), _short(expected.get(name))))
    return refused, allowed


def _short(value: object) -> object:
    """A value, shortened for an error message."""
    return value[:_SHOWN] + "…" if isinstance(value, str) and len(value) > _SHOWN else value


def _flat(fields: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    if isinstance(fields.get("views"), dict):
        fields = {**fields, "views": {**LATER_DEFAULTS, **fields["views"]}}  # type: ignore[dict-item]
    for name, value in _plain(dict(fields)).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[name] = value
    return flat


def _plain(value: Mapping[str, object]) -> dict[str, object]:
    plain: dict[str, object] = json.loads(json.dumps(value))
    return plain
