"""The loss scale: PyTorch's GradScaler step by step, and float16 runs that survive an overflow."""

import contextlib
import math
from pathlib import Path

import pytest
import torch

from tests.factories import make_dataset, small_recipe
from tests.observers import StopAfter
from tests.training.runs import checkpoint_hash, checkpoint_tensors
from udkd.config.sections import StudentSection
from udkd.training import loss_scale as loss_scale_module
from udkd.training.loss_scale import LossScale
from udkd.training.optimizer import make_optimizer, set_rate, step_unless
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import Trainer, TrainJob, train
from udkd.utils.errors import RunError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_follows_pytorchs_grad_scaler(name: str) -> None:
    """Two optimizers, of which one overflows in the third step; the scale grows after 2,000 steps without overflow."""
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2)] for _ in range(2))
    options = StudentSection(architecture="resnet18", optimizer=name)
    own = [make_optimizer(options, [("weight", parameter)], CPU) for parameter in ours]
    for optimizer in own:
        set_rate(optimizer, torch.tensor(0.125))
    keep = {"momentum": 0.9} if name != "AdamW" else {}
    others = [getattr(torch.optim, name)([p], lr=0.125, weight_decay=1e-4, **keep) for p in theirs]
    scaler, scale = torch.amp.GradScaler("cpu"), LossScale(CPU)
    scaler.load_state_dict(scaler.state_dict() | {"_growth_tracker": 1998})
    scale.growth.fill_(1998)
    scales = []
    for step in range(5):
        factors = [torch.randn(6), torch.randn(6)]
        if step == 2:
            factors[1][3] = float("inf")
        loss = sum((f * p).sum() for f, p in zip(factors, theirs, strict=True))
        scaler.scale(loss).backward()
        for optimizer in others:
            scaler.step(optimizer)
        scaler.update()
        (sum((f * p).sum() for f, p in zip(factors, ours, strict=True)) * scale.scale).backward()
        found = [scale.unscale([p.grad]) for p in ours]  # type: ignore[list-item]
        for optimizer, found_inf in zip(own, found, strict=True):
            step_unless(optimizer, found_inf)
        scale.update(torch.stack(list(found)))
        for optimizer in (*others, *own):
            optimizer.zero_grad()
        scales.append(float(scale.scale))
        assert scales[-1] == scaler.get_scale()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert scales == [65536, 131072, 65536, 65536, 65536]
    assert int(scale.growth) == scaler.state_dict()["_growth_tracker"] == 2


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """Four steps of eight images, as float16 is slow on a CPU."""
    few = make_dataset(tmp_path / "data", per_class=4, val_per_class=1)
    students = ("lr=0.005", "name='b', lr=0.0002, optimizer='RMSprop', clip_norm=1.0")
    nets = ", ".join(f"{{architecture='squeezenet1_1', {student}}}" for student in students)
    settings = ["loss.beta=0", "teacher.source=none", "train.precision=float16", "train.epochs=2"]
    recipe = small_recipe(f"students=[{nets}]", *settings)
    return TrainJob(recipe=recipe, data=few.path, out=tmp_path / "run", device=CPU)


def test_a_run_survives_overflows_and_resumes_to_the_same_bits(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale of 2**40 overflows in float16: it falls until the gradients fit, and training continues."""
    monkeypatch.setattr(loss_scale_module, "_FIRST", 2.0**40)
    monkeypatch.setattr(loss_scale_module, "_BACKOFF", 2.0**-13)
    train(job)
    tensors = checkpoint_tensors(job.out)
    skipped = (40 - math.log2(float(tensors["loss_scale.scale"]))) / 13
    assert skipped in (2, 3), "2**27 overflows, and 2**14 may"
    assert int(tensors["loss_scale.growth"]) == 4 - skipped
    assert any(value.any() for name, value in tensors.items() if name.startswith("momentum."))
    observer = StopAfter(1)
    other = vars(job) | {"out": job.out.with_name("interrupted")}
    assert train(TrainJob(**(other | {"observer": observer, "stopped": observer.stopped}))).step == 1
    assert train(TrainJob(**(other | {"resume": True}))).finished
    assert checkpoint_hash(other["out"]) == checkpoint_hash(job.out)


def test_float16_trains_like_float32(job: TrainJob, tmp_path: Path) -> None:
    train(job)
    plain = job.recipe.model_copy(update={"train": job.recipe.train.model_copy(update={"precision": "float32"})})
    train(TrainJob(**(vars(job) | {"recipe": plain, "out": tmp_path / "plain"})))
    for one, other in zip(*(RunFolder.open(out).metrics() for out in (job.out, tmp_path / "plain")), strict=True):
        for term in ("hard", "peer"):
            assert one["train"][term] == pytest.approx(other["train"][term], rel=0.03, abs=0.01)
        assert one["train"] != other["train"], "or nothing ran in float16"


def test_a_collapsed_scale_ends_the_run_in_one_line(job: TrainJob) -> None:
    with contextlib.closing(Trainer(job)) as trainer:
        assert trainer.setup.loss_scale is not None
        trainer.setup.loss_scale.scale.fill_(0.5)
        with pytest.raises(RunError, match=r"the loss scale is 0\.5 after step 1, as gradients overflow at any") as caught:
            trainer.run()
    assert "\n" not in str(caught.value)
