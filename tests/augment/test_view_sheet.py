"""The picture of views: its pixels are those of training, its bytes are always the same, and its texts fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.factories import make_dataset
from udkd.augment.apply import jittered_floats, view_pixels
from udkd.augment.view_sheet import GAP, MARGIN, MAX_CELLS, SheetSettings, settings_text, shown_px, thumbnail_px
from udkd.augment.view_sheet import write_view_sheet as write
from udkd.augment.view_table import EpochViews
from udkd.augment.views import ViewSpec
from udkd.data.dataset import DatasetFolder
from udkd.utils.errors import ConfigError, DataError

DATASET_IMAGES = {"per_class": 4, "val_per_class": 2}
STRONG = ViewSpec(size_px=32, policy="rand_augment", erase_prob=0.5, erase_fill="noise", mixup=0.8, cutmix=1.0)
UNMIXED = replace(STRONG, mixup=0.0, cutmix=0.0)
JITTERED = ViewSpec(size_px=32, brightness=0.4, contrast=0.4, saturation=0.4)


def training_pixels(dataset: DatasetFolder, settings: SheetSettings, view: int, *, mixed: bool = True) -> np.ndarray:
    """All views of the training images as a step makes them, in one batch: uint8 [N, O, O, 3]."""
    split, spec = dataset.train, settings.spec
    ids = torch.from_numpy(split.ids)
    canvas = torch.from_numpy(np.stack([split.pixels(int(n)) for n in ids]))
    table = EpochViews(spec, settings.seed, split, torch.device("cpu")).table(view).gather(ids)
    table = table if mixed else replace(table, mate=None)
    pixels = view_pixels(canvas, table, spec, spec.size_px, settings.interpolation)
    return np.rint(jittered_floats(pixels, table, jitter=spec.jitters_floats).numpy() * 255).astype(np.uint8)


def find(picture: np.ndarray, part: np.ndarray, left: int) -> list[int]:
    """The tops at which a part is in the picture, at `left`."""
    height, width = part.shape[:2]
    return [
        top
        for top in range(len(picture) - height + 1)
        if np.array_equal(picture[top, left : left + width], part[0])
        and np.array_equal(picture[top : top + height, left : left + width], part)
    ]


@pytest.mark.parametrize("spec", [STRONG, JITTERED, UNMIXED], ids=["mixed", "jittered", "strong"])
def test_the_pixels_are_those_of_training(tmp_path: Path, dataset: DatasetFolder, spec: ViewSpec) -> None:
    settings = SheetSettings(spec=spec, seed=3, interpolation="bicubic", title="smoke")
    shown = write(dataset, tmp_path / "s.png", settings, ids=[5, 14], views=[4, 1])
    with Image.open(tmp_path / "s.png") as image:
        picture = np.asarray(image)
    side, times = shown_px(spec), shown_px(spec) // spec.size_px
    assert side % spec.size_px == 0
    beside = picture.shape[1] - 2 * MARGIN - side - 2 * (GAP + side)
    assert (beside > 0) == spec.mixes
    tops = []
    for column, view in enumerate((4, 1)):
        after = training_pixels(dataset, settings, view)
        left = MARGIN + side + GAP + column * (GAP + side + beside // 2)
        for row, sample_id in enumerate((5, 14)):
            enlarged = after[sample_id].repeat(times, 0).repeat(times, 1)
            (top,) = find(picture, enlarged, left)
            tops.append((row, top))
            described = shown[sample_id][column]
            assert described.id == sample_id
            if described.mixed is not None:
                before = training_pixels(dataset, settings, view, mixed=False)
                for own in (sample_id, described.mixed.partner):
                    small = Image.fromarray(before[own]).resize((thumbnail_px(spec),) * 2, Image.Resampling.LANCZOS)
                    assert find(picture[top : top + side], np.asarray(small), left + side + 6), "one of the two is beside it"
    assert len(set(tops)) == 2, "one top for each row"


def test_equal_bytes_and_no_nonsense_beside_it(tmp_path: Path, dataset: DatasetFolder) -> None:
    settings = SheetSettings(spec=STRONG, seed=0)
    first = write(dataset, tmp_path / "a.png", settings, views=[0, 1])
    again = write(dataset, tmp_path / "b.PNG", settings, ids=list(first), views=[0, 1])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()
    assert first == again
    labels = dataset.train.labels[list(first)]
    assert len(first) == 6
    assert set(labels) == {0, 1, 2, 3}, "spread over the classes"
    write(dataset, tmp_path / "a.png", replace(settings, seed=1), views=[0, 1])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.PNG").read_bytes(), "an earlier picture is replaced"
    assert write(dataset, tmp_path / "v.png", settings, split="val", ids=[0], views=[7])[0][0].id == 0
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["a.png", "b.PNG", "v.png"]


@pytest.mark.parametrize(("size_px", "side"), [(1, 208), (7, 210), (32, 192), (138, 276), (139, 139), (256, 256), (400, 256)])
def test_views_of_any_size(tmp_path: Path, dataset: DatasetFolder, size_px: int, side: int) -> None:
    spec = ViewSpec(size_px=size_px, mixup=1.0)
    assert shown_px(spec) == side
    write(dataset, tmp_path / "s.png", SheetSettings(spec=spec, seed=0), ids=[1], views=[0])
    with Image.open(tmp_path / "s.png") as image:
        width, height = image.size
    assert width >= 640
    assert height > side + 100


def test_the_settings_in_words() -> None:
    spec = ViewSpec(scheme="random", size_px=48, resize_px=56, policy="rand_augment", erase_prob=0.25, fill=(1, 2, 3))
    texts = settings_text(SheetSettings(spec=spec, seed=7, interpolation="bicubic"))
    assert texts == [
        *("random 48 px", "resize_px 56", "policy rand_augment", "fill 1 2 3", "erase_prob 0.25", "bicubic", "seed 7")
    ]


def test_mistakes_are_one_line(tmp_path: Path, dataset: DatasetFolder) -> None:
    settings = SheetSettings(spec=JITTERED, seed=0)

    def refused(kind: type[Exception], text: str, out: Path = tmp_path / "s.png", **changed: object) -> None:
        with pytest.raises(kind, match=text) as error:
            write(dataset, out, settings, **changed)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        assert not (tmp_path / "s.png").exists()

    refused(ConfigError, r"ends in \.png", tmp_path / "s.jpg")
    refused(DataError, "is not a folder; expected one to write s.png to", tmp_path / "no" / "s.png")
    (tmp_path / "text.png").write_text("mine")
    refused(DataError, "exists and is not a PNG", tmp_path / "text.png")
    assert (tmp_path / "text.png").read_text() == "mine"
    refused(DataError, "has no train sample 16; expected an id from 0 to 15", ids=[3, 16])
    refused(DataError, "has no split", split="test")
    refused(ConfigError, f"2 samples in 121 views are 242 cells; expected at most {MAX_CELLS}", ids=[0, 1], views=range(121))


def test_excluded_samples(tmp_path: Path) -> None:
    """They are not shown, and nothing is mixed with them."""
    whole = make_dataset(tmp_path, per_class=2, val_per_class=1)
    excluded = whole.train.excluded.copy()
    excluded[[1, 4]] = True
    train = replace(whole.train, excluded=excluded)
    dataset = replace(whole, splits={"train": train})
    settings = SheetSettings(spec=ViewSpec(size_px=32, cutmix=1.0), seed=0)
    with pytest.raises(DataError, match=r"train sample 4 .* is excluded"):
        write(dataset, tmp_path / "s.png", settings, ids=[4])
    shown = write(dataset, tmp_path / "s.png", settings, views=range(4))
    partners = {view.mixed.partner for views in shown.values() for view in views if view.mixed is not None}
    assert not partners & {1, 4}
    assert set(shown) == {0, 2, 3, 5, 6, 7}
