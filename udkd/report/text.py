"""Numbers and names as the pages print them."""

from collections.abc import Sequence


def short_name(name: str, limit: int = 24) -> str:
    """A class name's first synonym, cut to `limit` characters."""
    first = name.split(",")[0].strip() or name
    return first if len(first) <= limit else first[: limit - 1].rstrip() + "…"


def percent(value: float, digits: int = 2) -> str:
    """A value in percent, such as `81.86 %`."""
    return f"{value:.{digits}f} %"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, such as `1,600 images`; the plural is the noun with an s unless given."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def comma_list(parts: Sequence[str], last: str = "and") -> str:
    """A list in words: `a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def setting_text(value: object) -> str:
    """A recipe's value as text: on or off for booleans, numbers without trailing zeros."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "–".join(setting_text(part) for part in value)
    return str(value).replace("_", " ")


def class_name(names: Sequence[str], label: int, limit: int = 60) -> str:
    """A class's shortened name; its number where the name is unknown."""
    return short_name(names[label], limit) if 0 <= label < len(names) else f"class {label}"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, where minus is U+2212; no sign where it rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\u2212")


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval of signed numbers, `[−0.4, +1.2]`."""
    return f"[{signed(low, digits)}, {signed(high, digits)}]"
