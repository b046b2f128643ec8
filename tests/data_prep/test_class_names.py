"""--class-names: the names of classes that have only numbers, and readable names of class folders."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.data_prep.helpers import contents, converted, photo, small_set, write_tar, write_tree
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.class_names import class_names_of
from udkd.data_prep.classes import imagenet_names
from udkd.data_prep.cli import app
from udkd.data_prep.listing import SampleListing, list_samples
from udkd.data_prep.sources import open_sources
from udkd.utils.errors import DataError

JPEG = photo(0, 8, 8)
WNIDS = ("n01440764", "n01443537", "n01484850")


def parquet(folder: Path, labels: list[int]) -> Path:
    folder.mkdir()
    for split in ("train", "val"):
        pq.write_table(pa.table({"image": [JPEG] * len(labels), "label": labels}), folder / f"{split}-0.parquet")
    return folder


def webdataset(folder: Path, labels: list[int]) -> Path:
    folder.mkdir()
    for split in ("train", "val"):
        files = {f"{n}.{end}": data for n, label in enumerate(labels) for end, data in (("jpg", JPEG), ("cls", b"%d" % label))}
        write_tar(folder / f"{split}-0.tar", files)
    return folder


def named(source: Path, names: Any, *, classes: str = "all") -> SampleListing:
    return list_samples(open_sources([source]), classes=classes, hold_out_percent=None, class_names=class_names_of(names))


def pairs(listing: SampleListing | DatasetFolder) -> list[tuple[str, str]]:
    return [(entry.wnid, entry.name) for entry in listing.classes]


def labels_of(listing: SampleListing) -> list[int]:
    return [sample.label for sample in listing.samples["train"]]


@pytest.mark.parametrize("make", [parquet, webdataset])
def test_numbered_classes(tmp_path: Path, make: Any) -> None:
    """Readable names leave classes and labels as they are; wnids become the classes."""
    source = make(tmp_path / "s", [0, 1, 2, 1])
    assert pairs(named(source, ["tench", "goldfish", "shark"])) == [("0000", "tench"), ("0001", "goldfish"), ("0002", "shark")]
    listing = named(source, WNIDS)
    assert pairs(listing) == [(wnid, imagenet_names()[wnid]) for wnid in WNIDS]
    assert sorted(labels_of(listing)) == [0, 1, 1, 2]
    assert [sample.source.split("/")[0] for sample in listing.samples["train"]].count(WNIDS[1]) == 2


FILES = {
    "lines": "tench\ngoldfish\n",
    "crlf": "\ufefftench\r\ngoldfish\r\n\r\n",
    "list": '["tench", "goldfish"]',
    "object": '{"1": "goldfish", "0": "tench"}',
    "tabs": "0\ttench\n1\tgoldfish",
}


@pytest.mark.parametrize("form", FILES)
def test_files_of_names(tmp_path: Path, form: str) -> None:
    file = tmp_path / "names"
    file.write_text(FILES[form], newline="")
    assert pairs(named(parquet(tmp_path / "s", [0, 1]), file)) == [("0000", "tench"), ("0001", "goldfish")]


WNID_FILES = {
    "lines": "n01440764\nn01484850\n",
    "tsv of this repository": "n01440764\ttench\nn01484850\tgreat_white_shark\n",
    "LOC_synset_mapping": "n01440764 tench\nn01484850 great white shark\n",
    "sorted object": '{"n01440764": "tench", "n01484850": "great white shark"}',
    "Keras": '{"0": ["n01440764", "tench"], "1": ["n01484850", "great_white_shark"]}',
    "values": '["n01440764", "n01484850"]',
}


@pytest.mark.parametrize("form", WNID_FILES)
def test_files_of_wnids(tmp_path: Path, form: str) -> None:
    file = tmp_path / "names"
    file.write_text(WNID_FILES[form])
    expected = [("n01440764", "tench"), ("n01484850", "great white shark")]
    assert pairs(named(parquet(tmp_path / "s", [0, 1]), file)) == expected
    if form != "Keras":  # by label only
        tree = write_tree(tmp_path / "t", small_set(1, 1, ("n01440764", "n01484850")))
        assert pairs(named(tree, file)) == expected


def test_the_list_of_imagenet_by_name_gives_wnids(tmp_path: Path) -> None:
    """Two pairs of its classes share a name; and classes without an image are named in a warning."""
    names = list(imagenet_names().values())
    listing = named(parquet(tmp_path / "s", [0, 134, 517, 999]), names)
    assert [name for _, name in pairs(listing)] == [names[n] for n in (0, 134, 517, 999)]
    assert pairs(listing)[1][1] == pairs(listing)[2][1] == "crane"
    assert all(wnid in imagenet_names() for wnid, _ in pairs(listing))
    assert "996 of the 1000 classes of class_names have no image: goldfish" in " ".join(listing.warnings)


def test_labels_are_in_the_order_of_the_wnids_and_the_user_is_told(tmp_path: Path) -> None:
    listing = named(parquet(tmp_path / "s", [0, 1, 1]), ["n01484850", "n01440764"])
    assert [wnid for wnid, _ in pairs(listing)] == ["n01440764", "n01484850"]
    assert labels_of(listing) == [1, 0, 0]
    text = "labels are in the order of the sorted classes: n01440764 is label 1 of class_names and now 0"
    assert text in listing.warnings


def test_readable_names_and_wnids_of_class_folders(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set(1, 1, ("cat", "dog")))
    assert pairs(named(tree, {"cat": "house cat", "dog": "hound", "emu": "bird"})) == [("cat", "house cat"), ("dog", "hound")]
    assert pairs(named(tree, {"cat": "n02123045", "dog": "n01440764"})) == [("n01440764", "tench"), ("n02123045", "tabby")]
    assert pairs(named(tree, {"cat": "n02123045", "dog": "n01440764"}, classes=str(listed(tmp_path, "n01440764")))) == [
        ("n01440764", "tench")
    ]
    listing = named(tree, ["dog", "cat"])
    assert pairs(listing) == [("cat", "cat"), ("dog", "dog")]
    assert "labels are in the order of the sorted classes: cat is label 1 of class_names and now 0" in listing.warnings


def listed(folder: Path, *lines: str) -> Path:
    path = folder / "list.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("labels", "names", "text"),
    [
        ([0, 1, 2], ["a", "b"], "names 2 classes and none of label 2, the source's labels are 0 to 2"),
        ([1, 2], {"0": "a", "1": "b"}, "none of label 2"),
        ([0, 1], ["a", "b", "c"], "names 3 classes and the source has 2, labels 0 to 1; expected as many names"),
        ([0, 1], {"cat": "a", "dog": "b"}, "names classes by folder, and the source's classes have only numbers"),
        ([0, 1], {"n01484850": "b", "n01440764": "a"}, "names classes by folder, .*list the names in label order"),
        (None, ["a", "b"], r"does not name 2 of the source's 2 classes: cat, dog; expected each; give JSON"),
        (None, {"cat": "a"}, "does not name 1 of the source's 2 classes: dog"),
        (None, {"0": "a", "1": "b"}, "does not name 2"),
        ([0, 1], ["a", "a"], "names two classes 'a'; expected one name per line"),
        ([0, 1], ["n01440764", "n01440764"], "names two classes 'n01440764'"),
        ([0, 1], ["n01440764", "a"], "mixes 1 wnids and 1 other names"),
        ([0, 1], ["a", ""], "holds '' in the place of a name"),
        ([0, 1], ["a", 3], "holds 3 in the place of a name"),
        ([0, 1], {"1": "a", "01": "b"}, "names a label twice"),
        ([0, 1], [], "names no class"),
    ],
)
def test_names_that_contradict_the_source_are_refused(tmp_path: Path, labels: list[int] | None, names: Any, text: str) -> None:
    tree = small_set(1, 1, ("cat", "dog"))
    source = write_tree(tmp_path / "t", tree) if labels is None else parquet(tmp_path / "s", labels)
    with pytest.raises(DataError, match=f"^class_names .*{text}") as error:
        named(source, names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\n\nb\n", "holds '' in the place of a name"),
        (b'{"0": "a", "0": "b"}', "is not JSON"),
        (b'{"0": "a"', "is not JSON"),
        (b"\xff\xfe\x00", "is not text"),
        (b"n01440764 a\nn01440764 b\n", "has two lines of 'n01440764'"),
        (b"", "holds ''"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "names").write_bytes(data)
    with pytest.raises(DataError, match=text) as error:
        class_names_of(tmp_path / "names")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="does not exist or is no file; expected a file of class names"):
        class_names_of(tmp_path / "nothing")


def test_the_command_and_its_report(tmp_path: Path) -> None:
    """Only classes and digest differ from a conversion without names; another file of names is another conversion."""
    source = parquet(tmp_path / "s", [0, 1, 1])
    (tmp_path / "names.txt").write_text("tench\ngoldfish\n")
    arguments = ["convert", source, tmp_path / "d", "--side", 16, "--formats", "none", "--workers", 1]
    names = ["--class-names", tmp_path / "names.txt"]

    def command(*options: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in (*arguments, *options)])

    assert command(*names).exit_code == 0
    assert pairs(DatasetFolder.open(tmp_path / "d")) == [("0000", "tench"), ("0001", "goldfish")]
    settings = json.loads((tmp_path / "d" / "report.json").read_bytes())["settings"]
    assert settings["--class-names"].startswith("sha256 ")
    assert command(*names).exit_code == 0, "it is already finished"
    assert "holds a finished dataset" in str(command().exception)
    plain = converted(source, tmp_path / "plain", side=16, formats=())
    same = {name: digest for name, digest in contents(tmp_path / "d").items() if not name.endswith(".json")}
    assert same.items() <= contents(plain.path).items()
