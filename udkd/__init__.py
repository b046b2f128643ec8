"""udkd: several small image classifiers, trained at once from one big, cached teacher.

The pieces stand alone, for a loop that is not ours: `import udkd`, then

    udkd.DatasetFolder, udkd.open_backend          canvases, uint8, of any sample in any order
    udkd.ViewSpec, udkd.EpochViews, udkd.augment   crop, flip and colour jitter as numbers, and the pixels that follow
    udkd.Cache, udkd.CachedLessons                 what the teacher says of exactly those pixels
    udkd.distill, udkd.LossSettings                the loss of N students
    udkd.permutation                               an order of samples that is a pure function of its names

Each is imported when it is first asked for: torch takes seconds, and the converter's workers do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udkd.backends import open_backend as open_backend
    from udkd.engine.lessons import CachedLessons as CachedLessons
    from udkd.formats.cache import Cache as Cache
    from udkd.formats.dataset import DatasetFolder as DatasetFolder
    from udkd.operations import augment as augment
    from udkd.parts.epoch_views import EpochViews as EpochViews
    from udkd.words.hashing import permutation as permutation
    from udkd.words.losses import LossSettings as LossSettings
    from udkd.words.losses import distill as distill
    from udkd.words.views import ViewSpec as ViewSpec

_HOMES = {
    "open_backend": "udkd.backends",
    "CachedLessons": "udkd.engine.lessons",
    "Cache": "udkd.formats.cache",
    "DatasetFolder": "udkd.formats.dataset",
    "augment": "udkd.operations.augment",
    "EpochViews": "udkd.parts.epoch_views",
    "permutation": "udkd.words.hashing",
    "LossSettings": "udkd.words.losses",
    "distill": "udkd.words.losses",
    "ViewSpec": "udkd.words.views",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'udkd' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = import_module(_HOMES[name])
    return home if _HOMES[name].endswith(f".{name}") else getattr(home, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
