"""Random inputs of a report with realistic statistics, for its tests and for looking at a page.

`python -c "from pathlib import Path; from tests.report.fake_run import fake; from udkd.report.report import write_report; \
write_report(fake(Path('page')))"` writes a page.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.report.fake_predictions import fake_predictions, predictions_of
from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
from udkd.report.inputs import Baseline, DataFacts, ReportInputs
from udkd.training.predictions import TeacherPredictions

NAMES = (
    "red kite",
    "buzzard",
    "tabby, tabby cat",
    "Egyptian cat",
    "minivan",
    "estate car",
    "espresso",
    "cappuccino",
    "oak",
    "elm",
)
EPOCHS = 12


def fake(
    out: Path,
    *,
    num_classes: int = 10,
    samples: int = 1600,
    val_samples: int = 300,
    overrides: tuple[str, ...] = (),
    epochs: int = EPOCHS,
) -> ReportInputs:
    """Inputs of a complete report without a baseline; equal arguments give equal inputs."""
    recipe = load_recipe("quickstart", [f"train.epochs={epochs}", *overrides])
    names = tuple(
        NAMES[label] if label < len(NAMES) else f"{NAMES[label % 10]} {label}, sort {label}" for label in range(num_classes)
    )
    targets = fake_targets(samples, num_classes)
    students = tuple(recipe.student_names())
    predictions = fake_predictions(num_classes, students, samples=val_samples, targets=targets)
    val_labels = dict(zip(predictions.ids.tolist(), predictions.labels.tolist(), strict=True))
    return ReportInputs(
        name="evening-run",
        recipe=recipe,
        metrics=fake_metrics(recipe, samples),
        evaluation=fake_evaluation(recipe, num_classes),
        provenance={
            "dataset": "data/birds-and-coffee",
            "dataset_digest": "5f" * 32,
            "cache": "cache",
            "cache_key": {"teacher": "resnet50", "teacher_sha256": "a7" * 32, "policy": "canonical", "views": {"size_px": 48}},
            "versions": {"udkd": "0.1.0", "torch": "2.15.0", "numpy": "2.4.6"},
            "hardware": {"device": "AMD EPYC", "cores": 2, "threads": 2},
            "command": "udkd train quickstart --data data/birds-and-coffee --cache cache --out evening-run",
            "format": 1,
        },
        class_names=names,
        data=DataFacts(train_images=samples, val_images=300, num_classes=num_classes, side=64, imagenet100=False),
        targets=targets,
        thumbnail=lambda sample_id: fake_image(sample_id, int(targets.labels[np.flatnonzero(targets.ids == sample_id)[0]])),
        teacher={"architecture": "resnet50", "weights_sha256": "a7" * 32},
        out=out,
        predictions=predictions,
        val_thumbnail=lambda sample_id: fake_image(sample_id + 10**6, val_labels[sample_id]),
    )


def fake_baseline(inputs: ReportInputs, skill: float = -0.4, **changes: float) -> Baseline:
    """A run of the same students with another seed and skill, by plain knowledge distillation."""
    assert inputs.predictions is not None
    names = inputs.predictions.names
    predictions = fake_predictions(
        inputs.predictions.num_classes, names, samples=len(inputs.predictions.ids), skill=skill, seed=1
    )
    config = inputs.recipe.to_dict()
    config["loss"] = dict(config["loss"]) | {"alpha": 0.3, "beta": 0.7, "gamma": 0.0, "sample_weight": "constant"} | changes
    return Baseline(
        name="plain-run",
        student_names=names,
        architectures=tuple(student.architecture for student in inputs.recipe.students),
        predictions=predictions,
        config=config,
    )


def fake_logits(samples: int, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
    """Ids, labels and logits of a teacher that confuses classes 2k and 2k + 1, and is surer of some classes than of others."""
    rng = np.random.default_rng(0)
    ids = np.arange(samples) + 1 + np.arange(samples) // 40  # 0, 41, … are excluded
    labels = np.sort(rng.integers(0, num_classes, samples)).astype(np.int64)
    logits = rng.normal(0, 1.3, (samples, num_classes))
    strength = rng.gamma(6.0, 1.1, samples) + 1.5 * np.sin(labels)
    rival = rng.gamma(2.0, 1.3, samples)
    rows = np.arange(samples)
    logits[rows, labels] += strength
    logits[rows, np.minimum(labels ^ 1, num_classes - 1)] += rival
    return ids, labels, (logits - logits.max(1, keepdims=True)).astype(np.float16)


def fake_targets(samples: int, num_classes: int) -> TeacherPredictions:
    """The targets of `fake_logits`, as from a cache."""
    ids, labels, logits = fake_logits(samples, num_classes)
    return TeacherPredictions(ids=ids, labels=labels, predictions=predictions_of(logits, labels), num_classes=num_classes)


def fake_metrics(recipe: Recipe, samples: int) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl with plausible curves."""
    rng = np.random.default_rng(1)
    students, epochs = len(recipe.students), recipe.train.epochs
    steps = samples // recipe.train.batch_size
    rows = []
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        at = [1 - np.exp(-3.2 * done * (1 - 0.12 * index)) for index in range(students)]
        val = [100 * (0.1 + 0.66 * fraction) + rng.normal(0, 0.9) for fraction in at]
        hard = [2.3 - 1.55 * fraction + rng.normal(0, 0.02) for fraction in at]
        teacher = [3.1 - 2.2 * fraction + rng.normal(0, 0.03) if recipe.loss.beta else 0.0 for fraction in at]
        peer = [0.2 + 1.1 * fraction * (1 - 0.7 * fraction) + rng.normal(0, 0.01) if students > 1 else 0.0 for fraction in at]
        loss = recipe.loss
        rows.append(
            {
                "epoch": epoch,
                "step": epoch * steps,
                "lr": [student.lr * 0.5 * (1 + np.cos(np.pi * done)) for student in recipe.students],
                "seconds": 14.0 + rng.normal(0, 0.2),
                "images_per_s": 114.0 + rng.normal(0, 2),
                "view": epoch - 1,
                "train": {
                    "loss": [
                        loss.alpha * h + loss.beta * t + loss.gamma * p for h, t, p in zip(hard, teacher, peer, strict=True)
                    ],
                    "hard": hard,
                    "teacher": teacher,
                    "peer": peer,
                    "top1": [100 * (0.1 + 0.58 * fraction) for fraction in at],
                },
                "val": {
                    "students": [{"top1": top1, "top5": min(99.3, top1 + 23), "loss": 1.0} for top1 in val],
                    "ensemble": {"top1": max(val) + 1.1, "top5": 98.7, "loss": 0.8},
                },
            }
        )
    return rows


def fake_evaluation(recipe: Recipe, num_classes: int) -> dict[str, Any]:
    """The values of eval.json."""
    sizes = {"resnet18": 11_181_642, "mobilenet_v2": 2_236_682, "squeezenet1_1": 727_626}
    return {
        "split": "val",
        "num_samples": 300,
        "num_classes": num_classes,
        "step": 300,
        "students": [
            {
                "name": name,
                "parameters": sizes.get(student.architecture, 5_000_000),
                "top1": 71.0 + 4 / 3 - 2 * index,
                "top5": 97.0 - index,
                "loss": 0.9,
            }
            for index, (name, student) in enumerate(zip(recipe.student_names(), recipe.students, strict=True))
        ],
        "ensemble": {"top1": 73.0 + 2 / 3, "top5": 98.0, "loss": 0.8},
        "teacher": {"name": "resnet50", "parameters": 23_528_522, "top1": 77.0, "top5": 98.0 + 1 / 3, "loss": 0.7},
    }


def fake_image(sample_id: int, label: int) -> NDArray[np.uint8]:
    """A picture like a stored JPEG: a sky, a ground and an object in its class's colour, with JPEG artefacts."""
    rng = np.random.default_rng(sample_id)
    height, width = int(rng.integers(44, 65)), int(rng.integers(44, 65))
    y, x = np.mgrid[0:height, 0:width]
    sky, ground, thing = (
        rng.integers(90, 240, 3),
        rng.integers(30, 150, 3),
        np.array([200, 60, 40]) * (label + 1) * 37 % 220 + 20,
    )
    horizon = height * rng.uniform(0.4, 0.8) + 3 * np.sin(x / 9 + sample_id)
    pixels = np.where((y < horizon)[..., None], sky - (y[..., None] // 2), ground + rng.integers(-18, 18, (height, width, 1)))
    centre = rng.uniform(0.3, 0.7, 2) * (height, width)
    inside = ((y - centre[0]) / 14) ** 2 + ((x - centre[1]) / (10 + label % 7)) ** 2 < 1
    pixels = np.where(inside[..., None], thing + (x + y)[..., None] % 13 * 4, pixels)
    data = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=80)
    return np.asarray(Image.open(data))
