"""JSON with a checksum inside: every changed bit is detected, and older JSON without one is read."""

import json
from collections.abc import Callable

import pytest

from udkd.utils.json_checksum import CHECKSUM, dump_checked, dump_checked_line, has_checksum, load_checked, load_checked_line

VALUES = {"b": [1, 2.5e10, -0.0, None, True], "a": {"path": "/ä\n\udcff", "x": "1E5"}, "c": 1e-07}
FORMS = [(dump_checked, load_checked), (dump_checked_line, load_checked_line)]


@pytest.mark.parametrize(("write", "read"), FORMS)
def test_values_are_read_back(write: Callable[..., bytes], read: Callable[..., dict[str, object]]) -> None:
    data = write(VALUES)
    assert read(data) == VALUES
    assert has_checksum(data)
    assert json.loads(data).keys() == VALUES.keys() | {CHECKSUM}, "any JSON reader can read it"


def test_a_line_is_one_line_and_keeps_its_order() -> None:
    line = dump_checked_line(VALUES)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert list(json.loads(line)) == ["b", "a", "c", CHECKSUM]


@pytest.mark.parametrize(("write", "read"), FORMS)
def test_every_flipped_bit_is_found(write: Callable[..., bytes], read: Callable[..., dict[str, object]]) -> None:
    data = write(VALUES)
    for index in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            try:
                values = read(bytes(changed))
            except ValueError:
                continue
            # Only a change of the checksum's own key can go unnoticed: it becomes an unknown key.
            assert values.keys() - VALUES.keys(), f"bit {bit} of byte {index}"


@pytest.mark.parametrize(("write", "read"), FORMS)
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b" ", lambda d: b"", lambda d: d.replace(b"E5", b"e5")])
def test_other_changes_are_found(
    write: Callable[..., bytes], read: Callable[..., dict[str, object]], change: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(change(write(VALUES)))


def test_old_json_is_read_unchanged() -> None:
    assert load_checked(b'{"a":1}') == load_checked_line(b'{"a": 1}\n') == {"a": 1}
    assert not has_checksum(b'{"a": 1}')
    deep = b'{"checksum": "", "a": ' + b"[" * 900 + b"]" * 900 + b"}"
    for data in (b"[]", b"3", b"{", b"\xff", b'{"a": NaN}', deep):
        with pytest.raises(ValueError, match=r"."):
            load_checked(data)


def test_non_finite_numbers_are_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_checked({"a": float("nan")})
