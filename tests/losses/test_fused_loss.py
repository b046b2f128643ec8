"""The fused loss against the oracle in float64, by Triton's interpreter; and its refusal where it cannot run."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.cli import commands
from tests.timeouts import scaled
from udkd.config.loading import load_recipe
from udkd.training.build_step import make_loss
from udkd.utils.errors import ConfigError


def test_it_is_imported_only_when_chosen() -> None:
    done = commands.run(module="tests.losses.trainer_imports")
    assert done.out.split() == ["udkd.training.trainer", "False"], done


def test_values_and_gradients_against_the_oracle() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "tests.losses.fused_loss_check"],
        capture_output=True,
        text=True,
        cwd=commands.ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        timeout=scaled(280),
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == (28 if os.environ.get("UDKD_LONG_TESTS") else 20)
    for row in rows:
        assert row["finite"], row
        assert row["dtype"], row
        # The smallest divergences are 1e-9 of numbers near 5: float32 holds such a difference to 2e-5 at best.
        assert row["value"] < (5e-5 if "scale 0.001" in row["of"] else 1e-6), row
        assert row["grad"] < (1.2e-2 if row["of"] == "bfloat16" else 2e-5), row


@pytest.mark.parametrize(
    ("students", "classes", "dtype", "beta", "gamma", "direction"),
    [
        (2, 100, "bf16", 0.4, 0.2, "reverse"),
        (1, 100, "fp32", 0.4, 0.0, "forward"),
        (3, 10, "fp32", 0.4, 0.2, "forward"),
        (2, 1000, "fp32", 0.0, 0.0, "reverse"),
    ],
)
def test_it_compiles_for_a_gpu(students: int, classes: int, dtype: str, beta: float, gamma: float, direction: str) -> None:
    """To machine code for Hopper, without one: the interpreter accepts what the compiler refuses, such as a type hint."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from udkd.losses import fused as fused_loss

    constants = {"HARD": True, "HAS_TEACHER": beta > 0, "PEERS": gamma > 0, "TEMPERATURE": 4.0, "SMOOTHING": 0.1}
    constants |= {"WEIGHTED": beta > 0}
    constants |= {"STUDENT_FIRST": direction == "reverse", "N": students, "K": triton.next_power_of_2(classes)}
    pointers = (f"*{dtype}",) * students
    signature = {"logits": pointers, "grads": pointers, "rows_ptr": "*fp32", "labels_ptr": "*i64", "teacher_ptr": "*fp16"}
    signature |= {"weight_ptr": "*fp32", "weights_ptr": "*fp32", "batch": "i32", "classes": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=fused_loss._kernel, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert made.asm["cubin"]


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"train\.loss_impl is fused.*set train\.loss_impl to compiled"):
        make_loss(load_recipe("smoke", ['train.loss_impl="fused"']), torch.device("cpu"))
