"""Finds a network's state dict in the files that training scripts save.

Scripts wrap networks (DataParallel, torch.compile, Lightning), and each wrapper adds a prefix to the names of the weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_BATCH_COUNT = ".num_batches_tracked"  # absent before PyTorch 0.4.1; torch's load_state_dict assumes 0 then
_AVERAGED = "n_averaged"  # a buffer of torch.optim.swa_utils.AveragedModel
_THOP_BUFFERS = {"total_ops", "total_params"}  # thop adds them to every module that it profiles
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class StateDictMatch:
    """A state dict in a file that has all weights of a network.

    label: its path in the file: the entry's keys and the prefix of the names. tensors: under the network's own names.
    rows: rows of the layer that computes the logits. other_names: further names in the same dictionary.
    """

    label: str
    tensors: Mapping[str, Tensor]
    rows: int
    other_names: tuple[str, ...] = ()


def find_state_dicts(
    entries: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor], head: str
) -> list[StateDictMatch]:
    """Every state dict in `entries` that has all names in `expected`. head: name of the weight that computes the logits."""
    matches = []
    has_wrapped_names = any(_without_wrappers(name) != name for name in expected)
    for entry, tensors in entries.items():
        named = dict(tensors) if has_wrapped_names else strip_wrappers(tensors)
        for prefix in _prefixes(named, expected):
            label = ".".join(part for part in (entry, prefix.rstrip(".")) if part) or "."
            state = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
            unknown = {name for name in state if name not in expected}
            # One dictionary may hold another copy of the network under a longer prefix, such as an EMA.
            copies = [other for other in _prefixes(named, expected) if other != prefix and other.startswith(prefix)]
            for name in unknown:
                if (
                    name == _AVERAGED
                    or name.split(".")[-1] in _THOP_BUFFERS
                    or any((prefix + name).startswith(copy) for copy in copies)
                ):
                    del state[name]
            rows = state[head].shape[0] if state[head].dim() else 0
            others = tuple(name for name in named if not name.startswith(prefix))
            tensors_by_name = _with_batch_counts(state, expected)
            matches.append(StateDictMatch(label=label, tensors=tensors_by_name, rows=rows, other_names=others))
    return matches


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, contiguous, and each in memory of its own, also those of tied weights."""
    plain: dict[str, Tensor] = {}
    used = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if address in used else value
        used.add(address)
    return plain


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from the names of tensors; nothing is changed if two names would collide."""
    named = {_without_wrappers(name): value for name, value in tensors.items()}
    return named if len(named) == len(tensors) else dict(tensors)


def _without_wrappers(name: str) -> str:
    """A name without the prefixes of wrappers, and with the current names in torchvision's older DenseNets and ViTs."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
    return re.sub(r"(encoder_layer_\d+\.mlp)\.linear_([12])\.", lambda match: f"{match[1]}.{3 * int(match[2]) - 3}.", name)


def _prefixes(named: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which every name in `expected` exists: "" or a text that ends with a dot."""
    needed = [name for name in expected if not name.endswith(_BATCH_COUNT)]
    first = needed[0]
    starts = [name.removesuffix(first) for name in named if name == first or name.endswith("." + first)]
    return [start for start in starts if all(start + name in named for name in needed)]


def _with_batch_counts(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return state | {name: torch.tensor(0) for name in expected if name.endswith(_BATCH_COUNT) and name not in state}


def as_float32(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Convert tensors to the dtypes of `expected`; also returns the dtype of those that were not float32, or "".

    Raises ValueError, naming the first tensor that is not real, not finite, or not dense in memory (sparse, meta).
    """
    converted, other = {}, ""
    for name, target in expected.items():
        value = tensors[name]
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
            kind = str(value.dtype if value.layout is torch.strided else value.layout)
            raise ValueError(f"{name} is of {kind.removeprefix('torch.')}, expected plain float32 numbers")
        if target.is_floating_point() and value.dtype not in _FLOATS:
            raise ValueError(f"{name} is of {str(value.dtype).removeprefix('torch.')}, expected float32 numbers")
        if target.is_floating_point() and value.dtype != target.dtype:
            other = str(value.dtype).removeprefix("torch.")
        converted[name] = value.detach().to(target.dtype).contiguous().clone()
    name = first_not_finite(converted)
    if name:
        raise ValueError(f"{name} holds numbers that are not finite in float32, expected finite ones")
    return converted, other


def first_not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that holds NaN or an infinity, or ""."""
    return next((name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()), "")
