"""Untrusted text (file and class names, keys, other programs' messages) made safe for a terminal or a page."""

MAX_CHARACTERS = 2_000
"""Longest text that `printable` keeps in full."""
_SHORT = 100  # characters of a value in an error message


def printable(text: str, max_characters: int | None = MAX_CHARACTERS) -> str:
    r"""Escape every character that could move the cursor, set colours or change the writing direction, such as \x1b.

    These are control and format characters (ESC, line breaks, right-to-left marks), line separators, lone surrogates and
    unassigned characters. max_characters: the middle of a longer text is left out; None keeps all of it.
    """
    if max_characters is not None and len(text) > max_characters:
        half = max_characters // 2
        text = f"{text[:half]}[… {len(text) - 2 * half:,} characters left out …]{text[-half:]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or _is_space(char) else _escape(char) for char in text)


def printable_lines(text: str, max_characters: int | None = MAX_CHARACTERS) -> str:
    """`printable` of each line; line breaks are kept."""
    return "\n".join(printable(line, max_characters) for line in text.split("\n"))


def shorten(text: str) -> str:
    """Shorten a value for an error message; up to 100 characters are kept."""
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}… ({len(text):,} characters)"


def _is_space(char: str) -> bool:
    return char in "\u00a0\u3000" or "\u2000" <= char <= "\u200a"


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
