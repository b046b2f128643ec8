"""FFCV's Loader on our samples.beton, decoding exactly and directly into the canvas: the cost without our layer."""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ffcv._libffcv
import numpy as np
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from ffcv.transforms import ToTensor

from udkd.data.beton import FILE_NAME
from udkd.data.dataset import Split


class _Canvas(SimpleRGBImageDecoder):  # type: ignore[misc]
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def declare_state_and_memory(self, previous: State) -> tuple[State, AllocationQuery]:
        shape = (self.side, self.side, 3)
        dtype = np.dtype("u1")
        return replace(previous, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        library = ctypes.CDLL(ffcv._libffcv.__file__)
        begin: Any = library.tjInitDecompress
        begin.restype, begin.argtypes = ctypes.c_void_p, []
        decompress: Any = library.tjDecompress2
        decompress.restype = ctypes.c_int32
        decompress.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, *[ctypes.c_int32] * 5]
        end: Any = library.tjDestroy
        end.restype, end.argtypes = ctypes.c_int32, [ctypes.c_void_p]
        read, each, pitch = self.memory_read, Compiler.get_iterator(), 3 * self.side

        def decode(ids: Any, canvas: Any, metadata: Any, storage: Any) -> Any:
            for n in each(len(ids)):
                field = metadata[ids[n]]
                data = read(field["data_ptr"], storage)
                height, width = np.int64(field["height"]), np.int64(field["width"])
                canvas[n, :height, width:] = 0
                canvas[n, height:] = 0
                handle = begin()
                decompress(handle, data.ctypes.data, data.size, canvas[n].ctypes.data, width, pitch, height, 0, 0)
                end(handle)
            return canvas[: len(ids)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def image_loop(split: Split, order: np.ndarray, batch_size: int, threads: int) -> Callable[[int], int]:
    """A function that loads `order` with FFCV's Loader, whatever the requested count, and returns the number of canvases.

    One epoch per call: FFCV allocates new memory for each epoch, which costs 0.3 ms per 512 px canvas at 300 images.
    """
    torch_threads = torch.get_num_threads()
    loader = Loader(
        str(split.path / FILE_NAME),
        batch_size,
        num_workers=threads,
        order=OrderOption.SEQUENTIAL,
        indices=np.searchsorted(split.ids, order).astype(np.uint64),  # FFCV's file does not contain excluded samples
        drop_last=False,
        pipelines={"image": [_Canvas(split.side), ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    torch.set_num_threads(torch_threads)

    def run(count: int) -> int:
        done = sum(len(canvas) for canvas, _ in loader)
        torch.set_num_threads(torch_threads)
        return done

    return run
