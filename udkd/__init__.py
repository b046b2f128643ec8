"""udkd: several small image classifiers, trained at once from one big, cached teacher.

The pieces stand alone, for a loop that is not ours: `import udkd`, then

    udkd.DatasetFolder, udkd.open_backend          canvases, uint8, of any sample in any order
    udkd.ViewSpec, udkd.EpochViews                 crop, flip and colour jitter as numbers; udkd.augment.apply makes the pixels
    udkd.Cache, udkd.CachedTargets                 what the teacher says of exactly those pixels
    udkd.distill, udkd.LossSettings                the loss of N students
    udkd.permutation                               an order of samples that is a pure function of its names

Each is imported when it is first asked for: torch takes seconds, and the converter's workers do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udkd.augment.view_table import EpochViews as EpochViews
    from udkd.augment.views import ViewSpec as ViewSpec
    from udkd.data.backends.registry import open_backend as open_backend
    from udkd.data.dataset import DatasetFolder as DatasetFolder
    from udkd.losses.distill import LossSettings as LossSettings
    from udkd.losses.distill import distill as distill
    from udkd.teacher.cache.reader import Cache as Cache
    from udkd.teacher.sources import CachedTargets as CachedTargets
    from udkd.utils.rng import permutation as permutation

_HOMES = {
    "open_backend": "udkd.data.backends.registry",
    "CachedTargets": "udkd.teacher.sources",
    "Cache": "udkd.teacher.cache.reader",
    "DatasetFolder": "udkd.data.dataset",
    "EpochViews": "udkd.augment.view_table",
    "permutation": "udkd.utils.rng",
    "LossSettings": "udkd.losses.distill",
    "distill": "udkd.losses.distill",
    "ViewSpec": "udkd.augment.views",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'udkd' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
