"""The optimizer of a student: a class of torch.optim, on the device wherever the class allows.

Its learning rate is a tensor on the device, which a CUDA graph reads in every replay, and no step allocates state or waits for
the device. Where the class has neither a fused nor a capturable implementation there, the rate is a number that the host sets.
"""

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from udkd.config.optimizers import optimizer_class, takes
from udkd.config.sections import StudentSection
from udkd.utils.errors import ConfigError

Parameters = Iterable[tuple[str, nn.Parameter]]


def make_optimizer(
    section: StudentSection, parameters: Parameters, device: torch.device, *, no_decay: Collection[str] = ()
) -> torch.optim.Optimizer:
    """The section's optimizer of named parameters, with learning rate 0 and its state allocated.

    no_decay: names of more parameters that decay_1d = false excludes from weight decay.
    """
    arguments: dict[str, Any] = dict(section.optimizer_arguments)
    if _has_fused(section.optimizer, device.type):
        arguments["fused"] = True
    if device.type != "cpu" and takes(section.optimizer, "capturable"):  # PyTorch has no capturable steps on a CPU
        arguments["capturable"] = True
    groups = decay_groups(parameters, decay_1d=section.decay_1d, no_decay=no_decay)
    optimizer: torch.optim.Optimizer = optimizer_class(section.optimizer)(groups, lr=0.0, **arguments)
    if reads_rate_from_device(section.optimizer, device.type):  # set afterwards, as the constructor would read it
        rate = torch.zeros((), device=device)
        for values in (optimizer.defaults, *optimizer.param_groups):  # one for all groups, also those added later
            values["lr"] = rate
    allocate_state(optimizer)
    return optimizer


def reads_rate_from_device(name: str, device_type: str) -> bool:
    """Whether an optimizer's step runs on the device alone, so that a CUDA graph can hold it."""
    return _has_fused(name, device_type) or (device_type != "cpu" and takes(name, "capturable"))


def require_capturable(name: str, device_type: str) -> None:
    """ConfigError unless a CUDA graph can hold an optimizer's step."""
    if not reads_rate_from_device(name, device_type):
        raise ConfigError(
            f"train.cuda_graph is true and the optimizer {name}, whose step waits for the device; expected one such as SGD or "
            "AdamW; change students.*.optimizer or set train.cuda_graph to false"
        )


def _has_fused(name: str, device_type: str) -> bool:
    """Whether an optimizer has a fused kernel: Adagrad's for CUDA is newer than its argument."""
    kernel = f"aten::_fused_{name.lower()}_"
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type, "")
    return takes(name, "fused") and bool(key) and torch._C._dispatch_has_kernel_for_dispatch_key(kernel, key)


def decay_groups(parameters: Parameters, *, decay_1d: bool, no_decay: Collection[str] = ()) -> list[dict[str, Any]]:
    """Parameter groups: all in one, or without decay_1d the biases and those of at most one dimension apart, undecayed.

    Source: timm's param_groups_weight_decay. no_decay: names of further parameters that are not decayed.
    """
    apart: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in parameters:
        excluded = not decay_1d and (parameter.ndim <= 1 or name.endswith(".bias") or name in no_decay)
        apart[excluded].append(parameter)
    groups: list[dict[str, Any]] = [{"params": apart[False]}, {"params": apart[True], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the state of parameters that have none yet, as it is before the first step."""
    for group in optimizer.param_groups:
        new = [parameter for parameter in group["params"] if not optimizer.state[parameter]]
        if isinstance(optimizer, torch.optim.SGD):
            for parameter in new if group["momentum"] else []:
                # Momentum of 0 gives the same first step as none.
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            continue
        initialise: Any = optimizer._init_group  # type: ignore[attr-defined]  # what each class's step() begins with
        lists: list[list[Any]] = [[] for _ in range(len(inspect.signature(initialise).parameters) - 1)]
        for parameter in new:
            parameter.grad = torch.zeros_like(parameter)
        initialise({**group, "params": new}, *lists)
        for parameter in new:
            parameter.grad = None


def set_rate(optimizer: torch.optim.Optimizer, lr: Tensor) -> None:
    """Set the learning rate of all groups, which share one tensor where it is on the device. lr: a scalar."""
    first = optimizer.param_groups[0]["lr"]
    if isinstance(first, Tensor):
        first.copy_(lr)
    else:
        for group in optimizer.param_groups:
            group["lr"] = float(lr)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every parameter that an optimizer trains."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every tensor of an optimizer's state, and its learning rate where that is a tensor."""
    states: Iterable[Mapping[str, Any]] = optimizer.state.values()
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    rate = optimizer.param_groups[0]["lr"]
    return [*tensors, rate] if isinstance(rate, Tensor) else tensors


def step_unless(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> None:
    """A step that changes nothing where found_inf, float32 [] on the device, is 1; the host does not wait to read it."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):  # as torch.amp.GradScaler does it
        optimizer.grad_scale, optimizer.found_inf = None, found_inf  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        return
    changing = [*parameters_of(optimizer), *state_of(optimizer)]
    before = [tensor.detach().clone() for tensor in changing]
    optimizer.step()
    with torch.no_grad():
        for tensor, kept in zip(changing, before, strict=True):
            tensor.copy_(torch.where(found_inf.to(tensor.device) > 0, kept, tensor))
