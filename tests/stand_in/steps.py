"""Takes steps of recipes on the stand-in and prints what each did, a line of JSON. Argument: names and settings, as JSON."""

import ctypes
import json
import sys

import torch

from benchmarks.common.rig import canvases, make, paper_recipe

PX, BATCH, STEPS = 32, 8, 4  # steps of an epoch
COUNTS = ("launches", "recorded", "replays", "graphs", "waits", "from_host", "to_host", "complaints")


def counts() -> dict[str, int]:
    """What the device was asked for since the process began."""
    count = ctypes.CDLL(None).stand_in_count
    count.restype = ctypes.c_long
    return {name: count(place) for place, name in enumerate(COUNTS)}


def change(before: dict[str, int]) -> dict[str, int]:
    """What it was asked for since then."""
    return {name: value - before[name] for name, value in counts().items()}


def main(recipes: dict[str, list[str]]) -> None:
    """The first epoch builds and records, the second is what every later one costs."""
    device = torch.device("cuda")
    for name, settings in recipes.items():
        before = counts()
        recipe = paper_recipe(device, 'train.compile="off"', *settings, px=PX, batch=BATCH)
        made = make(recipe, canvases(STEPS * recipe.train.batch, 36, device), device, architecture="squeezenet1_1")
        for _ in range(STEPS):
            made.run()
        first, begun = change(before), counts()
        for _ in range(STEPS):
            made.run()
        print(json.dumps({"name": name, "first": first, "second": change(begun)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
