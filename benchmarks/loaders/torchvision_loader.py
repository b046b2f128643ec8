"""The usual loader: torchvision's ImageFolder (Pillow) and PyTorch's DataLoader with worker processes that collate canvases."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as transforms

from udkd.data.dataset import Split


class ToCanvas:
    """A Pillow image as uint8 [3, S, S], padded with zeros on the right and below."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: object) -> torch.Tensor:
        pixels: torch.Tensor = transforms.pil_to_tensor(image)
        height, width = pixels.shape[1:]
        padded: torch.Tensor = transforms.pad(pixels, [0, 0, self.side - width, self.side - height])
        return padded


def write_tree(split: Split, folder: Path) -> Path:
    """Write the stored JPEGs as files into class folders."""
    for n in split.ids.tolist():
        class_folder = folder / f"{split.labels[n]:04d}"
        class_folder.mkdir(parents=True, exist_ok=True)
        (class_folder / f"{n:09d}.jpg").write_bytes(split.read(n))
    return folder


def image_loop(split: Split, tree: Path, batch_size: int, workers: int, device: torch.device) -> Callable[[int], int]:
    """A function that loads at least `count` images with a DataLoader in random order and returns their number."""
    images = ImageFolder(str(tree), transform=ToCanvas(split.side))
    loaders: dict[int, DataLoader[tuple[torch.Tensor, int]]] = {}

    def loader(count: int) -> DataLoader[tuple[torch.Tensor, int]]:
        """One loader per count, with persistent workers, so that only the first round starts them."""
        if count not in loaders:
            sampler = RandomSampler(images, replacement=count > len(images), num_samples=count)
            loaders[count] = DataLoader(
                images,
                batch_size,
                sampler=sampler,
                num_workers=workers,
                persistent_workers=True,
                multiprocessing_context="forkserver",
                pin_memory=device.type == "cuda",
            )
        return loaders[count]

    def run(count: int) -> int:
        done = 0
        for canvas, _ in loader(count):
            done += len(canvas.to(device, non_blocking=True))
        return done

    return run


def same_pixels(split: Split, tree: Path) -> bool:
    """Whether this loader yields the same canvases as ours."""
    images = ImageFolder(str(tree), transform=ToCanvas(split.side))
    by_name = {Path(path).stem: n for n, (path, _) in enumerate(images.samples)}
    ids = split.ids[:: max(1, len(split.ids) // 16)].tolist()
    return all(np.array_equal(images[by_name[f"{n:09d}"]][0].permute(1, 2, 0).numpy(), split.pixels(n)) for n in ids)
