"""One of the processes that `ranks` starts with torchrun: times the training step in slices, and the parts of its exchange."""

import contextlib
import functools
import json
import os
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common.harness import CLASSES, canvases, make_step, paper_recipe
from benchmarks.common.timing import Variant, side_by_side
from udkd.config.recipe import Recipe
from udkd.training.exchange import Exchange, SliceVectors
from udkd.training.student import make_students
from udkd.utils.environment import choose_device, set_threads
from udkd.utils.files import write_json
from udkd.utils.operating_system import die_with_parent
from udkd.utils.workers import WorkerGroup

STEP, ALONE, WITHIN, ADDING, BETWEEN, ALL_REDUCE = "step", "alone", "within", "adding", "between", "all_reduce"
"""What is timed: the complete step; the same in all processes at once, with no exchange between them; packing the slices of a
process and adding them as a tree; adding alone; the exchange between processes; and DDP's collective for the same vector.
"""
WARM_UP, ROUNDS = 1, 3
EXCHANGES = 4  # timed per step: they are shorter

_BYTES_SENT, _BYTES_RETRANS = 200, 208  # of tcpi_bytes_sent and tcpi_bytes_retrans in struct tcp_info of linux/tcp.h
_TCP_INFO = 11


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """What the processes measure. batch: images of a step, of all processes. settings: of the recipe. steps: timed at once."""

    processes: int
    slices: int
    batch: int
    px: int
    steps: int
    device: str
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{_count(self.processes, 'process', 'processes')}, {_count(self.slices, 'slice', 'slices')}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def measure(job: RankJob, group: WorkerGroup) -> dict[str, Any]:
    """Seconds by what is timed, one entry per round; bytes of the vector, and that this process sends in a step."""
    device = choose_device(group.device_name(job.device))
    # On a CPU as many threads for one process as for each of several; the loss is 1 % of a step.
    threads = ["train.threads=1", 'train.compile="off"'] if device.type == "cpu" else []

    def make_recipe(slices: int, batch: int, *more: str) -> Recipe:
        settings = [f"train.slices={slices}", *job.settings, *threads, *more]
        return paper_recipe(device, *settings, px=job.px, batch=batch)

    recipe = make_recipe(job.slices, job.batch)
    set_threads(recipe.train.cpu_threads)
    samples = canvases(2 * job.batch, min(job.px * 8 // 7, 256), device)
    with contextlib.closing(Exchange(job.slices, group, device)) as exchange:
        step = make_step(recipe, samples, device, exchange=exchange)
        traffic: dict[str, Any] = {}
        if group.size > 1:
            calls = step
            if recipe.train.cuda_graph:  # whose replay makes no calls
                eager = make_recipe(job.slices, job.batch, 'train.compile="off"', "train.cuda_graph=false")
                calls = make_step(eager, samples, device, exchange=exchange)
            traffic = sent_in_a_step(calls.run)
        variants = [_repeated(STEP, step.run, job.steps)]
        if group.size > 1:
            own = len(exchange.own)
            recipe_alone = make_recipe(own, job.batch // group.size)
            alone = make_step(recipe_alone, samples, device, exchange=Exchange(own, device=device))
            variants.append(_repeated(ALONE, alone.run, job.steps))
        if job.slices > 1:
            students = make_students(recipe, CLASSES, device)
            buffers = [buffer for student in students for buffer in student.model.buffers() if buffer.is_floating_point()]
            like = [*(parameter for student in students for parameter in student.model.parameters()), *buffers]
            parts = _exchange_parts(exchange, like)
            variants += [_repeated(name, part, EXCHANGES * job.steps) for name, part in parts.items()]
        timed = side_by_side(variants, device, rounds=ROUNDS, warmup=WARM_UP, min_span_s=0.0)  # one call: the same in all
    seconds = {one.name: [each / one.items for each in one.seconds] for one in timed}
    return {"seconds": seconds, **traffic}


def _repeated(name: str, run: Callable[[], object], count: int) -> Variant:
    """A variant of `count` calls, which begin at the same time in all processes."""

    def calls() -> None:
        if dist.is_initialized():
            dist.barrier()
        for _ in range(count):
            run()

    return Variant(name, calls, items=count)


def _exchange_parts(exchange: Exchange, like: list[Tensor]) -> dict[str, Callable[[], object]]:
    """The parts of the exchange, each by itself. like: shaped as what a slice contributes; the step adds some 20 sums."""
    own, device = len(exchange.own), exchange.device
    alone = SliceVectors(like, 1, Exchange(own, device=device))  # the slices of this process, and no other
    one = torch.zeros(1, device=device)

    @torch.no_grad()
    def within() -> None:
        for _ in range(own):
            alone.add(like, [one])
        alone.mean()

    length = sum(tensor.numel() for tensor in like)
    vector, other = (torch.zeros(length + -length % exchange.slices, device=device) for _ in range(2))

    def adding() -> None:
        for _ in range(own - 1):
            vector.add_(other)

    parts: dict[str, Callable[[], object]] = {WITHIN: within, ADDING: adding}
    if exchange.size > 1:
        parts |= {BETWEEN: lambda: exchange.sum(vector), ALL_REDUCE: lambda: dist.all_reduce(vector)}
    return parts


def sent_in_a_step(step: Callable[[], object]) -> dict[str, Any]:
    """Bytes that this process sends in a step, counted where torch.distributed is called, and by the kernel where TCP is used.

    vector: bytes of the summed vector. The first step is not counted.
    """
    step()
    dist.barrier()
    before = tcp_bytes_sent()
    with counted_calls() as calls:
        step()
    dist.barrier()  # its few bytes are counted too
    by_tcp = tcp_bytes_sent() - before
    return {"vector": calls.pop("vector"), "sent": dict(calls), "sent_by_tcp": by_tcp or None}


@contextlib.contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Within the block, count the bytes that this process sends in the default group, by the function that sends them.

    vector: bytes of what Exchange.sum was given.
    """
    calls: Counter[str] = Counter()
    others = dist.get_world_size() - 1

    def isend(tensor: Tensor, *rest: Any, **options: Any) -> Any:
        calls["isend"] += tensor.nbytes
        return originals["isend"](tensor, *rest, **options)

    def all_to_all(output: Tensor, input: Tensor, *rest: Any, **options: Any) -> Any:
        calls["all_to_all"] += input.nbytes * others // (others + 1)
        return originals["all_to_all_single"](output, input, *rest, **options)

    def all_gather(name: str, output: Tensor, input: Tensor, *rest: Any, **options: Any) -> Any:
        calls["all_gather"] += input.nbytes * others
        return originals[name](output, input, *rest, **options)

    def exchange_sum(exchange: Exchange, vector: Tensor) -> None:
        calls["vector"] += vector.nbytes
        originals["sum"](exchange, vector)

    gathers = [name for name in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, name)]
    wrappers: dict[str, Any] = {"isend": isend, "all_to_all_single": all_to_all, "sum": exchange_sum}
    wrappers |= {name: functools.partial(all_gather, name) for name in gathers}
    owners = {name: Exchange if name == "sum" else dist for name in wrappers}
    originals = {name: getattr(owners[name], name) for name in wrappers}
    try:
        for name, wrapper in wrappers.items():
            setattr(owners[name], name, wrapper)
        yield calls
    finally:
        for name, original in originals.items():
            setattr(owners[name], name, original)


def tcp_bytes_sent() -> int:
    """Bytes that this process's open TCP connections have sent, as Linux counts them from 4.19 on; 0 elsewhere."""
    total = 0
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError, struct.error), socket.socket(fileno=os.dup(int(descriptor))) as connection:
            connection.getpeername()
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
                sent, retransmitted = (struct.unpack_from("=Q", info, offset)[0] for offset in (_BYTES_SENT, _BYTES_RETRANS))
                total += sent - retransmitted
    return total


def command(job: RankJob, out: Path) -> list[str]:
    """The command that starts the processes of a job; the first one writes what `measure` returns to `out`, as JSON."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.processes)]
    return [*torchrun, "-m", "benchmarks.common.rank_process", json.dumps(asdict(job)), str(out)]


def main(job: str, out: str) -> None:
    """See `command`."""
    die_with_parent(signal.SIGKILL)
    group = WorkerGroup.join()
    with group.reports_once():
        measured = measure(RankJob(**json.loads(job)), group)
    if group.is_main:
        write_json(Path(out), measured)


if __name__ == "__main__":
    main(*sys.argv[1:])
