"""Converts a network to a torch.export program and to ONNX, in memory, and runs such files."""

import io
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from udkd.utils.errors import ConfigError

INPUT, OUTPUT = "images", "logits"
_NEEDED = ("onnx", "onnxscript", "onnxruntime")

LogitsFn = Callable[[Tensor], Tensor]


def require_packages() -> None:
    """Raise ConfigError where the packages of the `export` extra are missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not installed; expected the export extra; run: pip install 'udkd[export]'")


def export_graphs(model: nn.Module, size_px: int) -> tuple[bytes, bytes]:
    """A torch.export program (.pt2) and an ONNX model, both float32 [batch, 3, O, O] -> [batch, C], any batch size."""
    example = torch.zeros(2, 3, size_px, size_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside PyTorch's exporters
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        converted = torch.onnx.export(
            program, (example,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], external_data=False, verbose=False
        )
    assert converted is not None, "the dynamo exporter returns a program"
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue(), converted.model_proto.SerializeToString()


def onnx_classifier(data: bytes) -> LogitsFn:
    """An ONNX model as a function of tensors, run by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(x_BCHW: Tensor) -> Tensor:
        (logits_BC,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(x_BCHW.numpy())})
        return torch.from_numpy(logits_BC)

    return run


def program_classifier(data: bytes) -> LogitsFn:
    """A torch.export program, loaded from its bytes, as a function of tensors. Only for programs made here."""
    module: nn.Module = torch.export.load(io.BytesIO(data)).module()
    return module
