"""Autocast for a recipe's precision."""

import torch

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device_type: str, precision: str) -> torch.autocast:
    """Autocast to "bfloat16" or "float16"; a context without effect for "float32"."""
    return torch.autocast(device_type, dtype=_DTYPES.get(precision, torch.bfloat16), enabled=precision in _DTYPES)


def input_dtype(precision: str) -> torch.dtype:
    """The dtype to which autocast rounds a network's input."""
    return _DTYPES.get(precision, torch.float32)
