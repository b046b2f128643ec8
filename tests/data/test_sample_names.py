"""Samples by the file names that another program stored."""

import numpy as np
import pytest

from udkd.data.sample_names import find_samples
from udkd.utils.errors import DataError

SOURCES = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/x y.jpg", "3.jpg", "n01/a.JPEG", "wolf/dog/9.jpg")


@pytest.mark.parametrize(
    ("name", "sample_id"),
    [
        ("cat/1.jpg", 0),
        ("./cat//1.jpg", 0),
        ("/data/train/dog/1.jpg", 2),
        ("2.jpg", 1),
        ("3.jpg", 4),
        ("images/3.jpg", 4),
        ("train/n01/images/a.JPEG", 5),
        ("dog/9.jpg", 6),
        ("wolf/9.jpg", 6),
        ("dog/2.jpg", -1),  # another folder's image, although only one is called 2.jpg
        ("n01/a.jpeg", -1),
        ("x y", -1),
        ("at/1.jpg", -1),
        ("", -1),
        ("/", -1),
    ],
)
def test_names(name: str, sample_id: int) -> None:
    np.testing.assert_array_equal(find_samples([name], SOURCES, "list"), [sample_id])


def test_an_equal_ending_comes_before_equal_folders() -> None:
    np.testing.assert_array_equal(find_samples(["a/b/1.jpg"], ("a/1.jpg", "b/1.jpg"), "list"), [1])


def test_order_is_that_of_the_names() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(SOURCES))
    np.testing.assert_array_equal(find_samples([f"/a/{SOURCES[n]}" for n in order], SOURCES, "list"), order)


@pytest.mark.parametrize(
    ("names", "sources", "text"),
    [
        (["cat/2.jpg", "1.jpg"], SOURCES, r"list: 1 of 2 names fit several samples: 1\.jpg \(cat/1\.jpg, dog/1\.jpg\)"),
        (["a/b/x/1.jpg"], ("a/1.jpg", "b/1.jpg"), "1 of 1 names fit several"),
        (["a/1.jpg"], ("a/1.jpg", "a/1.jpg"), "1 of 1 names fit several"),
    ],
)
def test_several_samples_of_one_name(names: list[str], sources: tuple[str, ...], text: str) -> None:
    with pytest.raises(DataError, match=text):
        find_samples(names, sources, "list")
