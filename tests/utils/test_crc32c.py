"""CRC-32C against its standard and against a loop over bits that is written out here."""

import numpy as np
import pytest

from udkd.utils.crc32c import crc32c

POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected


def bit_by_bit(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (POLYNOMIAL if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_the_vectors_of_rfc_3720(data: bytes, expected: int) -> None:
    assert crc32c(data) == bit_by_bit(data) == expected


def test_bytes_and_stretches_of_vectors() -> None:
    vector = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8)
    for start, stop in ((0, 3000), (1, 2), (7, 2050)):
        assert crc32c(vector[start:stop]) == crc32c(vector[start:stop].tobytes()) == bit_by_bit(vector[start:stop].tobytes())
