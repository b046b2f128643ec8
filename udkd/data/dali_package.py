"""Imports DALI on demand: it takes seconds, and may be missing or broken."""

from typing import Any

from udkd.utils.errors import ConfigError


def import_dali() -> Any:
    """The package nvidia.dali with the submodules used here. Raises ConfigError if it is missing or does not load."""
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except Exception as error:  # of a broken package: a missing library, another CUDA, half an upgrade
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"DALI cannot be used ({reason}); expected the package nvidia-dali; "
            'run make install (or pip install "udkd[dali-cuda13]"), or use another --backend'
        ) from None
    return nvidia.dali
