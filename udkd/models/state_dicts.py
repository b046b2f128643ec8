"""State dicts as people save them, and the network that they belong to.

Training wraps a network (DataParallel, torch.compile, Lightning) and each wrapper leaves a word in the names of the weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COUNTED = ".num_batches_tracked"  # absent before PyTorch 0.4.1; torch's own load_state_dict takes it for 0
_AVERAGED = "n_averaged"  # how many torch.optim.swa_utils.AveragedModel has averaged
_TALLIES = {"total_ops", "total_params"}  # what thop leaves in every module that it has counted
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class StateDictMatch:
    """A state dict that has every name of a network, in the network's own names.

    label: where it lies, the entry of the file and what its names begin with. rows: of the layer that gives the logits.
    beside: names in the same dictionary that are none of the network's.
    """

    label: str
    tensors: Mapping[str, Tensor]
    rows: int
    beside: tuple[str, ...] = ()


def find_state_dicts(
    entries: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor], head: str
) -> list[StateDictMatch]:
    """Every state dict in `entries` that holds all names of `expected`. head: the weight whose rows are the outputs."""
    found = []
    for entry, tensors in entries.items():
        named = strip_wrappers(tensors)
        for prefix in _prefixes(named, expected):
            label = ".".join(word for word in (entry, prefix.rstrip(".")) if word) or "."
            own = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
            others = {name for name in own if name not in expected}
            # Within one dictionary another copy of the network may begin with a word of its own.
            copies = [other for other in _prefixes(named, expected) if other != prefix and other.startswith(prefix)]
            for name in others:
                if (
                    name == _AVERAGED
                    or name.split(".")[-1] in _TALLIES
                    or any((prefix + name).startswith(copy) for copy in copies)
                ):
                    del own[name]
            rows = own[head].shape[0] if own[head].dim() else 0
            beside = tuple(name for name in named if not name.startswith(prefix))
            found.append(StateDictMatch(label=label, tensors=_counted(own, expected), rows=rows, beside=beside))
    return found


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names that the network itself gives them, unless two would share one."""
    named = {_plain(name): value for name, value in tensors.items()}
    return named if len(named) == len(tensors) else dict(tensors)


def _plain(name: str) -> str:
    """A name without the words of wrappers. Torchvision's published DenseNets and ViTs have names of earlier versions."""
    name = ".".join(word for word in name.split(".") if word not in _WRAPPERS)
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
    return re.sub(r"(encoder_layer_\d+\.mlp)\.linear_([12])\.", lambda match: f"{match[1]}.{3 * int(match[2]) - 3}.", name)


def _prefixes(named: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What stands before every name of `expected`: "" or words that end with a point."""
    needed = [name for name in expected if not name.endswith(_COUNTED)]
    first = needed[0]
    starts = [name.removesuffix(first) for name in named if name == first or name.endswith("." + first)]
    return [start for start in starts if all(start + name in named for name in needed)]


def _counted(own: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return own | {name: torch.tensor(0) for name in expected if name.endswith(_COUNTED) and name not in own}


def as_float32(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The numbers of `expected`'s dtypes and shapes, and the dtype of those that were not float32, or "".

    Raises ValueError, naming the first: numbers that are no real ones, not finite, or not there (a sparse or meta tensor).
    """
    numbers, other = {}, ""
    for name, wanted in expected.items():
        value = tensors[name]
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
            kind = str(value.dtype if value.layout is torch.strided else value.layout)
            raise ValueError(f"{name} is of {kind.removeprefix('torch.')}, expected plain float32 numbers")
        if wanted.is_floating_point() and value.dtype not in _FLOATS:
            raise ValueError(f"{name} is of {str(value.dtype).removeprefix('torch.')}, expected float32 numbers")
        if wanted.is_floating_point() and value.dtype != wanted.dtype:
            other = str(value.dtype).removeprefix("torch.")
        numbers[name] = value.detach().to(wanted.dtype).contiguous().clone()
    broken = first_not_finite(numbers)
    if broken:
        raise ValueError(f"{broken} holds numbers that are not finite in float32, expected finite ones")
    return numbers, other


def first_not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first that holds NaN or an infinity, or ""."""
    return next((name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()), "")
