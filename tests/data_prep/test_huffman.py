"""The strict reading of entropy-coded data, against libjpeg's own."""

import numpy as np
import pytest
import simplejpeg

from data_prep.huffman import DamagedScan, check_baseline
from data_prep.image import BadImage, PixelSettings, prepare
from tests.data_prep.helpers import encoded, photo, picture
from tests.data_prep.test_odd_images import ARITHMETIC, MIXED, THIRD, patched

OPTIONS: list[dict[str, object]] = [
    {},
    {"subsampling": 0},
    {"subsampling": 1},
    {"restart_marker_blocks": 4},
    {"quality": 30},
    {"optimize": True},
]
PAD = PixelSettings(side=256, fit="pad", quality=95, subsampling="4:4:4")


def damaged(data: bytes) -> bool:
    try:
        check_baseline(data)
    except DamagedScan:
        return True
    return False


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_whole_files_pass(options: dict[str, object]) -> None:
    for height, width in ((1, 1), (8, 8), (40, 56), (63, 17), (160, 121)):
        check_baseline(photo("whole", height, width, **options))
    check_baseline(encoded(picture("grey", mode="L"), **options))


@pytest.mark.parametrize("kind", ["440", "411", "444"])
def test_whole_files_of_other_subsamplings_pass(kind: str) -> None:
    check_baseline(simplejpeg.encode_jpeg(np.asarray(picture(kind)), colorsubsampling=kind))


def test_it_hears_whatever_libjpeg_hears() -> None:
    rng = np.random.default_rng(0)
    seen = 0
    for options in OPTIONS:
        data = photo("flip", 64, 48, **options)
        start = data.index(b"\xff\xda") + 14
        for at in rng.integers(start, len(data) - 2, 60).tolist():
            changed = patched(data, at, bytes([data[at] ^ 1 << int(rng.integers(8))]))
            try:
                simplejpeg.decode_jpeg(changed, strict=True)
            except ValueError:
                seen += 1
                assert damaged(changed), (options, at)
    assert seen > 60
    for cut in range(20, len(data) - 2, 37):
        assert damaged(data[:cut])


@pytest.mark.parametrize("data", [THIRD, MIXED], ids=["3 x 1", "mixed"])
def test_subsamplings_that_only_pillow_decodes_are_strict_too(data: bytes) -> None:
    assert prepare(data, PAD).note == "unusual subsampling to a common one"
    start = data.index(b"\xff\xda") + 14
    reasons = []
    for at in range(start, len(data) - 2):
        try:
            prepare(patched(data, at, bytes([data[at] ^ 16])), PAD)
        except BadImage as error:
            reasons.append(str(error))
    assert len(reasons) > (len(data) - start) / 8  # the others are other pixels, with nothing wrong about them
    assert all(reason.startswith(("damaged JPEG (", "cannot be decoded (")) for reason in reasons)
    with pytest.raises(BadImage):
        prepare(data[:-20], PAD)


def test_what_it_cannot_read_is_refused() -> None:
    for data in (ARITHMETIC, photo("p", progressive=True)):
        with pytest.raises(DamagedScan, match="only baseline files"):
            check_baseline(data)
