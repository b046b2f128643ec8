"""udkd: trains several small image classifiers at once from one large, cached teacher.

For a training loop of your own, `import udkd` provides:

    udkd.Dataset                                   a dataset folder, its splits and classes
    udkd.Loader                                    batches: sample ids, uint8 canvases and labels, shuffled by (seed, epoch)
    udkd.ViewSpec, udkd.Augment                    canvases to network input: crop, flip, colours, mixing … by (seed, epoch, id)
    udkd.MixedLabels                               the labels of mixed samples, which DistillationLoss takes
    udkd.Preprocessing                             mean, std and interpolation of a network's input; ImageNet's by default
    udkd.CachedTeacher, udkd.LiveTeacher           the teacher's logits and weights of a batch
    udkd.DistillationLoss                          the loss of N students

For complete runs: `udkd.convert`, `udkd.load_recipe`, `udkd.import_teacher`, `udkd.build_cache`, `udkd.train` and
`udkd.evaluate`. For extensions: `udkd.register_method`, `udkd.register_sample_weight`, `udkd.register_backend` and
`udkd.register_logger`. Every error that a user can cause is a `udkd.UserError`.

Each name is imported on first use: importing torch takes seconds, and the converter's workers do not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from udkd.augment.mixing import MixedLabels as MixedLabels
    from udkd.augment.preprocessing import Preprocessing as Preprocessing
    from udkd.augment.view_table import Augment as Augment
    from udkd.augment.views import ViewSpec as ViewSpec
    from udkd.config.loading import load_recipe as load_recipe
    from udkd.data.backends.registry import register_backend as register_backend
    from udkd.data.dataset import Dataset as Dataset
    from udkd.data.loader import Loader as Loader
    from udkd.data_prep.api import convert as convert
    from udkd.losses.distill import DistillationLoss as DistillationLoss
    from udkd.losses.methods.registry import register_method as register_method
    from udkd.losses.sample_weight import register_sample_weight as register_sample_weight
    from udkd.teacher.cache.build import build_cache as build_cache
    from udkd.teacher.teachers import CachedTeacher as CachedTeacher
    from udkd.teacher.teachers import LiveTeacher as LiveTeacher
    from udkd.training.evaluate import evaluate as evaluate
    from udkd.training.import_teacher import import_teacher as import_teacher
    from udkd.training.loggers import register_logger as register_logger
    from udkd.training.train import train as train
    from udkd.utils.errors import UserError as UserError

_MODULES = {
    "Augment": "udkd.augment.view_table",
    "CachedTeacher": "udkd.teacher.teachers",
    "Dataset": "udkd.data.dataset",
    "DistillationLoss": "udkd.losses.distill",
    "LiveTeacher": "udkd.teacher.teachers",
    "Loader": "udkd.data.loader",
    "MixedLabels": "udkd.augment.mixing",
    "Preprocessing": "udkd.augment.preprocessing",
    "UserError": "udkd.utils.errors",
    "ViewSpec": "udkd.augment.views",
    "build_cache": "udkd.teacher.cache.build",
    "convert": "udkd.data_prep.api",
    "evaluate": "udkd.training.evaluate",
    "import_teacher": "udkd.training.import_teacher",
    "load_recipe": "udkd.config.loading",
    "register_backend": "udkd.data.backends.registry",
    "register_logger": "udkd.training.loggers",
    "register_method": "udkd.losses.methods.registry",
    "register_sample_weight": "udkd.losses.sample_weight",
    "train": "udkd.training.train",
}
__all__ = sorted(_MODULES)


if not TYPE_CHECKING:  # a type checker that sees __getattr__ accepts any name

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("udkd")
        if name not in _MODULES:
            raise AttributeError(f"module 'udkd' has no attribute {name!r}; it has {', '.join(__all__)}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
