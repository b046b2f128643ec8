"""Derived formats: names, descriptions, sizes, and when they are discarded."""

from pathlib import Path

import pytest

from tests.data_prep.helpers import contents, converted, small_set, write_tree
from udkd.data.derived import DERIVED, FileDigest, find_damage, is_derived, read_sealed, remove_derived, seal
from udkd.data_prep.convert import ConvertSettings
from udkd.data_prep.formats import WRITERS, DatasetSize, derive_formats, parse_formats, size_texts
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.files import write_json
from udkd.utils.progress import Silent


def test_lists_of_formats() -> None:
    assert parse_formats("auto") is None
    assert parse_formats("none") == ()
    every = tuple(WRITERS)
    assert parse_formats(" , ".join(reversed(every))) == every
    for text in ("", "shards", "none,resident", "auto,resident", "resident,"):
        with pytest.raises(ConfigError, match=r"--formats is .*expected a comma-separated list of resident"):
            parse_formats(text)


def test_size_texts() -> None:
    lines = size_texts(["resident"], DatasetSize(samples=130_000, side=512, stored=None))
    assert lines == {"resident": "resident format: 130,000 x 512 x 512 x 3 = 102.24 GB"}


def test_sealed_files_are_checked_against_their_description(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"samples-{n}.tfrecord").write_bytes(bytes([n]) * 50)
    names = [path.name for path in tmp_path.iterdir()]
    assert not is_derived(tmp_path, "dali")
    with pytest.raises(DataError, match=r"has no format dali; expected tfrecord\.json"):
        read_sealed(tmp_path, "dali", digest="d")
    seal(tmp_path, "dali", digest="d", files={name: FileDigest.of(tmp_path / name) for name in names})
    assert is_derived(tmp_path, "dali")
    assert set(read_sealed(tmp_path, "dali", digest="d")) == set(names)
    assert list(find_damage(tmp_path, "dali", digest="d")) == []
    with pytest.raises(DataError, match="dataset_digest is 'd'; expected 'other'"):
        read_sealed(tmp_path, "dali", digest="other")
    first = tmp_path / "samples-0.tfrecord"
    for data, line in ((bytes(49), "has 49 bytes; expected 50"), (b"\1" + bytes(49), "does not match its checksum")):
        first.write_bytes(data)
        assert [line in problem for problem in find_damage(tmp_path, "dali", digest="d")] == [True]
    first.write_bytes(bytes(50))
    (tmp_path / "samples-2.tfrecord").write_bytes(b"")
    assert "samples-2.tfrecord belongs to no sample" in next(find_damage(tmp_path, "dali", digest="d"))
    description = tmp_path / DERIVED["dali"].description
    intact = description.read_bytes()
    for at in range(len(intact)):
        description.write_bytes(intact[:at] + bytes([intact[at] ^ 4]) + intact[at + 1 :])
        assert list(find_damage(tmp_path, "dali", digest="d")), at
    remove_derived(tmp_path, "dali")
    assert list(tmp_path.iterdir()) == []


def test_formats_of_an_earlier_attempt_do_not_stay(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set(train=3, val=1))
    folder = converted(tree, tmp_path / "d", formats=())
    intact = contents(folder.path)
    for name in WRITERS:
        derive_formats(folder, [name], workers=1, observer=Silent())
    assert folder.formats == ("shards", *WRITERS)
    write_json(
        folder.path / "unfinished.json", ConvertSettings(side=64).output_options()
    )  # as after a kill just before the end
    converted(tree, folder.path, formats=())
    assert contents(folder.path) == intact
