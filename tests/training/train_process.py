"""`python -m udkd` for the tests of processes, which counts what it sends, or whose loss becomes NaN in one slice.

SENT: a folder for each rank's counts. NAN: "SLICE STEP", where the loss of a slice is NaN from a step on, counted from 0.
"""

import json
import os
from pathlib import Path
from typing import Any

from udkd.utils.launcher import exit_with_launcher

if __name__ == "__main__":
    exit_with_launcher()
    import torch

    from tests.training.exchange_process import Recorder
    from udkd.__main__ import main
    from udkd.training.sliced_step import SlicedStep
    from udkd.training.step import TrainStep

    def spoil(slice_index: int, first_step: int) -> None:
        real, calls = TrainStep.backward, 0

        def backward(self: TrainStep, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal calls
            means_RN, total = real(self, *arguments)
            if arguments[-1] == slice_index:
                calls += 1
                if calls > first_step:
                    next(self.students[0].model.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]
                    total = total * float("nan")
            return means_RN, total

        TrainStep.backward = backward  # type: ignore[method-assign, assignment]

    def record(folder: Path) -> None:
        """Of each step: what it sends, and the length of its vector."""
        recorder, steps, real = Recorder(), [], SlicedStep.__call__

        def step(self: SlicedStep, *arguments: Any) -> None:
            recorder.sent.clear()
            real(self, *arguments)
            assert self._vectors is not None
            vector = self._vectors._free[0][0]
            steps.append({"sent": dict(recorder.sent), "vector": vector.nbytes})
            (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(steps))

        SlicedStep.__call__ = step  # type: ignore[method-assign]

    if "NAN" in os.environ:
        spoil(*map(int, os.environ["NAN"].split()))
    if "SENT" in os.environ:
        record(Path(os.environ["SENT"]))
    main()
