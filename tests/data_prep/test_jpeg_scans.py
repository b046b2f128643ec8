"""JPEGs that are incomplete by their headers are not kept unchanged."""

import re

import numpy as np
import pytest
import simplejpeg

from tests.data_prep.helpers import encoded, photo, picture
from udkd.data_prep.image import BadImage, PixelSettings, prepare
from udkd.data_prep.jpeg_scans import Scans, read_scans

PAD = PixelSettings(side=128, fit="pad", quality=95, subsampling="4:4:4")
INTACT = Scans(self_contained=True, complete=True)
SCAN = re.compile(rb"\xff\xda")  # no such bytes are in entropy-coded data


def without_table(data: bytes, name: int) -> bytes:
    """The file without one Huffman table, each of which Pillow writes in a separate segment."""
    match = re.search(rb"\xff\xc4(..)" + re.escape(bytes([name])), data, re.DOTALL)
    assert match is not None
    return data[: match.start()] + data[match.start() + 2 + int.from_bytes(match[1]) :]


def cut_before_scan(data: bytes, number: int) -> bytes:
    """A progressive file's first scans."""
    cut = [match.start() for match in SCAN.finditer(data)][number]
    while (before := data.rfind(b"\xff\xc4", 0, cut)) + 2 + int.from_bytes(data[before + 2 : before + 4]) == cut:
        cut = before  # the tables of the scan belong to it
    return data[:cut]


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_intact_files_are_complete(options: dict[str, object]) -> None:
    data = photo("p", 90, 70, **options)
    assert read_scans(data) == INTACT
    assert prepare(data, PAD).jpeg is data
    assert read_scans(data + b"garbage" + data[:40]) == INTACT, "data after the end marker is ignored"


@pytest.mark.parametrize("name", [0x00, 0x10, 0x01, 0x11])
def test_a_file_without_a_table_is_encoded_again(name: int) -> None:
    """Even one of four: a decoder that keeps tables between files would use those of another image."""
    data = without_table(photo("p", 90, 70), name)
    assert read_scans(data) == Scans(self_contained=False, complete=True)
    prepared = prepare(data, PAD)
    assert prepared.note == "its Huffman tables written"
    assert read_scans(prepared.jpeg) == INTACT
    apart = simplejpeg.decode_jpeg(prepared.jpeg).astype(int) - simplejpeg.decode_jpeg(data)
    assert np.abs(apart).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("repair", [False, True])
def test_a_progressive_file_without_its_last_scans_is_bad(mode: str, repair: bool) -> None:
    """With or without an end marker: the image is coarser, and versions of libjpeg fill it differently."""
    data = encoded(picture("p", 90, 70, mode), progressive=True)
    scans = len(SCAN.findall(data))
    assert scans == (10 if mode == "RGB" else 6), "libjpeg's script"
    settings = PixelSettings(side=128, fit="pad", quality=95, subsampling="4:4:4", repair=repair)
    for number in range(1, scans):
        short = cut_before_scan(data, number)
        assert not read_scans(short).complete
        for bytes_ in (short, short + b"\xff\xd9"):
            with pytest.raises(BadImage, match="damaged JPEG"):
                prepare(bytes_, settings)


def test_a_component_without_a_scan() -> None:
    """With one scan per component, a decoder shows no colour without the last ones, and gives no warning."""
    data = photo("p", 24, 40)
    (scan,) = [match.start() for match in SCAN.finditer(data)]
    one_component = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    assert read_scans(data[:scan] + one_component + bytes(8) + b"\xff\xd9") == Scans(self_contained=True, complete=False)
