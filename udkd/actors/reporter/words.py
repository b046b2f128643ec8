"""How the report puts figures into words."""

from collections.abc import Sequence


def short(name: str, limit: int = 24) -> str:
    """A class name's first synonym, cut to `limit` signs."""
    first = name.split(",")[0].strip() or name
    return first if len(first) <= limit else first[: limit - 1].rstrip() + "…"


def percent(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f} %"


def count(number: int, noun: str) -> str:
    """A number with its noun, such as `1,600 images`; the plural takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(parts: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def capital_free(value: object) -> str:
    """A setting's value as text: words for true and false, figures without needless digits."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "–".join(capital_free(part) for part in value)
    return str(value).replace("_", " ")
