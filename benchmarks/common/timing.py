"""Times variants of one operation side by side.

Variants run in turn within each round, and each round starts with a different one, so a busy or warming machine slows all of
them alike: the ratio of two variants within a round varies less than either time.
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
"""Minimum time per variant and round, by device; calls are repeated to fill it. Shorter spans measure the timer, the scheduler
and, on a GPU, a clock speed that it does not sustain.
"""
_LEAD_IN = 0.25
"""Untimed calls before a round, as a fraction of its calls, because a GPU has been idle during garbage collection."""


@dataclass(frozen=True)
class Variant:
    """One way to perform the operation. run: performs it once. items: images (or other items) per call.

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
        seconds, baseline_seconds = ([s / timed.items for s in timed.seconds] for timed in (self, baseline))
        return [a / b for a, b in zip(seconds, baseline_seconds, strict=True)]


def side_by_side(
    variants: Sequence[Variant], device: torch.device, *, rounds: int = 7, warmup: int = 2, min_span_s: float | None = None
) -> list[Timed]:
    """Warm up every variant, then time all of them in each round. min_span_s: MIN_SPAN_S of the device by default."""
    min_span_s = MIN_SPAN_S[device.type] if min_span_s is None else min_span_s
    calls = [_calls_per_round(variant, device, warmup, min_span_s) for variant in variants]
    seconds: list[list[float]] = [[] for _ in variants]
    for round_index in range(rounds):
        for offset in range(len(variants)):
            index = (offset + round_index) % len(variants)
            seconds[index].append(_seconds(variants[index], device, calls[index]))
    return [
        Timed(name=variant.name, items=variant.items, seconds=tuple(each))
        for variant, each in zip(variants, seconds, strict=True)
    ]


def median_and_range(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum, count and all values of a quantity over the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values), "each": list(values)}


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _calls_per_round(variant: Variant, device: torch.device, warmup: int, min_span_s: float) -> int:
    for _ in range(max(1, warmup)):
        variant.run()
    return max(1, math.ceil(min_span_s / max(_seconds(variant, device, 1), 1e-7)))


def _seconds(variant: Variant, device: torch.device, calls: int) -> float:
    """Seconds per call, with garbage collection off, which would slow one variant and not the next."""
    variant.prepare()
    gc.collect()
    gc.disable()
    try:
        for _ in range(int(calls * _LEAD_IN) if device.type == "cuda" else 0):
            variant.run()
        synchronize(device)
        started = time.perf_counter()
        for _ in range(calls):
            variant.run()
        synchronize(device)
        return (time.perf_counter() - started) / calls
    finally:
        gc.enable()
