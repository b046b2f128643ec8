"""METHODS after all methods of this package are registered: each registers itself when its module is imported."""

import pkgutil
from importlib import import_module
from pathlib import Path

from udkd.losses.methods.registry import METHODS as METHODS

for _module in pkgutil.iter_modules([str(Path(__file__).parent)], f"{__package__}."):
    import_module(_module.name)
