"""udkd: several small image classifiers, trained at once from one large, cached teacher.

The parts can be used alone, in a training loop of your own: `import udkd`, then

    udkd.DatasetFolder, udkd.open_backend          uint8 canvases of any samples in any order
    udkd.ViewSpec, udkd.EpochViews                 crop, flip and colour jitter as numbers; udkd.augment.apply makes the pixels
    udkd.Cache, udkd.CachedTargets                 the cached teacher logits for exactly those pixels
    udkd.distill, udkd.LossSettings                the loss of N students
    udkd.permutation                               a sample order that is a pure function of seed and epoch

Each name is imported at its first use: torch takes seconds to import, and the converter's workers do not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from udkd.augment.view_table import EpochViews as EpochViews
    from udkd.augment.views import ViewSpec as ViewSpec
    from udkd.data.backends.registry import open_backend as open_backend
    from udkd.data.dataset import DatasetFolder as DatasetFolder
    from udkd.losses.distill import LossSettings as LossSettings
    from udkd.losses.distill import distill as distill
    from udkd.teacher.cache.reader import Cache as Cache
    from udkd.teacher.sources import CachedTargets as CachedTargets
    from udkd.utils.rng import permutation as permutation

_MODULES = {
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
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("udkd")
    if name not in _MODULES:
        raise AttributeError(f"module 'udkd' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
