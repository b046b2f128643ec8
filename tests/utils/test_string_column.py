"""A column of strings behaves like a list of them, in less memory."""

import pickle

import numpy as np

from udkd.utils.string_column import StringColumn, StringColumnBuilder

ODD = ["", "a", "n01440764/tench.JPEG", "日本", "caf\udce9.jpg", "\ud800", "two\nlines", "", "z" * 5000]


def test_everything_is_read_back_unchanged() -> None:
    column = StringColumn.of(ODD)
    assert len(column) == len(ODD)
    assert list(column) == ODD
    assert [column[n] for n in range(-len(ODD), len(ODD))] == ODD + ODD
    assert column[2:-1:2] == tuple(ODD[2:-1:2])
    assert column[np.int64(3)] == "日本"
    assert column.index("two\nlines") == 6
    assert "\ud800" in column
    assert column == ODD
    assert column == tuple(ODD)
    assert column != ODD[1:]
    assert pickle.loads(pickle.dumps(column)) == ODD
    assert list(StringColumn.of([])) == []


def test_columns_join() -> None:
    builder = StringColumnBuilder()
    builder.append("first")
    builder.extend(StringColumn.of(ODD))
    builder.extend(StringColumn.of([]))
    builder.append("last")
    assert builder[0] == "first"
    assert list(builder.finish()) == ["first", *ODD, "last"]
