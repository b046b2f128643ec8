"""Timing variants of one thing side by side.

Variants run in turn within each round and every round begins with another one, so a busy or a warming machine slows all of
them alike: the ratio of two variants within a round is steadier than either time.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

MIN_SPAN_S = {"cpu": 0.02, "cuda": 0.5}
"""What a variant is repeated to last at least within a round, by device. Shorter spans measure the clock and the scheduler, and
on a GPU how it wakes up, at a speed that it does not keep.
"""
_LEAD_IN = 0.25
"""Of a round's calls, what is repeated before them, untimed: a GPU has slept while the garbage was collected."""


@dataclass(frozen=True)
class Variant:
    """One way of doing the thing. run: does it once. items: images (or others) that one call handles.

    prepare: called before each round, untimed.
    """

    name: str
    run: Callable[[], object]
    items: int = 1
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds per call of one variant, one entry per round."""

    name: str
    items: int
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def items_per_s(self) -> float:
        return self.items / self.median_s

    def ratios(self, baseline: "Timed") -> list[float]:
        """This variant's seconds per item over the baseline's, round by round: below 1 is faster."""
        own, other = ([s / timed.items for s in timed.seconds] for timed in (self, baseline))
        return [a / b for a, b in zip(own, other, strict=True)]


def side_by_side(
    variants: Sequence[Variant], device: torch.device, *, rounds: int = 7, warmup: int = 2, min_span_s: float | None = None
) -> list[Timed]:
    """Warm every variant up, then time all of them in each of `rounds` rounds. min_span_s: None is MIN_SPAN_S."""
    min_span_s = MIN_SPAN_S[device.type] if min_span_s is None else min_span_s
    calls = [_calls_per_round(variant, device, warmup, min_span_s) for variant in variants]
    seconds: list[list[float]] = [[] for _ in variants]
    for turn in range(rounds):
        for place in range(len(variants)):
            index = (place + turn) % len(variants)
            seconds[index].append(_seconds(variants[index], device, calls[index]))
    return [
        Timed(name=variant.name, items=variant.items, seconds=tuple(each))
        for variant, each in zip(variants, seconds, strict=True)
    ]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and spread of one quantity over the rounds, each value kept."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values), "each": list(values)}


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _calls_per_round(variant: Variant, device: torch.device, warmup: int, min_span_s: float) -> int:
    for _ in range(max(1, warmup)):
        variant.run()
    return max(1, math.ceil(min_span_s / max(_seconds(variant, device, 1), 1e-7)))


def _seconds(variant: Variant, device: torch.device, calls: int) -> float:
    """Seconds per call. The collector of garbage waits outside: it would strike one variant and spare the next."""
    variant.prepare()
    gc.collect()
    gc.disable()
    try:
        for _ in range(int(calls * _LEAD_IN) if device.type == "cuda" else 0):
            variant.run()
        wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            variant.run()
        wait(device)
        return (time.perf_counter() - started) / calls
    finally:
        gc.enable()
