"""Takes steps on the stand-in and prints what each did, in JSON: `python -m tests.fake_cuda.steps RECIPES PX BATCH`.

RECIPES is a JSON object of names and settings. Without the stand-in the program builds it and starts itself again on it.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch._inductor.config as inductor
from torch import nn
from torchvision.models._api import register_model

from benchmarks.common.harness import canvases, make_step, paper_recipe
from tests.fake_cuda.build import build

STEPS = 4  # of an epoch
COUNTS = ("launches", "recorded", "replays", "graphs", "waits", "from_host", "to_host")


def tiny(weights: None = None, num_classes: int = 1000) -> nn.Module:
    """A network with one of each of MobileNetV2's layers, for what is compiled: seconds instead of minutes."""
    first = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    depthwise = [nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, num_classes)]
    return nn.Sequential(*first, *depthwise, *last)


def pooled(weights: None = None, num_classes: int = 1000) -> nn.Module:
    """The same behind ResNet's first layers."""
    first = [nn.Conv2d(3, 3, 7, 2, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*first, tiny(num_classes=num_classes))


def counts() -> dict[str, int]:
    """What the device was asked for since the process began."""
    count = ctypes.CDLL(None).fake_cuda_count
    count.restype = ctypes.c_long
    return {name: count(place) for place, name in enumerate(COUNTS)}


def change(before: dict[str, int]) -> dict[str, int]:
    """What it was asked for since then."""
    return {name: value - before[name] for name, value in counts().items()}


def main(recipes: dict[str, list[str]], px: int, batch: int) -> None:
    """The first epoch builds and records, the second is what every later one costs."""
    device = torch.device("cuda")
    inductor.triton.autotune_pointwise = False  # one variant of each kernel: none is quicker than another here
    for network in (tiny, pooled):
        network.__module__ = f"torchvision.models.{network.__name__}"  # where the networks come from that a recipe may name
        register_model()(network)
    for name, settings in recipes.items():
        before = counts()
        recipe = paper_recipe(device, 'train.compile="off"', *settings, px=px, batch=batch)
        rows = canvases(STEPS * recipe.train.batch_size, px * 8 // 7, device)
        step = make_step(recipe, rows, device, architecture="squeezenet1_1")
        for _ in range(STEPS):
            step.run()
        first, begun = change(before), counts()
        for _ in range(STEPS):
            step.run()
        print(json.dumps({"name": name, "first": first, "second": change(begun)}), flush=True)


if __name__ == "__main__":
    if hasattr(ctypes.CDLL(None), "fake_cuda_count"):
        main(json.loads(sys.argv[1]), *map(int, sys.argv[2:]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            again = [sys.executable, "-m", "tests.fake_cuda.steps", *sys.argv[1:]]
            sys.exit(subprocess.run(again, env=os.environ | build(Path(folder)), check=False).returncode)
