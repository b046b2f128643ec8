"""A process of test_exchange: sums of slices in every number that its group allows, one file of results for each process."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore

from tests.training.slice_inputs import COUNTS, LIKE, MORE, slice_tensors
from udkd.training.exchange import Exchange, SliceVectors
from udkd.utils.workers import WorkerGroup

SENDING = ("isend", "all_to_all_single", "all_gather_single", "all_gather_into_tensor", "all_reduce", "broadcast")


class Recorder:
    """Counts the bytes that this process sends to others through torch.distributed."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        for name in [each for each in dir(dist) if each in SENDING]:
            setattr(dist, name, self._recorded(name, getattr(dist, name)))

    def _recorded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(first: torch.Tensor, *arguments: Any, group: Any = None, **options: Any) -> Any:
            own = arguments[0] if arguments else first  # what a process sends is the second argument, or the only one
            others = dist.get_world_size(group) - 1
            share = {"isend": 1, "all_to_all_single": others / (others + 1)}.get(name, others)
            self.sent[name] = self.sent.get(name, 0) + int(own.nbytes * share)
            return real(first, *arguments, group=group, **options)

        return recorded


def main(out: Path) -> None:
    group, results, recorder = WorkerGroup.join(), {}, Recorder()
    for count in [each for each in COUNTS if each >= group.size]:
        for local in sorted({group.local_size, group.size}):
            name = f"{count} slices, {local} a machine"
            store = group.store and PrefixStore(name, group.store)
            exchange = Exchange(count, replace(group, local_size=local, local_rank=group.rank % local, store=store))
            results[f"{name}, levels"] = np.array(len(exchange._levels))
            vectors = SliceVectors(LIKE, MORE, exchange)
            for step in range(2):  # the memory is used again
                for index in exchange.own:
                    vectors.add(*slice_tensors(step, index))
                recorder.sent.clear()
                tensors, more = vectors.mean()
                results[f"{name}, step {step}"] = np.concatenate([value.reshape(-1).numpy() for value in (*tensors, more)])
                for kind, sent in recorder.sent.items():
                    results[f"{name}, step {step}, {kind}"] = np.array(sent)
            if group.size > 1:
                own = torch.stack([torch.cat([x.reshape(-1) for x in slice_tensors(1, s)[0]]) for s in exchange.own]).sum(0)
                dist.all_reduce(own)
                results[f"{name}, all_reduce"] = (own / count).numpy()
            exchange.close()
    np.savez(out / f"{os.environ['RANK']}.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
