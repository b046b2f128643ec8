"""What a user can cause: each error is one line that says what was found, what was expected and what to do."""

from collections.abc import Sequence


class UserError(ValueError):
    """The parent of all errors that a user can cause. Commands print its text as one line and exit with 1."""


class DataError(UserError):
    """Images, shards, a manifest or a dataset folder that cannot be used."""


class ConfigError(UserError):
    """An unknown or ill-typed key of a recipe, named by its path."""


class CacheError(UserError):
    """A teacher cache that is damaged, unfinished or absent."""


class RunError(UserError):
    """A run folder or checkpoint that cannot be used, or a run that went wrong (a loss that is not finite)."""


class BusyError(UserError):
    """Another process holds the folder's lock."""


class MismatchError(UserError):
    """A stored thing was made for other circumstances than those it is asked for.

    fields: (name, stored value, wanted value) of every field that differs. What to do comes before them: there may be many.
    """

    def __init__(self, what: str, fields: Sequence[tuple[str, object, object]], remedy: str) -> None:
        self.fields = tuple(fields)
        differences = ", ".join(f"{name}: stored {stored!r}, wanted {wanted!r}" for name, stored, wanted in self.fields)
        super().__init__(f"{what} does not fit; {remedy} ({differences})")
