"""Steps on a CUDA device without kernels: what the host gives it, what it may not do while a graph is recorded."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patience
from tests.stand_in.build import build, missing

ROOT = Path(__file__).parents[2]
WHY = missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=f"no stand-in for CUDA: {WHY}")

TINY, RESNET = (f'students=[{{architecture="{name}"}}]' for name in ("tiny", "resnet18"))
TWO = 'students=[{architecture="tiny"}, {architecture="pooled"}]'
PAPER: dict[str, list[str]] = {"the paper's": [], "larger": ["train.batch_size=16"]}  # ResNet-18 and MobileNetV2
VARIANTS: dict[str, list[str]] = {
    "averaged": ["train.ema_decay=0.9"],
    "levers": ["perf.saved_relu6=true", "perf.gathered_pool=true"],
    "live teacher": ['teacher.source="live"', "teacher.views=1"],
    "moving weights": ['loss.schedules.beta.shape="linear"', "loss.schedules.beta.to=0.1"],
    "channels first": ["train.channels_last=false"],
    "float32": ['train.precision="float32"'],
    "fused loss": ['train.loss_impl="fused"'],
    "resident": ['train.input="resident"'],
    "streamed": ['train.input="stream"'],
}
RECIPES = PAPER | {"compiled": ['train.compile="all"', TINY]} | {name: [*given, TWO] for name, given in VARIANTS.items()}
COMPILED: dict[str, list[str]] = {  # minutes of the compiler's
    "ResNet compiled": ['train.compile="all"', RESNET],
    "ResNet combined": ['train.compile="all"', "perf.combo_kernels=true", RESNET],
}
LONG = (
    COMPILED
    | {"compiled loss": ['train.loss_impl="compiled"']}
    | {f"{name}, the paper's networks": given for name, given in VARIANTS.items()}
)
PLAIN = ("resident", "streamed")


def recorded(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(PLAIN)]


MISTAKES = {
    "while a stream is recorded": "with torch.cuda.graph(torch.cuda.CUDAGraph()): x.sum().item()",
    "was not joined": """
other = torch.cuda.Stream()
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        x * 2""",
    "beside the recorded streams": """
other = torch.cuda.Stream()
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    with torch.cuda.stream(other):
        x.zero_()""",
}

ONE_BY_ONE = """
import sys, traceback, torch
for mistake in sys.argv[1:]:
    x = torch.ones(4, device='cuda')
    try:
        exec(mistake)
    except Exception:
        traceback.print_exc()
    print('next', file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process with the stand-in. What compiles does so itself: others would import PyTorch first."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | build(tmp_path_factory.mktemp("stand_in")) | {"PYTHONPATH": path, "TORCHINDUCTOR_COMPILE_THREADS": "1"}


@pytest.fixture(scope="module")
def taken(variables: dict[str, str]) -> dict[str, dict[str, dict[str, int]]]:
    """What every recipe's first and second epoch asked of the device."""
    recipes = RECIPES | (LONG if os.environ.get("UDKD_LONG_TESTS") else {})
    command = [sys.executable, "-m", "tests.stand_in.steps", json.dumps(recipes), "32", "8"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=patience(900))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stand-in:" not in done.stderr, [line for line in done.stderr.splitlines() if line.startswith("stand-in:")]
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == list(recipes)
    return {line.pop("name"): line for line in lines}


@pytest.mark.parametrize(
    "name",
    [*recorded(RECIPES), *(pytest.param(name, marks=pytest.mark.long) for name in recorded(LONG))],
)
def test_a_recorded_step_is_one_launch_and_never_waits(taken: dict[str, Any], name: str) -> None:
    first, second = taken[name]["first"], taken[name]["second"]
    assert first["graphs"] == 1, "recorded once, for all epochs"
    assert first["replays"] == second["replays"] == 4
    assert second["recorded"] == second["waits"] == second["to_host"] == 0
    # The epoch's plan is copied once, a step's ids each time: beside the graphs that is all.
    assert second["launches"] - second["replays"] < 30


@pytest.mark.parametrize("name", PLAIN)
def test_a_step_that_is_not_recorded_does_not_wait_either(taken: dict[str, Any], name: str) -> None:
    second = taken[name]["second"]
    assert second["replays"] == second["graphs"] == 0
    assert second["launches"] > 4 * 250
    assert second["waits"] <= 1, "an epoch's order is copied, and that waits"


def test_a_step_s_launches_do_not_depend_on_its_images(taken: dict[str, Any]) -> None:
    """A convolution that PyTorch does without cuDNN is two launches for each image."""
    few, many = (taken[name]["first"]["recorded"] for name in ("the paper's", "larger"))
    assert abs(many - few) < 10
    assert few < 1800


def test_a_compiled_step_has_few_launches(taken: dict[str, Any]) -> None:
    assert taken["compiled"]["first"]["recorded"] < 150, "98 with PyTorch 2.14"


@pytest.mark.long
def test_a_compiled_resnet_has_few_launches_and_combined_kernels_fewer_still(taken: dict[str, Any]) -> None:
    compiled, combined = (taken[name]["first"]["recorded"] for name in COMPILED)
    assert compiled < 300, "248 with PyTorch 2.14"
    assert combined < 0.85 * compiled


def test_the_stand_in_refuses_what_cuda_does(variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, *MISTAKES.values()],
        env=variables,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    answers = done.stderr.split("next\n")
    assert len(answers) == len(MISTAKES) + 1, done.stderr
    for said, answer in zip(MISTAKES, answers, strict=False):
        assert [name for name in MISTAKES if name in answer] == [said], answer
