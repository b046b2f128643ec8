"""The DALI backend: reads stored bytes by id and decodes them in a DALI pipeline.

On the CPU the pixels equal Pillow's bit for bit. They are copied onto canvases here, as DALI's padding takes as long as its
decoding (1.0 ms for a 500 x 375 px image; the copy 0.1 ms). On a GPU nvJPEG decodes, into another pixel class, and DALI pads;
the canvases become torch tensors without a copy.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.data.batch import Batch
from udkd.data.canvas import canvas_bytes, paste
from udkd.data.dali_package import import_dali
from udkd.data.dataset import Split
from udkd.data.loading.buffers import BufferPool
from udkd.data.loading.host_loader import AHEAD_BYTES, samples_per_part
from udkd.data.loading.threads import Work, chunks, num_threads, run_in_threads
from udkd.utils.errors import ConfigError, DataError

_READ_AHEAD_BYTES = 64 << 20
"""Limit on stored bytes that are read ahead of DALI; two batches are allowed in any case."""
_MIN_READS_PER_PART = 16
_SMALL_BYTES = 16 << 10
"""If no sample is larger, a batch is one zero-padded array: DALI takes 5 us for each array that it is given."""
_MAX_PREFETCHED = 3
_STAGE = "dali backend"

JPEGs = list[NDArray[np.uint8]] | NDArray[np.uint8]
"""Stored bytes of b samples: b vectors, or uint8 [b, largest size] padded with zeros, which decoders ignore."""


@final
class DaliBackend:
    """Feeds DALI with samples by id: DALI's own readers have no random access, and check neither order nor checksums.

    workers: DALI's threads, with half as many for reading; 0 means one per core. hw_decoder_load, for a GPU: 1 prefers its JPEG
    engine; 0 decodes with CUDA, the same on every GPU. With values in between, a sample's pixels would depend on its batch.
    Raises ConfigError if DALI is not installed.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0, hw_decoder_load: Literal[0, 1] = 0) -> None:
        self.num_samples = split.num_samples
        self._dali = import_dali()
        self._split = split
        self._device = device
        self._labels = torch.from_numpy(split.labels.astype(np.int64))
        self._workers = num_threads(workers)
        self._hw_decoder_load = hw_decoder_load
        self._reads_per_part = max(_MIN_READS_PER_PART, samples_per_part(split.size))
        self._largest = int(split.size.max(initial=0))
        self._together = device.type == "cpu" and self._largest <= _SMALL_BYTES
        self._idle: _Pipeline | None = None

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See udkd.data.batch.Backend."""
        order = self._split.order(order)
        return self._epoch(chunks(order, batch_size), batch_size)

    def close(self) -> None:
        """Release DALI's threads and memory."""
        self._idle = None

    def describe(self) -> str:
        """The pixel class: on a GPU the pixels differ from the CPU's, and possibly from those of another GPU."""
        if self._device.type == "cpu":
            return "libjpeg islow, fancy upsampling"
        gpu = torch.cuda.get_device_name(self._device)
        return f"nvJPEG, fancy upsampling, hw_decoder_load {self._hw_decoder_load}, DALI {self._dali.__version__}, {gpu}"

    def _epoch(self, batches: Iterator[NDArray[np.int64]], batch_size: int) -> Iterator[Batch]:
        pipeline, self._idle = self._idle, None
        if pipeline is None or pipeline.batch_size != batch_size:
            pipeline = self._start_pipeline(batch_size)
        readers = -(-self._workers // 2)
        reads = run_in_threads(self._reads(batches), workers=readers, ahead_bytes=_READ_AHEAD_BYTES, stage=_STAGE)
        try:
            for ids, canvas in pipeline.run((ids, self._joined(parts)) for ids, parts in reads):
                yield self._batch(ids, canvas)
        except RuntimeError as error:
            raise self._explain(pipeline.next_ids, error) from None
        finally:
            reads.close()  # type: ignore[attr-defined]
            if pipeline.reset():
                self._idle = pipeline

    def _start_pipeline(self, batch_size: int) -> "_Pipeline":
        try:
            return _Pipeline(self._dali, self._split.side, self._device, batch_size, self._workers, self._hw_decoder_load)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"DALI {self._dali.__version__} does not start on {self._device} ({reason}); "
                "expected a GPU and a driver that it knows; use another --backend"
            ) from None

    def _reads(self, batches: Iterator[NDArray[np.int64]]) -> Iterator[Work[NDArray[np.int64], JPEGs]]:
        for ids in batches:
            step = self._reads_per_part
            parts = [partial(self._read, ids[n : n + step]) for n in range(0, len(ids), step)]
            yield Work(item=ids, parts=parts, size_bytes=int(self._split.size[ids].sum()))

    def _read(self, ids: NDArray[np.int64]) -> JPEGs:
        jpegs = self._split.read_many(ids)
        if not self._together:
            return [np.frombuffer(jpeg, dtype=np.uint8) for jpeg in jpegs]
        filled = b"".join(jpeg.ljust(self._largest, b"\0") for jpeg in jpegs)
        return np.frombuffer(filled, dtype=np.uint8).reshape(len(ids), self._largest)

    def _joined(self, parts: list[JPEGs]) -> JPEGs:
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if self._together else [jpeg for part in parts for jpeg in part]

    def _batch(self, ids: NDArray[np.int64], canvas: torch.Tensor) -> Batch:
        ids_B = torch.from_numpy(ids)
        labels_B = self._labels[ids_B]
        if self._device.type == "cuda":
            ids_B = ids_B.pin_memory().to(self._device, non_blocking=True)
            labels_B = labels_B.pin_memory().to(self._device, non_blocking=True)
        return Batch(ids=ids_B, canvas=canvas, labels=labels_B)

    def _explain(self, ids: NDArray[np.int64], error: RuntimeError) -> DataError:
        """The error for a failed batch. DALI does not name the damaged sample: the reference decode finds it."""
        try:
            for sample_id in ids.tolist():
                self._split.pixels(sample_id)
        except DataError as sample_error:
            return sample_error
        names = f"{self._split.describe(int(ids[0]))} and the {len(ids) - 1} after it" if len(ids) else "a batch"
        reason = " ".join(str(error).split())[:300]
        return DataError(f"DALI failed on {names} ({reason}); expected a decode, as Pillow's succeeds; use another --backend")


class _Pipeline:
    """A DALI pipeline for batches of up to `batch_size`. `run` decodes an epoch; `reset` prepares for the next."""

    def __init__(
        self, dali: Any, side: int, device: torch.device, batch_size: int, workers: int, hw_decoder_load: Literal[0, 1]
    ) -> None:
        self.batch_size = batch_size
        self._device = device
        self._side = side
        self._memory = BufferPool(AHEAD_BYTES)
        self._source: Iterator[tuple[NDArray[np.int64], JPEGs]] = iter(())
        self._in_flight: deque[tuple[NDArray[np.int64], JPEGs]] = deque()  # DALI reads from this memory
        self._failure: BaseException | None = None
        self._broken = False
        on_gpu = device.type == "cuda"
        index = (device.index if device.index is not None else torch.cuda.current_device()) if on_gpu else None
        depth = max(1, min(_MAX_PREFETCHED, AHEAD_BYTES // max(1, canvas_bytes(batch_size, side))))
        # The dynamic executor gives up ownership of its outputs: they need not be copied out of a buffer that it reuses.
        self._pipe = dali.Pipeline(
            batch_size=batch_size, num_threads=workers, device_id=index, prefetch_queue_depth=depth, exec_dynamic=True
        )
        decoder: dict[str, Any] = {"device": "cpu"}
        if on_gpu:
            decoder = {"device": "mixed", "hw_decoder_load": float(hw_decoder_load), "jpeg_fancy_upsampling": True}
        with self._pipe:
            jpegs = dali.fn.external_source(source=self._feed, dtype=dali.types.UINT8, ndim=1, batch=True, no_copy=True)
            images = dali.fn.decoders.image(jpegs, output_type=dali.types.RGB, adjust_orientation=False, **decoder)
            self._pipe.set_outputs(dali.fn.pad(images, axes=(0, 1), shape=(side, side), fill_value=0) if on_gpu else images)
        self._pipe.build()

    @property
    def next_ids(self) -> NDArray[np.int64]:
        """The ids of the next batch that DALI will deliver."""
        return self._in_flight[0][0] if self._in_flight else np.zeros(0, np.int64)

    def run(self, batches: Iterator[tuple[NDArray[np.int64], JPEGs]]) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Decode (ids, JPEGs) to (ids, canvases). An exception of `batches` is raised in its turn; DALI's is a RuntimeError."""
        self._source = batches
        try:
            self._pipe.schedule_run()  # the first call fills DALI's queue
            while (canvas := self._next()) is not None:
                ids, _held = self._in_flight.popleft()  # DALI may read these bytes until the next batch is delivered
                self._pipe.schedule_run()
                yield ids, canvas
                del canvas
        except RuntimeError:
            self._broken = True
            raise
        if self._failure is not None:
            raise self._failure

    def reset(self) -> bool:
        """Drop scheduled batches so that `run` can start again. False if the pipeline has failed and cannot be reused."""
        self._source = iter(())
        self._failure = None
        if not self._broken:
            try:
                self._pipe.schedule_run()  # DALI must have seen the end of its source before a reset
                while self._next() is not None:
                    pass
                self._pipe.reset()
            except RuntimeError:
                self._broken = True
        self._in_flight.clear()
        return not self._broken

    def _feed(self) -> JPEGs:
        """DALI's source: the next batch. It ends at an exception, which `run` raises after delivering all earlier batches."""
        try:
            ids, jpegs = next(self._source)
        except StopIteration:
            raise
        except BaseException as error:
            self._failure = error
            raise StopIteration from None
        self._in_flight.append((ids, jpegs))
        return jpegs

    def _next(self) -> torch.Tensor | None:
        """The next canvases, uint8 [B, S, S, 3], owned by the caller; None after the last batch."""
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        with suppress(StopIteration):
            (output,) = self._pipe.share_outputs(cuda_stream=stream)
            try:
                full = output.is_dense_tensor() and output.shape()[0] == (self._side, self._side, 3)
                return torch.utils.dlpack.from_dlpack(output.as_tensor()) if full else self._on_canvases(output)
            finally:
                self._pipe.release_outputs()
        return None

    def _on_canvases(self, images: Any) -> torch.Tensor:
        """Copy decoded images of different sizes onto canvases."""
        canvas = self._memory.take(len(images), self._side, self._side, 3)
        for row, image in zip(canvas, map(np.asarray, images), strict=True):
            paste(image, row)
        return torch.from_numpy(canvas)
