"""Suggestions for a misspelt name: the last part of an error that lists what was expected."""

from collections.abc import Iterable
from difflib import get_close_matches


def near(wanted: str, known: Iterable[str], count: int = 2, *, alike: float = 0.6) -> list[str]:
    """The most similar names, best first; upper and lower case are equal. alike: difflib's ratio, from 0 to 1."""
    names = {name.casefold(): name for name in known}
    return [names[name] for name in get_close_matches(wanted.casefold(), names, n=count, cutoff=alike)]


def remedy(suggestions: Iterable[str]) -> str:
    """The end of an error: "did you mean smoke?", or "correct it" without suggestions."""
    texts = list(suggestions)
    return f"did you mean {' or '.join(texts)}?" if texts else "correct it"
