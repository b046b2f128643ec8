"""CRC-32C, a checksum cheap enough for the data loading loop: 4 us for 110 KB with hardware support; sha256 takes 61 us."""

import ctypes
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """The CRC-32C (RFC 3720, appendix B.4) of bytes or of a contiguous vector, 0 to 2**32 - 1."""
    return int(google_crc32c.value(data))


def crc32c_function() -> Any:
    """The same checksum as a C function for compiled code: uint32 (address, uint64 size), callable without the GIL.

    If google-crc32c was installed without its C library, the function is slow and takes the GIL.
    """
    try:
        from google_crc32c import _crc32c

        function: Any = ctypes.CDLL(_crc32c.__file__).crc32c_value
    except (ImportError, OSError, AttributeError):
        kind = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64)
        return kind(lambda address, size: crc32c(ctypes.string_at(address, size)))
    function.restype, function.argtypes = ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_uint64]
    return function
