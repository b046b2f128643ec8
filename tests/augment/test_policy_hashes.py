"""Every policy's views are the same bits however they are computed: 80 (sample, view) pairs each, 10,000 in test-long."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch

from tests.augment.view_hashes import (
    GOLDEN,
    GOLDEN_SAMPLES,
    GOLDEN_VIEWS,
    PLAIN_DIGEST,
    POLICIES,
    SAMPLES,
    VIEWS,
    Hashes,
    compiled,
    digest_of_all,
    numbers_digest,
    policy_hashes,
)
from udkd.augment import apply as augment
from udkd.augment.policies import Op

LONG = bool(os.environ.get("UDKD_LONG_TESTS"))
COUNT = {"samples": SAMPLES, "views": VIEWS} if LONG else {"samples": GOLDEN_SAMPLES, "views": GOLDEN_VIEWS}
GOLDEN_DIGESTS: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text())
REMEDY = "if this is meant, raise OPS_VERSION of udkd.augment.views and run `python -m tests.augment.view_hashes --write`"


@cache
def in_id_order(name: str) -> Hashes:
    """Batch by batch, each batch drawn alone, as a cache is built."""
    return policy_hashes(POLICIES[name], np.arange(COUNT["samples"]), 256, at_once=False, **COUNT)


def in_another_order(name: str, batch: int) -> Hashes:
    """With the views drawn for all samples at once, as in training."""
    return policy_hashes(POLICIES[name], np.random.default_rng(batch).permutation(COUNT["samples"]), batch, **COUNT)


def test_every_operation_is_in_a_policy() -> None:
    used = {op for spec in POLICIES.values() for row in spec.row_ops for op in row}
    assert used == set(Op) - {Op.IDENTITY}
    assert {spec.policy for spec in POLICIES.values()} == {
        *("none", "rand_augment", "timm_rand_augment", "trivial_augment_wide", "auto_augment", "three_augment")
    }
    assert set(GOLDEN_DIGESTS) == set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_golden_numbers(name: str) -> None:
    digest = numbers_digest(POLICIES[name], GOLDEN_SAMPLES, GOLDEN_VIEWS)
    assert digest == GOLDEN_DIGESTS[name]["numbers"], REMEDY


@pytest.mark.parametrize("name", POLICIES)
def test_golden_pixels(name: str) -> None:
    views = policy_hashes(POLICIES[name], np.arange(GOLDEN_SAMPLES), 64, samples=GOLDEN_SAMPLES, views=GOLDEN_VIEWS)
    assert digest_of_all(views) == GOLDEN_DIGESTS[name]["pixels"], REMEDY


@pytest.mark.parametrize("name", POLICIES)
def test_orders_batches_and_threads_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are also divided among threads, which is otherwise done with larger ones."""
    want = in_id_order(name)
    assert len(want) == COUNT["samples"] * COUNT["views"]
    assert len(set(want.values())) > 0.8 * len(want), "the views are not all the same"
    assert name == "none" or digest_of_all(want) != digest_of_all(in_id_order("none"))
    before = torch.get_num_threads()
    monkeypatch.setattr(augment, "_PART_VALUES", 1)
    try:
        for batch, threads in ((20 if LONG else 6, 1), (34, 2), (SAMPLES, 1)):
            torch.set_num_threads(threads)
            assert in_another_order(name, batch) == want, f"batch {batch}, {threads} threads"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", POLICIES)
def test_operations_on_all_samples_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU and in a compiled graph every operation runs on all samples: here on a CPU."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert in_another_order(name, 40) == in_id_order(name)


SWITCHES: dict[str, Callable[[], object]] = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "default float64": lambda: torch.set_default_dtype(torch.float64),
    "default bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "denormals": lambda: torch.set_flush_denormal(True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
}


@pytest.fixture
def restored_settings() -> Iterator[None]:
    """Restores the settings of the process."""
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    if torch.are_deterministic_algorithms_enabled():  # the call imports the compiler, in seconds
        torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    torch.set_flush_denormal(False)
    torch.set_autocast_enabled("cpu", False)


@pytest.mark.usefixtures("restored_settings")
@pytest.mark.parametrize("name", POLICIES)
def test_process_settings_change_no_bit(name: str) -> None:
    """Each beside those before it."""
    want = in_id_order(name)
    for switch, turn_on in SWITCHES.items():
        if LONG or switch in ("medium", "default float64", "autocast"):
            turn_on()
            assert in_another_order(name, 64) == want, switch


@pytest.mark.parametrize("seed", [1, 2] if LONG else [1])
def test_a_new_process_with_other_settings_has_the_same_bits(seed: int) -> None:
    """Of these views, and of the 10,000 plain ones of test_augment.py, which start no second process for it."""
    program = (
        f"from tests.augment.view_hashes import *; torch.manual_seed({seed}); np.random.seed({seed})\n"
        f"digests = all_digests({COUNT['samples']}, {COUNT['views']}, batch={20 * seed})\n"
        "digests |= {'10,000 views': {'pixels': digest_of_all(hashes(np.random.default_rng(8).permutation(SAMPLES), 100))}}\n"
        "print(json.dumps({name: digest['pixels'] for name, digest in digests.items()}))"
    )
    switches = {"ONEDNN_DEFAULT_FPMATH_MODE": "ANY", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "ATEN_CPU_CAPABILITY": "default"}
    environment = os.environ | switches | {"OMP_NUM_THREADS": str(seed), "PYTHONHASHSEED": str(seed)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    want = {name: digest_of_all(in_id_order(name)) for name in POLICIES}
    assert json.loads(done.stdout) == want | {"10,000 views": PLAIN_DIGEST}


@pytest.mark.long
@pytest.mark.parametrize("name", POLICIES)
def test_compiled_views_are_the_same_bits(name: str) -> None:
    """By inductor, in batches of one size and in shuffled order."""
    torch._dynamo.reset()
    order = np.random.default_rng(1).permutation(COUNT["samples"])
    assert policy_hashes(POLICIES[name], order, 500, compiled(), **COUNT) == in_id_order(name)
