"""The synthetic dataset: deterministic bytes, a tree of the requested size, and classes in confusable pairs."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udkd.data_prep.synth import synth, synthetic_jpeg
from udkd.data_prep.synth.classes import TRAITS, synth_class
from udkd.data_prep.synth.rng import Rng
from udkd.data_prep.synth.scene import SIDE_PX, render_scene
from udkd.utils.errors import UserError


def tree(folder: Path) -> dict[str, str]:
    """Relative path and sha256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_workers_do_not_change_a_byte_and_more_images_keep_the_first(tmp_path: Path) -> None:
    synth(tmp_path / "one", classes=3, images=31, val_images=4, seed=7, workers=1)
    synth(tmp_path / "two", classes=3, images=40, val_images=4, seed=7, workers=2)
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert len(one) == 31 + 4
    assert len(two) == 40 + 4
    assert one.items() <= two.items()
    assert len(set(two.values())) == len(two), "two pictures are the same"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], "something was left behind"


def test_images_are_spread_evenly(tmp_path: Path) -> None:
    synth(tmp_path / "tree", classes=4, images=10, val_images=4, seed=0)
    counts = [len(list(folder.iterdir())) for folder in sorted((tmp_path / "tree" / "train").iterdir())]
    assert counts == [3, 3, 2, 2]
    assert {path.name for path in (tmp_path / "tree" / "val").iterdir()} == {synth_class(label).name for label in range(4)}


def test_seed_split_class_and_index_all_matter() -> None:
    names = [(1, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
    assert len({synthetic_jpeg(*name) for name in names}) == len(names)


def test_pixels_are_golden() -> None:
    """Only integers and correctly rounded operations are used, so the image is the same on every processor."""
    pixels, grey = render_scene(synth_class(2), Rng(0, 0, 2, 1))
    assert (pixels.shape, grey) == ((123, 105, 3), False)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == "a37755546be0d5640c10eb21ccbe0383b052a08068bc4eb9ba24fb3ae9834e49"


def test_sizes_aspects_and_colours_vary() -> None:
    sizes, modes = [], []
    for index in range(60, 120):
        image = Image.open(io.BytesIO(synthetic_jpeg(0, 0, index % 24, index)))
        sizes.append(image.size)
        modes.append(image.mode)
    sides = np.array(sizes)
    assert sides.min() >= SIDE_PX[0]
    assert sides.max() <= SIDE_PX[1]
    assert len(set(sizes)) > 50
    assert (sides[:, 0] > sides[:, 1]).any()
    assert (sides[:, 0] < sides[:, 1]).any()
    assert set(modes) == {"L", "RGB"}
    assert modes.count("L") < 6


def test_pairs_share_all_but_one_trait() -> None:
    for label in range(0, 400, 2):
        first, second = synth_class(label), synth_class(label + 1)
        assert (first.shape, first.texture, first.hue, first.trait) == (second.shape, second.texture, second.hue, second.trait)
        assert (first.sign, second.sign) == (-1, 1)
    assert len({(synth_class(label).shape, synth_class(label).texture) for label in range(0, 168, 2)}) == 84
    assert {synth_class(label).trait for label in range(20)} == {name for name, _, _ in TRAITS}
    assert len({synth_class(label).name for label in range(2000)}) == 2000


@pytest.mark.parametrize("trait", [name for name, _, _ in TRAITS])
def test_a_trait_shows_strongly_or_weakly(trait: str) -> None:
    """With the same random numbers, the two classes of a pair differ only in the trait, by much or little."""
    names: list[str] = [name for name, _, _ in TRAITS]
    label = 2 * names.index(trait)
    differences = []
    for index in range(10):
        first, second = (render_scene(synth_class(label + side), Rng(0, 0, 0, index))[0].astype(int) for side in (0, 1))
        differences.append(float(np.abs(first - second).mean()))
    assert max(differences) > 2.0
    assert min(differences) < 0.5 * max(differences)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "2 or more"),
        ({"images": 3}, "one or more for each"),
        ({"val_images": 0}, "one or more for each"),
        ({"seed": -1}, "seed -1"),
        ({"workers": 0}, "0 workers"),
    ],
)
def test_invalid_arguments(tmp_path: Path, change: dict[str, int], message: str) -> None:
    arguments = {"classes": 4, "images": 8, "val_images": 4, "seed": 0, "workers": 1} | change
    with pytest.raises(UserError, match=message) as caught:
        synth(tmp_path / "tree", **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_existing_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="exists already"):
            synth(folder, classes=2, images=2, val_images=2, seed=0)
    assert (tmp_path / "mine").read_text() == "precious"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    class Interrupting:
        def start(self, task: str, total: int, unit: str) -> None: ...
        def advance(self, count: int, **fields: float | str) -> None:
            raise KeyboardInterrupt

        def finish(self) -> None: ...
        def note(self, line: str) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        synth(tmp_path / "tree", classes=2, images=40, val_images=2, seed=0, observer=Interrupting())
    assert not any(tmp_path.iterdir())
