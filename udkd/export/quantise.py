"""An ONNX model with 8-bit weights and activations, by ONNX Runtime's static quantisation."""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from udkd.export.graphs import INPUT
from udkd.utils.errors import RunError

_COPIES = 4  # of the model in temporary files: original, prepared, with calibration outputs, quantised


class _Reader:
    """Calibration batches in the interface of ONNX Runtime's CalibrationDataReader."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: np.ascontiguousarray(batch.numpy())}


def quantise(data: bytes, calibration: Sequence[Tensor]) -> bytes:
    """An ONNX model quantised to 8 bits: weights per channel, activations by the extremes of the calibration batches.

    Raises RunError where the folder for temporary files cannot be used or has no room.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime logs its advice through the root logger
    with _workspace(_COPIES * len(data)) as folder:
        source, prepared, result = (folder / name for name in ("a.onnx", "b.onnx", "c.onnx"))
        source.write_bytes(data)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(result),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        return result.read_bytes()


@contextlib.contextmanager
def _workspace(need_bytes: int) -> Iterator[Path]:
    """A folder for temporary files with `need_bytes` free: ONNX Runtime does not report failed writes."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            free = shutil.disk_usage(folder).free
            if free < need_bytes:
                raise OSError(f"{free / 1e6:,.0f} MB free")
            yield Path(folder)
    except OSError as error:
        raise RunError(
            f"temporary files cannot be written to {tempfile.tempdir} ({error.strerror or error}); "
            f"expected {need_bytes / 1e6:,.0f} MB of room there; free some, or set TMPDIR to another folder"
        ) from None
