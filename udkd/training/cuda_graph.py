"""CUDA graphs: a step is captured once and then replayed."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

_WARM_UP_RUNS = 3
"""Runs before a capture: compilation, autotuning and libraries' workspaces must be done by then."""


def warm_up(work: Callable[[], None], mutable_state: Sequence[Tensor], times: int = _WARM_UP_RUNS) -> None:
    """Run `work` a few times, each time from the same state, and undo it. mutable_state: every tensor that it changes."""
    kept = [tensor.detach().clone() for tensor in mutable_state]
    for _ in range(times):  # undone after each run: the epoch's schedule may not have as many steps
        work()
        with torch.no_grad():
            for tensor, before in zip(mutable_state, kept, strict=True):
                tensor.copy_(before)


@final
class CudaGraphCapture:
    """Turns work into a CUDA graph: a replay costs the host one launch. Capturing leaves `mutable_state` unchanged.

    Warm-up and capture run on one side stream, as torch.cuda.graph requires: autograd remembers the stream on which it first
    met a weight, and the default stream cannot be captured. All graphs of one object share a memory pool, so that together
    they take what the largest needs; a run has one object for each of its runners. So no work may leave anything there, where
    another replay could overwrite it. Steps do not: weights, momentum and metrics are outside the pool, gradients are dropped.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None], mutable_state: Sequence[Tensor]) -> Callable[[], None]:
        """The replay of `work`. mutable_state: every tensor that it changes."""
        device = self._stream.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            warm_up(work, mutable_state)
        torch.cuda.current_stream(device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls may break the capture: a DataLoader's thread may pin memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay
