"""What the processes of a training run tell each other in a step.

Sums over the slices of a batch have an order that does not depend on the number of processes that compute them.

A batch is cut into S equal slices, S a power of two. Every slice gives one vector, and vectors are added as a binary tree over
the slices, neighbours first. With W processes, W a power of two that divides S, each owns k = S / W neighbouring slices, whose
sum is a branch of that tree; the upper part is added between processes. So the sums have the same bits for every W.

Each process receives its share of the vector from every other one, adds the shares and sends the result to all: together
2 (W - 1) / W of a vector, as much as a ring all-reduce. Where the processes of several machines are as many on each, the sum is
taken within each machine first, and between the machines only a part of the vector travels: the same tree.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from udkd.config.sections import Parallel, TrainSection
from udkd.utils.errors import ConfigError, ProcessGroupError
from udkd.utils.workers import SINGLE_PROCESS, WorkerGroup

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in a step."""

_CPU = torch.device("cpu")
_REPLY_STEPS = 8  # on a GPU: steps between a request and its effect, so that no step waits for the device


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What any process wants to happen after a step: the run to stop, a checkpoint to be saved."""

    stop: bool
    save: bool


NONE = Requests(stop=False, save=False)


@final
class Exchange:
    """What a process computes of every step, and its communication with the others of a training run. Close it after use.

    parallel: "slices": each owns some slices of every batch; "students": the process of rank i trains student i.
    requests: those of this process, asked before every step.
    """

    def __init__(
        self,
        slices: int = 1,
        group: WorkerGroup = SINGLE_PROCESS,
        device: torch.device = _CPU,
        *,
        parallel: Parallel = "slices",
        requests: Callable[[], Requests] = lambda: NONE,
    ) -> None:
        self.slices, self.group, self.device = slices, group, device
        self.by_student = parallel == "students" and group.size > 1
        self._requests = requests
        self._levels: list[Any] = []
        self._shares: dict[int, Tensor] = {}
        self._wire = device
        if group.size > 1:
            self._connect()
        self.wanted_2 = torch.zeros(2, device=device)
        """1 where this process wants a stop, or a checkpoint: a step adds them to those of the others."""
        self.found_2 = torch.zeros(2, device=device)
        """Above 0 where any process wants it, as of the last step."""
        self._last = NONE
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []
        self._ignored_saves = 0

    def _connect(self) -> None:
        """Connect the processes: with NCCL where each has a GPU of its own, else with Gloo, through the host's memory."""
        group = self.group
        gpu = str(torch.cuda.get_device_properties(self.device).uuid) if self.device.type == "cuda" else ""
        gpus = group.gather("GPU", gpu)
        own_gpu = bool(gpu) and len(set(gpus)) == group.size and dist.is_nccl_available()
        self._wire = self.device if own_gpu else _CPU
        with contact():
            dist.init_process_group(
                "nccl" if own_gpu else "gloo",
                store=group.store,
                rank=group.rank,
                world_size=group.size,
                timeout=TIMEOUT,
                device_id=self.device if own_gpu else None,
            )
            self._levels = [None]
            size, local = group.size, group.local_size
            if self._same_on_all_machines() and 1 < local < size:
                within = [list(range(first, first + local)) for first in range(0, size, local)]
                between = [list(range(place, size, local)) for place in range(local)]
                self._levels = [dist.new_subgroups_by_enumeration(ranks, timeout=TIMEOUT)[0] for ranks in (within, between)]

    def _same_on_all_machines(self) -> bool:
        """Whether every machine has as many processes, a power of two, with neighbouring ranks."""
        found: list[Any] = [None] * self.group.size
        dist.all_gather_object(found, (self.group.local_size, self.group.rank - self.group.local_rank))
        local = self.group.local_size
        return local & (local - 1) == 0 and all(each == (local, rank // local * local) for rank, each in enumerate(found))

    def close(self) -> None:
        """Leave the group."""
        if self._levels and dist.is_initialized():
            dist.destroy_process_group()
        self._levels = []

    @property
    def through_host(self) -> bool:
        """Whether what the processes exchange goes through the host's memory."""
        return self.size > 1 and self._wire != self.device

    @property
    def size(self) -> int:
        """W, the number of processes."""
        return self.group.size

    @property
    def batch_parts(self) -> int:
        """How many processes share a batch."""
        return 1 if self.by_student else self.size

    @property
    def own(self) -> range:
        """The slices that this process owns."""
        per_process = self.slices // self.batch_parts
        first = 0 if self.by_student else self.group.rank * per_process
        return range(first, first + per_process)

    def share(self, order: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
        """This process's part of every batch of `order`, int64 ids in full batches."""
        if self.batch_parts == 1:
            return order
        parts = order.reshape(-1, self.batch_parts, batch_size // self.batch_parts)
        return np.ascontiguousarray(parts[:, self.group.rank].reshape(-1))

    def batches(self, ids: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
        """The batches of `ids` that this process evaluates: every W-th; the last one of all may be smaller."""
        starts = range(self.group.rank * batch_size, len(ids), self.size * batch_size)
        return [ids[start : start + batch_size] for start in starts]

    def sum(self, vector: Tensor) -> None:
        """Replace a contiguous float32 vector, whose length W divides, by its sum over all processes, as a binary tree."""
        if self.size == 1:
            return
        wire = vector if self._wire == vector.device else vector.to(self._wire)
        with contact():
            self._sum(wire, self._levels)
        if wire is not vector:
            vector.copy_(wire)

    def _sum(self, vector: Tensor, levels: Sequence[Any]) -> None:
        group, *more = levels
        shares = self._shares.get(len(levels))
        if shares is None or shares.shape != vector.shape:  # kept: fresh memory takes as long as the exchange
            shares = self._shares[len(levels)] = torch.empty_like(vector)
        rows = shares.view(dist.get_world_size(group), -1)
        _all_to_all(rows, vector.view_as(rows), group)
        own = tree_sum(list(rows.unbind()))
        if more:
            self._sum(own, more)
        _all_gather(vector, own, group)

    def gather_rows(self, rows: Tensor) -> None:
        """Fill, on every process, the rows of a float64 tensor that the others have computed; those are 0 here."""
        if self.size > 1:
            wire = rows.to(self._wire)
            with contact():
                dist.all_reduce(wire)  # exact in any order: every number is 0 on all processes but one
            rows.copy_(wire)

    def gather_logits(self, own_BC: Tensor) -> list[Tensor]:
        """The logits of every process's student, float32 [B, C], without gradient. The processes' requests go with them."""
        wire = torch.cat([own_BC.detach().float().reshape(-1), self.wanted_2]).to(self._wire)
        rows = torch.empty(self.size * len(wire), device=self._wire)
        with contact():
            _all_gather(rows, wire, None)
        rows = rows.to(self.device).view(self.size, -1)
        self.found_2.copy_(rows[:, -2:].sum(0))
        return [row[:-2].view(own_BC.shape) for row in rows.unbind()]

    def largest(self, own: Tensor) -> Tensor:
        """The largest of each number over all processes."""
        wire = own.detach().clone().to(self._wire)
        with contact():
            dist.all_reduce(wire, op=dist.ReduceOp.MAX)
        return wire.to(self.device)

    def broadcast(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Replace tensors by those of the process `source`."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        with contact(), torch.no_grad():
            for same in by_dtype.values():
                wire = torch.cat([tensor.reshape(-1).to(self._wire) for tensor in same])
                dist.broadcast(wire, src=source)
                for tensor, part in zip(same, torch.split(wire, [tensor.numel() for tensor in same]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def before_step(self) -> None:
        """Let the next step tell the other processes what this one wants."""
        if self.slices == self.size == 1:
            return
        requests = self._requests()
        if requests != self._last:
            self.wanted_2[0].fill_(float(requests.stop))
            self.wanted_2[1].fill_(float(requests.save))
            self._last = requests

    def agreed(self, *, finished_epoch: bool = False) -> Requests:
        """What all processes do after the step just queued; the same on each of them.

        On a GPU it is what they wanted _REPLY_STEPS ago, except at the end of an epoch, so that the host does not wait for the
        step.
        """
        if self.slices == self.size == 1:
            return self._requests()
        if self.device.type == "cpu":
            stop, save = (self.found_2 > 0).tolist()
            return Requests(stop=stop, save=save)
        found_2 = torch.empty(2, pin_memory=True)
        found_2.copy_(self.found_2, non_blocking=True)
        self._pending.append((found_2, torch.cuda.current_stream().record_event()))
        stop = save = False
        while len(self._pending) > (0 if finished_epoch else _REPLY_STEPS):
            found_2, event = self._pending.pop(0)
            event.synchronize()
            stop |= bool(found_2[0] > 0)
            save |= bool(found_2[1] > 0) and self._ignored_saves == 0
            self._ignored_saves = max(0, self._ignored_saves - 1)
        if save:  # the steps since then ask for the same checkpoint
            self._ignored_saves = len(self._pending)
        return Requests(stop=stop, save=save)


def require_divisible(train: TrainSection, num_students: int, size: int) -> None:
    """ConfigError unless `size` processes can share the work of a run."""
    slices = train.slices
    if size == 1:
        return
    if train.parallel == "students":
        if size != num_students:
            raise ConfigError(
                f"{size} processes train together, train.parallel is students and the recipe has {num_students}; expected one "
                "process for each; start as many"
            )
    elif size > slices or slices % size:
        powers = ", ".join(str(1 << power) for power in range(slices.bit_length()))
        remedy = f"set train.slices to {size} or a multiple" if size & (size - 1) == 0 else "start a power of two"
        expected = f"one of {powers}" if slices > 1 else "one process"
        raise ConfigError(f"{size} processes train together and train.slices is {slices}; expected {expected}; {remedy}")


def tree_sum(parts: list[Tensor]) -> Tensor:
    """The sum of a power of two of tensors, added in place as a binary tree, neighbours first; returns the first one."""
    while len(parts) > 1:
        parts = [left.add_(right) for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


@contextlib.contextmanager
def contact() -> Iterator[None]:
    """ProcessGroupError where another process has ended, or has not answered for TIMEOUT."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed.DistError is one
        if "out of memory" in str(error) or "allocate memory" in str(error):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^\[[^]]*\] *", "", line).split(". ")[0][:200]  # without Gloo's source file and advice
        raise ProcessGroupError(
            f"another process of this run has ended or does not answer ({reason}); expected all to run to the end; "
            "the same command with --resume continues"
        ) from None


def _all_to_all(received: Tensor, parts: Tensor, group: Any) -> None:
    """Send row i of `parts` to process i of a group and receive its row for this one."""
    if dist.get_backend(group) != "gloo":
        dist.all_to_all_single(received, parts, group=group)
        return
    size, rank = dist.get_world_size(group), dist.get_rank(group)  # Gloo's own takes longer
    work: list[Any] = []
    for distance in range(1, size):
        to, source = (rank + distance) % size, (rank - distance) % size
        work.append(dist.irecv(received[source], group=group, group_src=source))
        work.append(dist.isend(parts[to], group=group, group_dst=to))
    received[rank].copy_(parts[rank])
    for each in work:
        each.wait()


def _all_gather(vector: Tensor, own: Tensor, group: Any) -> None:
    """all_gather of equal parts into one vector."""
    if dist.get_backend(group) == "gloo":  # whose all_gather takes three times as long
        size = dist.get_world_size(group)
        _all_to_all(vector.view(size, -1), own.expand(size, -1), group)
        return
    # PyTorch 2.14 deprecates the older name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(vector, own, group=group)


@final
class SliceVectors:
    """The vectors of the slices that a process owns: log2(k) + 1 of them, allocated once, are enough to add k as a tree.

    Each holds numbers for the tensors of `like` and `more` further ones, as float32.
    """

    def __init__(self, like: Sequence[Tensor], more: int, exchange: Exchange) -> None:
        self._exchange = exchange
        self._count = len(exchange.own)
        length = sum(tensor.numel() for tensor in like) + more
        length += -length % exchange.slices  # W divides it
        vectors = [torch.zeros(length, device=exchange.device) for _ in range(self._count.bit_length())]
        self._free = [(vector, _views(vector, like, more)) for vector in vectors]
        self._sums: list[tuple[int, tuple[Tensor, list[Tensor]]]] = []

    def add(self, tensors: Sequence[Tensor], more: Sequence[Tensor]) -> None:
        """Add a slice's tensors, shaped as `like`, and further numbers; the slices in their order."""
        item = self._free.pop(0)
        views = item[1]
        torch._foreach_copy_(views[:-1], list(tensors))
        views[-1].copy_(torch.cat([each.reshape(-1) for each in more]))
        level = 0
        while self._sums and self._sums[-1][0] == level:  # as a binary counter carries
            lower, right = self._sums.pop()[1], item
            lower[0].add_(right[0])
            self._free.insert(0, right)
            item, level = lower, level + 1
        self._sums.append((level, item))

    def mean(self) -> tuple[list[Tensor], Tensor]:
        """The mean over all slices of all processes, in fixed memory: tensors shaped as `like`, and the further numbers."""
        ((_, item),) = self._sums
        self._sums = []
        self._free.insert(0, item)
        vector, views = item
        self._exchange.sum(vector)
        vector.div_(self._exchange.slices)
        return views[:-1], views[-1]


def _views(vector: Tensor, like: Sequence[Tensor], more: int) -> list[Tensor]:
    """Views of a vector with the shapes of `like`, in their memory formats, and one of `more` numbers."""
    views, start = [], 0
    for tensor in like:
        dense = torch.empty_like(tensor, device="meta")  # its strides leave no gaps
        views.append(vector.as_strided(tensor.shape, dense.stride(), start))
        start += tensor.numel()
    return [*views, vector[start : start + more]]
