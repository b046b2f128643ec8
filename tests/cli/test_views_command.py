"""udkd views, as a user runs it."""

import functools
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import inside, refused
from tests.factories import make_dataset
from udkd.data.dataset import DatasetFolder

MIXED = ("--set", "views.jitter=uint8", "--set", "views.cutmix=1.0", "--set", "teacher.views=2")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return make_dataset(tmp_path_factory.mktemp("data"), per_class=4, val_per_class=1)


def test_a_picture_and_its_numbers(tmp_path: Path, dataset: DatasetFolder, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "views.png"
    call = functools.partial(inside, capsys, "views", "smoke", "--data", dataset.path, "--out", out)
    assert call() == (0, f"{out}: 6 samples in 6 views\n", "")
    with Image.open(out) as image:
        assert image.format == "PNG"
    first = out.read_bytes()
    code, text, err = call("--ids", "5, 2", "--views", "3", "--split", "train", "--json", *MIXED)
    assert (code, err) == (0, "")
    assert out.read_bytes() != first
    values = json.loads(text)
    assert (values["picture"], values["size_px"]) == (str(out), 32)
    assert [(each["id"], each["class"], each["source"]) for each in values["samples"]] == [
        (5, "bee", "bee/001.jpg"),
        (2, "ant", "ant/002.jpg"),
    ]
    for sample in values["samples"]:
        (view,) = sample["views"]
        assert view["view"] == 3
        assert sorted(op["op"] for op in view["ops"]) == ["brightness", "contrast", "saturation"]
        height, width = view["mixed"]["box"][2:]
        assert view["mixed"]["share"] == pytest.approx(1 - height * width / 32**2)
        assert view["mixed"]["partner"] in dataset.train.ids


def test_mistakes_are_one_line(tmp_path: Path, dataset: DatasetFolder, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*more: object, data: Path = dataset.path, out: str = "v.png") -> object:
        return inside(capsys, "views", "smoke", "--data", data, "--out", tmp_path / out, *more)

    refused(call("--ids", "3,x"), "--ids '3,x'; expected whole numbers from 0, such as 0,1,2")
    refused(call("--ids", ""), "--ids ''; expected whole numbers")
    refused(call("--views", "-1"), "--views '-1'; expected whole numbers")
    refused(call("--views", "1000000"), "expected numbers below 1,000,000")
    refused(call("--views", "9" * 5_000), "expected numbers below 1,000,000")
    refused(call("--ids", "16"), "has no train sample 16; expected an id from 0 to 15")
    refused(call("--ids", "4", "--split", "val"), "has no val sample 4; expected an id from 0 to 3")
    refused(call("--views", ",".join(map(str, range(50)))), "6 samples in 50 views are 300 cells; expected at most 240")
    refused(call(data=tmp_path), "holds no dataset.json")
    refused(call(out="v.jpg"), "expected a name that ends in .png")
    refused(call(out="no/v.png"), "is not a folder; expected one to write v.png to")
    refused(call("--set", "views.policy=fancy"), 'views.policy is "fancy"')
    refused(inside(capsys, "views", "smoek", "--data", dataset.path, "--out", tmp_path / "v.png"), "recipe 'smoek' not found")
    assert not list(tmp_path.iterdir())
