"""A teacher's predictions are the same bits whatever else is in the batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.factories import make_dataset, make_teacher, write_small_teacher
from udkd.augment.preprocessing import NetworkInput
from udkd.models.build import build
from udkd.teacher.frozen import FrozenTeacher, require_same_classes
from udkd.teacher.targets import pack
from udkd.utils.errors import DataError, MismatchError


def teacher(architecture: str, batch: int, precision: str = "float32", channels_last: bool = True) -> FrozenTeacher:
    model = build(architecture, 10, image_px=32, seed=1).eval().requires_grad_(False)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return FrozenTeacher(
        input=NetworkInput(size_px=32),
        model=model,
        architecture=architecture,
        weights_sha256="0" * 64,
        num_classes=10,
        device=torch.device("cpu"),
        batch=batch,
        precision=precision,
        channels_last=channels_last,
    )


def images(count: int) -> torch.Tensor:
    values = torch.arange(count * 3 * 32 * 32, dtype=torch.int64) * 2654435761 % 1021
    return (values / 255 - 2).view(count, 3, 32, 32).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch", [5, 16])
@pytest.mark.parametrize(
    ("architecture", "precision", "channels_last", "threads"),
    [
        ("resnet18", "float32", True, 1),
        ("resnet18", "float32", True, 2),
        ("mobilenet_v2", "float32", False, 2),
        ("squeezenet1_1", "bfloat16", True, 1),
        ("squeezenet1_1", "float16", True, 1),
    ],
)
def test_other_rows_of_the_batch_do_not_matter(
    architecture: str, precision: str, channels_last: bool, threads: int, batch: int
) -> None:
    """Other neighbours, other positions in the block, incomplete blocks, one row alone: the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        frozen, x = teacher(architecture, batch, precision, channels_last), images(21)
        full = frozen.targets(x)
        assert full.logits.shape == (21, 10)
        assert not full.logits.requires_grad
        order = torch.randperm(21, generator=torch.Generator().manual_seed(batch))
        shuffled = frozen.targets(x[order])
        assert torch.equal(shuffled.logits, full.logits[order])
        assert torch.equal(shuffled.entropy, full.entropy[order])
        for rows in (slice(20, 21), slice(3, 12)):
            part = frozen.targets(x[rows])
            assert torch.equal(part.logits, full.logits[rows])
            assert torch.equal(part.entropy, full.entropy[rows])
        assert torch.equal(frozen.targets(x.contiguous()).logits, full.logits), "whatever the layout of the images"
    finally:
        torch.set_num_threads(before)


def test_the_network_sees_only_one_shape() -> None:
    """Small networks often round alike for different shapes, so equal bits alone would not show a block left unpadded."""
    frozen = teacher("squeezenet1_1", 8)
    seen = set()
    frozen.model.register_forward_pre_hook(lambda _, given: seen.add((given[0].shape, given[0].stride())))
    for count in (1, 7, 8, 21):
        frozen.targets(images(count))
        frozen.targets(images(count).contiguous())
    channels_last = torch.empty(8, 3, 32, 32).to(memory_format=torch.channels_last)
    assert seen == {(channels_last.shape, channels_last.stride())}


def test_targets_equal_those_of_the_unpadded_network() -> None:
    frozen, x = teacher("resnet18", 8), images(11)
    plain = pack(frozen.model(x))
    packed = frozen.targets(x)
    torch.testing.assert_close(packed.logits, plain.logits, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(packed.entropy, plain.entropy, rtol=1e-4, atol=1e-5)
    assert (packed.logits.amax(1) == 0).all()


def test_loading(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, per_class=2, val_per_class=1)
    folder = make_teacher(tmp_path / "teacher", dataset)
    options = {"device": torch.device("cpu"), "batch": 8, "precision": "float32", "image_px": 32}
    frozen = FrozenTeacher.load(folder, **options)  # type: ignore[arg-type]
    assert not frozen.model.training
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert frozen.describe() | {"threads": 0} == {
        "teacher": "squeezenet1_1",
        "teacher_sha256": folder.info.weights_sha256,
        "num_classes": 4,
        "precision": "float32",
        "device": "cpu",
        "threads": 0,
        "channels_last": True,
        "teacher_batch": 8,
        "normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    require_same_classes(folder, dataset)
    turned = replace(folder, info=replace(folder.info, classes=folder.info.classes[::-1]))
    with pytest.raises(MismatchError, match="ant"):
        require_same_classes(turned, dataset)
    weights = {name: value for name, value in folder.weights().items() if name != "classifier.1.bias"}
    invalid = write_small_teacher(tmp_path / "invalid", weights, "squeezenet1_1", folder.info.classes)
    with pytest.raises(DataError, match=r"weights do not fit squeezenet1_1 \(it lacks classifier\.1\.bias\); make it again"):
        FrozenTeacher.load(invalid, **options)  # type: ignore[arg-type]
