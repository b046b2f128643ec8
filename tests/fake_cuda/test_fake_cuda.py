"""Training steps on the fake CUDA device: launches, waits and copies of a step, and the rules of graph capture."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda.build import MISTAKE, build, missing
from tests.timeouts import scaled

ROOT = Path(__file__).parents[2]
MISSING = missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"no fake CUDA device: {MISSING}")

TINY, RESNET = (f'students=[{{architecture="{name}"}}]' for name in ("tiny", "resnet18"))
TWO = 'students=[{architecture="tiny"}, {architecture="pooled"}]'
PAPER: dict[str, list[str]] = {"the paper's": [], "larger": ["train.batch_size=16"]}  # ResNet-18 and MobileNetV2
ADAMW = "{architecture='tiny', optimizer='AdamW', decay_1d=false, clip_norm=1.0}"
RMSPROP = "{architecture='pooled', optimizer='RMSprop'}"
FLOAT16 = ['train.precision="float16"', "train.accumulate=2", f"students=[{ADAMW}, {RMSPROP}]"]
STRONG = [  # every kind of later field: rows of operations, colours in integers, boxes of noise, both ways to mix
    'views.policy="rand_augment"',
    'views.ops=[{op="blur", low=0.1, high=2.0, prob=0.5}, {op="hue", low=-0.1, high=0.1}]',
    'views.jitter="uint8"',
    "views.erase_prob=0.25",
    'views.erase_fill="noise"',
    "views.mixup=0.8",
    "views.cutmix=1.0",
    "teacher.views=1",
]
VARIANTS: dict[str, list[str]] = {
    "weight average": ["train.ema_decay=0.9"],
    "module swaps": ["perf.saved_relu6=true", "perf.gathered_pool=true"],
    "live teacher": ['teacher.source="live"', "teacher.views=1"],
    "loss schedule": ['loss.schedules.beta.kind="linear"', "loss.schedules.beta.to=0.1"],
    "channels first": ["train.channels_last=false"],
    "float32": ['train.precision="float32"'],
    "slices, deterministic": ["train.slices=4", "train.deterministic=true"],
    "strong views": [*STRONG, 'train.precision="float16"', "train.accumulate=2"],
    "fused loss": ['train.loss_impl="fused"'],
    "resident": ["train.cuda_graph=false"],
    "streamed": ['train.input="stream"', "train.cuda_graph=false"],
}
RECIPES = (
    PAPER
    | {"compiled": ['train.compile="all"', TINY], "float16 in parts, other optimizers": FLOAT16}
    | {name: [*settings, TWO] for name, settings in VARIANTS.items()}
)
COMPILED: dict[str, list[str]] = {  # take minutes to compile
    "ResNet compiled": ['train.compile="all"', RESNET],
    "ResNet combined": ['train.compile="all"', "perf.combo_kernels=true", RESNET],
}
STRONG_COMPILED = {"strong views compiled": [*STRONG, 'train.compile="all"', TINY]}  # so does this
LONG = (
    COMPILED
    | {"compiled loss": ['train.loss_impl="compiled"']}
    | STRONG_COMPILED
    | {"strong views, float32": [*STRONG, 'train.precision="float32"', TWO]}
    | {"streamed strong views": [*STRONG, 'train.input="stream"', "train.cuda_graph=false", TWO]}
    | {f"{name}, the paper's networks": settings for name, settings in VARIANTS.items()}
)
EAGER = ("resident", "streamed")  # without a CUDA graph


def captured(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(EAGER)]


MISTAKES = {
    "during a stream capture": "with torch.cuda.graph(torch.cuda.CUDAGraph()): x.sum().item()",
    "was not joined": """
other = torch.cuda.Stream()
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        x * 2""",
    "outside the captured streams": """
other = torch.cuda.Stream()
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    with torch.cuda.stream(other):
        x.zero_()""",
}


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process with the fake device. It compiles in-process: compile workers would import PyTorch first."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | build(tmp_path_factory.mktemp("fake_cuda")) | {"PYTHONPATH": path, "TORCHINDUCTOR_COMPILE_THREADS": "1"}


@pytest.fixture(scope="module")
def outputs(variables: dict[str, str]) -> tuple[str, list[str]]:
    """Of one process that takes the steps of all recipes and then makes the mistakes: stdout, and stderr in parts."""
    recipes = RECIPES | (LONG if os.environ.get("UDKD_LONG_TESTS") else {})
    command = [sys.executable, "-m", "tests.fake_cuda.steps", json.dumps(recipes), "32", "8", *MISTAKES.values()]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=scaled(900))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr.split(MISTAKE)


@pytest.fixture(scope="module")
def epochs(outputs: tuple[str, list[str]]) -> dict[str, dict[str, dict[str, int]]]:
    """Recipe -> the device's counts in its first and second epoch."""
    recipes = RECIPES | (LONG if os.environ.get("UDKD_LONG_TESTS") else {})
    printed, (errors, *_) = outputs
    assert "fake CUDA:" not in errors, [line for line in errors.splitlines() if line.startswith("fake CUDA:")]
    lines: list[dict[str, Any]] = [json.loads(line) for line in printed.splitlines()]
    assert [line["name"] for line in lines] == list(recipes)
    return {line.pop("name"): line for line in lines}


@pytest.mark.parametrize(
    "name",
    [*captured(RECIPES), *(pytest.param(name, marks=pytest.mark.long) for name in captured(LONG))],
)
def test_a_captured_step_is_one_launch_and_never_waits(epochs: dict[str, Any], name: str) -> None:
    first, second = epochs[name]["first"], epochs[name]["second"]
    assert first["graphs"] == 1, "captured once, for all epochs"
    assert first["replays"] == second["replays"] == 4
    assert second["captured"] == second["waits"] == second["to_host"] == 0
    # Besides the graphs, only the epoch's schedule and each step's ids are copied.
    assert second["launches"] - second["replays"] < 30


@pytest.mark.parametrize("name", [*EAGER, pytest.param("streamed strong views", marks=pytest.mark.long)])
def test_a_step_without_a_graph_does_not_wait_either(epochs: dict[str, Any], name: str) -> None:
    second = epochs[name]["second"]
    assert second["replays"] == second["graphs"] == 0
    assert second["launches"] > 4 * 250
    assert second["waits"] <= 1, "only the copy of the epoch's order waits"


def test_launches_of_a_step_do_not_depend_on_the_batch_size(epochs: dict[str, Any]) -> None:
    """A convolution without cuDNN takes two launches per image."""
    few, many = (epochs[name]["first"]["captured"] for name in ("the paper's", "larger"))
    assert abs(many - few) < 10
    assert few < 1800


def test_a_compiled_step_has_few_launches(epochs: dict[str, Any]) -> None:
    assert epochs["compiled"]["first"]["captured"] < 150, "98 with PyTorch 2.14"


@pytest.mark.long
def test_all_operations_of_compiled_views_take_few_launches(epochs: dict[str, Any]) -> None:
    """One graph without a break, lowered to Triton: the step takes few launches more than one of plain views."""
    (name,) = STRONG_COMPILED
    assert epochs[name]["first"]["captured"] - epochs["compiled"]["first"]["captured"] < 100, "60 with PyTorch 2.14"


@pytest.mark.long
def test_a_compiled_resnet_has_few_launches_and_combined_kernels_fewer_still(epochs: dict[str, Any]) -> None:
    compiled, combined = (epochs[name]["first"]["captured"] for name in COMPILED)
    assert compiled < 300, "248 with PyTorch 2.14"
    assert combined < 0.85 * compiled


def test_the_fake_rejects_what_cuda_rejects(outputs: tuple[str, list[str]]) -> None:
    _, (_, *errors) = outputs
    assert len(errors) == len(MISTAKES), errors
    for expected, output in zip(MISTAKES, errors, strict=True):
        assert [message for message in MISTAKES if message in output] == [expected], output
