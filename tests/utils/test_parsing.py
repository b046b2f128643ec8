"""Parsing untrusted text: a value or a ValueError."""

import pytest

from udkd.utils.parsing import parse_json, parse_toml
from udkd.utils.printable import printable


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "", "{", "NaN", "[1, -Infinity]", '{"a": 1, "a": 2}', "9" * 5_000, b"\xff", b"\x00\x00"],
    ids=lambda text: repr(text[:8]),
)
def test_invalid_json(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, ".".join("a" * 3) + " = ", "a = 1\na = 2"], ids=lambda text: repr(text[:8])
)
def test_invalid_toml(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_toml(text)


def test_values() -> None:
    assert parse_json('{"a": [1, 2.5, null, "ä"]}') == {"a": [1, 2.5, None, "ä"]}
    assert parse_toml("a = [1, 2.5]") == {"a": [1, 2.5]}


def test_control_sequences_are_escaped() -> None:
    assert printable("a\x1b[31mb\r\n\t\x07\x9b\u202ec\u2066\u2028\ud800\U000e0001") == (
        "a\\x1b[31mb\\x0d\\x0a\\x09\\x07\\x9b\\u202ec\\u2066\\u2028\\ud800\\U000e0001"
    )


def test_letters_of_all_kinds_stay() -> None:
    text = "größer 鳥 птица 🐝 [fit] :bee: \u00a0\u3000 \\x1b"
    assert printable(text) == text


def test_a_long_text_keeps_its_ends() -> None:
    shown = printable("a" * 2_000_000 + "end", max_characters=100)
    assert len(shown) < 200
    assert shown.startswith("aaaa")
    assert shown.endswith("aend")
    assert "1,999,903 characters left out" in shown
    assert len(printable("a" * 5_000, max_characters=None)) == 5_000
