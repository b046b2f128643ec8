"""Text from outside (file and class names, keys, other programs' messages) made safe for a terminal or a page."""

MAX_CHARACTERS = 2_000
"""Longest text that is shown in full."""
_SHORT = 100  # characters of a value in an error message


def printable(text: str, most: int | None = MAX_CHARACTERS) -> str:
    r"""`text` with whatever would move a cursor, colour a terminal or turn the direction of writing, as \x1b and its like.

    Escaped: control and format characters (ESC, line breaks, right-to-left marks), line separators, lone surrogates and
    unassigned characters. most: characters to keep, the middle is left out of a longer text; None: all.
    """
    if most is not None and len(text) > most:
        half = most // 2
        text = f"{text[:half]}[… {len(text) - 2 * half:,} characters left out …]{text[-half:]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or _is_space(char) else _escaped(char) for char in text)


def printable_lines(text: str, most: int | None = MAX_CHARACTERS) -> str:
    """`printable` of each line: the ends of lines stay."""
    return "\n".join(printable(line, most) for line in text.split("\n"))


def shorten(text: str) -> str:
    """A value in an error message, cut where it is long."""
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}… ({len(text):,} characters)"


def _is_space(char: str) -> bool:
    return char in "\u00a0\u3000" or "\u2000" <= char <= "\u200a"


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
