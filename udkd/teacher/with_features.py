"""A live teacher's lessons with its feature maps beside them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from udkd.data.batch import Batch
from udkd.teacher.target import TargetSource, TeacherTargets


@final
class LiveTargetsWithMaps:
    """Another's lessons, and what modules of the network behind them gave meanwhile.

    The network answers in blocks of one shape, in order, the last one padded: its maps are put together in the same way.
    """

    def __init__(self, lessons: TargetSource, network: nn.Module, modules: Sequence[str]) -> None:
        self._lessons = lessons
        self._blocks: dict[str, list[Tensor]] = {name: [] for name in modules}
        for name in self._blocks:
            network.get_submodule(name).register_forward_hook(self._keep(name))

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        """See Lessons."""
        for blocks in self._blocks.values():
            blocks.clear()
        lesson = self._lessons.lookup(batch, x_BCHW, view)
        maps = {name: torch.cat(blocks)[: len(batch.ids)] for name, blocks in self._blocks.items()}
        return replace(lesson, maps=maps)

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._blocks[name].append(output.detach())

        return hook
