"""The paper's training as most people would write it: one plain script that uses none of our code.

ImageFolder and Pillow transforms in DataLoader workers (all cores, pinned, persistent), a teacher forward pass in every step,
PyTorch's losses, one SGD per student. Mixed precision (bfloat16 autocast) is an option. The script is not handicapped:
channels_last and cudnn.benchmark are on, gradients are set to None, only a log line every 50 steps waits for the device.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

ALPHA, BETA, GAMMA, T = 0.4, 0.4, 0.2, 4.0
EPOCH_IMAGES = 130_000
"""The paper's number. A smaller folder is sampled with replacement, so that prefetching restarts only once per epoch."""


def loader(root: Path, px: int, batch: int, workers: int, device: torch.device) -> DataLoader[tuple[Tensor, Tensor]]:
    """A DataLoader as in torchvision's examples."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(px),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.4, 0.4, 0.4),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = ImageFolder(str(root / "train"), transform)
    return DataLoader(
        images,
        batch_size=batch,
        sampler=RandomSampler(images, replacement=len(images) < EPOCH_IMAGES, num_samples=EPOCH_IMAGES),
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )


def kl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher) per sample at temperature T, times T squared."""
    p = F.log_softmax(student / T, dim=1)
    return F.kl_div(F.log_softmax(teacher / T, dim=1), p, log_target=True, reduction="none").sum(1) * T * T


def train_steps(
    root: Path, *, px: int, batch: int, workers: int, amp: bool, classes: int, device: torch.device
) -> Iterator[int]:
    """Train without end; yields the number of images of each step, once the step is queued on the device."""
    torch.backends.cudnn.benchmark = True
    data = loader(root, px, batch, workers, device)
    teacher = models.resnet50(num_classes=classes).to(device).to(memory_format=torch.channels_last).eval()
    students: list[nn.Module] = [models.resnet18(num_classes=classes), models.mobilenet_v2(num_classes=classes)]
    students = [student.to(device).to(memory_format=torch.channels_last).train() for student in students]
    optimizers = [torch.optim.SGD(s.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for s in students]
    done = 0
    while True:
        for images, labels in data:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
                with torch.no_grad():
                    teacher_logits = teacher(images)
                one, two = (student(images) for student in students)
            teacher_logits, one, two = teacher_logits.float(), one.float(), two.float()
            probabilities = teacher_logits.softmax(1)
            entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(1)
            weight = 1 - entropy / math.log(classes)
            loss = torch.zeros((), device=device)
            for logits, peer_logits in ((one, two), (two, one)):
                loss = loss + ALPHA * F.cross_entropy(logits, labels)
                loss = loss + BETA * (weight * kl_loss(logits, teacher_logits)).mean()
                loss = loss + GAMMA * kl_loss(logits, peer_logits.detach()).mean()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            done += 1
            if done % 50 == 0:
                loss.item()
            yield len(labels)
