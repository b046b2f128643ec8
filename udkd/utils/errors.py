"""Errors that a user can cause. Each text is one line: what was found, what was expected, what to do."""

from collections.abc import Sequence


class UserError(ValueError):
    """Base class of all errors that a user can cause. Commands print the text as one line and exit with 1."""


class DataError(UserError):
    """Images, shards, a manifest or a dataset folder that cannot be used."""


class ConfigError(UserError):
    """A setting that cannot be used: an option, or a key of a recipe, named by its path."""


class CacheError(UserError):
    """A teacher cache that is damaged, unfinished or absent."""


class RunError(UserError):
    """A run folder or checkpoint that cannot be used, or a run that failed because its loss was not finite."""


class BusyError(UserError):
    """Another process is writing the same file or folder."""


class ProcessGroupError(UserError):
    """Processes that torchrun starts together, one of which does not answer any more."""


class MismatchError(UserError):
    """Stored data was made with other settings than those requested.

    fields: (name, stored value, requested value) of each difference. The remedy comes first, as the list may be long.
    """

    def __init__(self, what: str, fields: Sequence[tuple[str, object, object]], remedy: str) -> None:
        self.fields = tuple(fields)
        differences = ", ".join(f"{name}: stored {stored!r}, wanted {wanted!r}" for name, stored, wanted in self.fields)
        super().__init__(f"{what} does not fit; {remedy} ({differences})")
