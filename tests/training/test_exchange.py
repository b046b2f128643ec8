"""Sums of slices: the bits of one binary tree for any number of processes and machines, and no more bytes than a ring sends."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.cli import commands
from tests.factories import small_recipe
from tests.training.slice_inputs import COUNTS, LIKE, MORE, slice_tensors
from udkd.training.exchange import Exchange, SliceVectors, require_divisible
from udkd.utils.errors import ConfigError
from udkd.utils.workers import WorkerGroup

LENGTH = sum(tensor.numel() for tensor in LIKE) + MORE
GROUPS = ("1", "2", "4", "4:2", "8:2", "8:4")
"""Processes, and how many of them each machine has."""


def tree(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The sum as a binary tree, in float32."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return tree(parts[:middle]) + tree(parts[middle:])


def expected(count: int, step: int) -> NDArray[np.float32]:
    flat = [torch.cat([x.reshape(-1) for each in slice_tensors(step, index) for x in each]).numpy() for index in range(count)]
    return tree(flat) / np.float32(count)


def test_the_order_matters_for_these_inputs() -> None:
    flat = [slice_tensors(1, index)[0][1].numpy() for index in range(4)]
    assert (tree(flat) != ((flat[0] + flat[1]) + flat[2]) + flat[3]).any()
    assert (tree(flat) != tree([flat[0], flat[2], flat[1], flat[3]])).any()


@pytest.mark.parametrize("group", GROUPS)
def test_every_process_has_the_bits_of_one_tree(tmp_path: Path, group: str) -> None:
    """Also where a machine has some of the processes, and in memory that the step before has used."""
    size, _, local = group.partition(":")
    assert commands.run(group, "tests.training.exchange_process", tmp_path, module="tests.launcher").code == 0
    found = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(int(size))]
    for count in [count for count in COUNTS if count >= int(size)]:
        for per_machine in {int(local or size), int(size)}:
            name = f"{count} slices, {per_machine} a machine"
            assert {int(results[f"{name}, levels"]) for results in found} == {(size > "1") + (1 < per_machine < int(size))}
            for step in range(2):
                for results in found:
                    assert results[f"{name}, step {step}"].tobytes() == expected(count, step).tobytes(), name
                    sent = {key: int(value) for key, value in results.items() if key.startswith(f"{name}, step {step}, ")}
                    _few_bytes(sent, int(size), count)
            if int(size) > 2:
                reduced = [results[f"{name}, all_reduce"] for results in found]
                assert any((each != expected(count, 1)[: len(each)]).any() for each in reduced), "the control has other bits"


def _few_bytes(sent: dict[str, int], size: int, count: int) -> None:
    """As many as a ring all-reduce sends."""
    assert {name.rpartition(", ")[2] for name in sent} <= {"isend"}
    vector = 4 * (LENGTH + -LENGTH % count)
    assert sum(sent.values()) <= 2 * (size - 1) / size * vector * 1.01
    assert size == 1 or sum(sent.values()) >= 2 * (size - 1) / size * vector * 0.99, "all of them are counted"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_batch_is_shared_by_slices(size: int) -> None:
    order, parts = np.random.default_rng(0).permutation(48), []
    for rank in range(size):
        exchange = Exchange.__new__(Exchange)  # connects to nobody
        exchange.slices, exchange.by_student, exchange.group = 4, False, WorkerGroup(rank=rank, size=size)
        parts.append(exchange.share(order, 16).reshape(3, -1))
        assert list(exchange.own) == list(range(4))[rank * 4 // size : (rank + 1) * 4 // size]
    assert np.array_equal(np.concatenate(parts, axis=1).reshape(-1), order)


@pytest.mark.parametrize(("images", "batch"), [(44, 16), (1, 16), (64, 16), (65, 16), (5, 8)])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_each_image_is_evaluated_once(size: int, images: int, batch: int) -> None:
    ids, batches = np.random.default_rng(0).permutation(images), []
    for rank in range(size):
        exchange = Exchange.__new__(Exchange)
        exchange.group = WorkerGroup(rank=rank, size=size)
        batches.append(exchange.batches(ids, batch))
    in_order = [batches[turn % size][turn // size] for turn in range(-(-images // batch))]
    assert sum(map(len, batches)) == len(in_order)
    assert np.array_equal(np.concatenate(in_order), ids)
    assert all(len(each) == batch for each in in_order[:-1])


def test_an_infinite_number_does_not_stay_in_the_memory() -> None:
    vectors = SliceVectors([torch.empty(3)], 1, Exchange(4))
    for value in (float("inf"), 1.0, 2.0, 3.0):
        vectors.add([torch.full((3,), value)], [torch.zeros(1)])
    assert vectors.mean()[0][0].isinf().all()
    for value in (4.0, 1.0, 2.0, 3.0):
        vectors.add([torch.full((3,), value)], [torch.ones(1)])
    tensors, more = vectors.mean()
    assert tensors[0].tolist() == [2.5] * 3
    assert more.tolist() == [1.0]


@pytest.mark.parametrize(("slices", "size"), [(1, 2), (2, 4), (4, 3), (8, 5), (8, 6), (16, 12)])
def test_processes_that_cannot_share_the_slices(slices: int, size: int) -> None:
    recipe = small_recipe("train.batch_size=64", f"train.slices={slices}")
    with pytest.raises(ConfigError, match=rf"^{size} processes .* train.slices is {slices}; expected one .*; \w+") as error:
        require_divisible(recipe.train, 2, size)
    assert "\n" not in str(error.value)
