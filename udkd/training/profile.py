"""A profile of training steps: a trace in RUN/profile that chrome://tracing and ui.perfetto.dev show."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP_STEPS = 5
"""Steps before the first recorded one: compilation, cuDNN's first calls, the capture of a CUDA graph."""


class StepProfiler:
    """Records `steps` training steps, WARM_UP_STEPS after step `step` of the run, with torch.profiler. Close it after use."""

    def __init__(self, folder: Path, step: int, steps: int, device: torch.device, note: Callable[[str], None]) -> None:
        self._note, self._steps, self._written = note, steps, False
        first = step + WARM_UP_STEPS + 1
        self._file = folder / "profile" / f"steps-{first}-{first + steps - 1}.json.gz"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profile: profile | None = profile(
            activities=activities,
            schedule=schedule(wait=WARM_UP_STEPS - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def step(self) -> None:
        """A training step has been queued."""
        if self._profile is not None:
            self._profile.step()
            if self._written:
                self._profile.stop()
                self._profile = None
                self._note(f"profile of {self._steps} steps: {self._file}; open it in chrome://tracing or ui.perfetto.dev")

    def close(self) -> None:
        """Stop recording; without all of its steps the trace is not kept."""
        if self._profile is not None:
            self._profile.on_trace_ready = None
            self._profile.stop()
            self._profile = None
            self._note(f"no profile: training ended before {WARM_UP_STEPS} + {self._steps} steps")

    def _write(self, recorded: profile) -> None:
        self._file.parent.mkdir(exist_ok=True)
        unfinished = self._file.with_name("unfinished.json.gz")
        recorded.export_chrome_trace(str(unfinished))
        os.replace(unfinished, self._file)
        self._written = True
