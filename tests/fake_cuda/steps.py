"""Takes training steps on the fake device and prints its counts: `python -m tests.fake_cuda.steps RECIPES PX BATCH [CODE…]`.

RECIPES is a JSON object, name -> recipe settings; each output line is the JSON of one recipe. Then each CODE is run, with a
tensor `x`; MISTAKE on stderr precedes the traceback of each. Without the fake library the program builds it and restarts
itself with it.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch._inductor.config as inductor
from torch import nn
from torchvision.models._api import register_model

from benchmarks.common.harness import canvases, make_step, paper_recipe
from tests.fake_cuda.build import MISTAKE, build
from udkd.utils.environment import deterministic

STEPS = 4  # per epoch
COUNTS = ("launches", "captured", "replays", "graphs", "waits", "from_host", "to_host")


def tiny(weights: None = None, num_classes: int = 1000) -> nn.Module:
    """A network with one of each kind of MobileNetV2's layers, which compiles in seconds instead of minutes."""
    first = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    depthwise = [nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, num_classes)]
    return nn.Sequential(*first, *depthwise, *last)


def pooled(weights: None = None, num_classes: int = 1000) -> nn.Module:
    """The first layers of a ResNet, then `tiny`."""
    first = [nn.Conv2d(3, 3, 7, 2, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*first, tiny(num_classes=num_classes))


def counts() -> dict[str, int]:
    """The device's counts since the process started."""
    count = ctypes.CDLL(None).fake_cuda_count
    count.restype = ctypes.c_long
    return {name: count(index) for index, name in enumerate(COUNTS)}


def counts_since(before: dict[str, int]) -> dict[str, int]:
    """The counts since `before`."""
    return {name: value - before[name] for name, value in counts().items()}


def main(recipes: dict[str, list[str]], px: int, batch: int) -> None:
    """Run two epochs of each recipe: the first compiles and captures, the second costs what every later one does."""
    device = torch.device("cuda")
    inductor.triton.autotune_pointwise = False  # one variant of each kernel: none is faster on the fake device
    for network in (tiny, pooled):
        network.__module__ = f"torchvision.models.{network.__name__}"  # the only networks that a recipe accepts
        register_model()(network)
    for name, settings in recipes.items():
        before = counts()
        recipe = paper_recipe(device, 'train.compile="off"', *settings, px=px, batch=batch)
        samples = canvases(STEPS * recipe.train.batch_size, px * 8 // 7, device)
        with deterministic(recipe.train.deterministic):
            step = make_step(recipe, samples, device, architecture="squeezenet1_1")
            for _ in range(STEPS):
                step.run()
            first, before = counts_since(before), counts()
            for _ in range(STEPS):
                step.run()
        print(json.dumps({"name": name, "first": first, "second": counts_since(before)}), flush=True)


def make_mistakes(pieces: list[str]) -> None:
    """Run pieces of code that should raise."""
    for code in pieces:
        print(MISTAKE, end="", file=sys.stderr, flush=True)
        try:
            exec(code, {"torch": torch, "x": torch.ones(4, device="cuda")})
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    if hasattr(ctypes.CDLL(None), "fake_cuda_count"):
        main(json.loads(sys.argv[1]), *map(int, sys.argv[2:4]))
        make_mistakes(sys.argv[4:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.fake_cuda.steps", *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=os.environ | build(Path(folder)), check=False).returncode)
