"""udkd.Loader in Lightning's Trainer and in Accelerate: their epochs have the loader's batches, in the loader's order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import udkd
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.utils.errors import ConfigError
from udkd.utils.rng import Stream, permutation

DATASET_IMAGES = {"per_class": 8, "val_per_class": 2}
SEED = 3


@pytest.fixture
def loader(dataset: DatasetFolder) -> udkd.Loader:
    return udkd.Loader(dataset.train, batch_size=12, device="cpu", seed=SEED)


def order(dataset: DatasetFolder, epoch: int) -> list[int]:
    return permutation(dataset.train.ids, SEED, Stream.SAMPLE_ORDER, epoch).tolist()


def ids(batches: Any) -> list[int]:
    return [sample_id for batch in batches for sample_id in batch.ids.tolist()]


def network(dataset: DatasetFolder) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * dataset.side**2, len(dataset.classes)))


def loss_of(model: torch.nn.Module, batch: Batch) -> Tensor:
    return torch.nn.functional.cross_entropy(model(batch.canvas.float() / 255), batch.labels)


def test_set_epoch_chooses_the_next_iteration(dataset: DatasetFolder, loader: udkd.Loader) -> None:
    started = iter(loader)  # its epoch is that of its first batch
    loader.set_epoch(5)
    assert ids([next(started)]) == order(dataset, 5)[:12]
    assert ids(loader) == order(dataset, 6)
    loader.set_epoch(0)
    assert ids(loader) == order(dataset, 0)
    with pytest.raises(ConfigError, match="epoch is -1; expected 0 or more"):
        loader.set_epoch(-1)


def test_a_batch_moves_to_a_device(loader: udkd.Loader) -> None:
    batch = next(iter(loader))
    moved = batch.to("meta", non_blocking=True)
    assert {value.device.type for value in vars(moved).values()} == {"meta"}
    assert {value.device.type for value in vars(batch).values()} == {"cpu"}


@pytest.mark.filterwarnings("ignore:::lightning")
def test_lightning_trains_in_the_order_of_the_loader_also_when_it_resumes(
    dataset: DatasetFolder, loader: udkd.Loader, tmp_path: Path
) -> None:
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.seen, self.held_out = network(dataset), dict[int, list[int]](), list[int]()

        def training_step(self, batch: Batch, index: int) -> Tensor:
            assert isinstance(batch, Batch)
            self.seen.setdefault(self.current_epoch, []).extend(batch.ids.tolist())
            loss = loss_of(self.network, batch)
            self.log("loss", loss, on_epoch=True)
            return loss

        def validation_step(self, batch: Batch, index: int) -> None:
            self.held_out += batch.ids.tolist()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(train: udkd.Loader, epochs: int, **options: Any) -> tuple[Any, Any]:
        model = Model()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        with udkd.Loader(dataset.val, 12, device="cpu", shuffle=False) as val:
            trainer.fit(model, train, val, **options)
        return model, trainer

    model, trainer = fit(loader, 2)
    assert trainer.num_training_batches == len(loader) == 3
    assert model.seen == {epoch: order(dataset, epoch) for epoch in range(2)}
    assert model.held_out == 2 * dataset.val.ids.tolist()
    by_hand = network(dataset)
    train(by_hand, loader, 2)
    for ours, theirs in zip(by_hand.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    with udkd.Loader(dataset.train, batch_size=12, device="cpu", seed=SEED) as fresh:
        resumed, _ = fit(fresh, 4, ckpt_path=checkpoint)
    assert resumed.seen == {epoch: order(dataset, epoch) for epoch in (2, 3)}


def train(model: torch.nn.Module, loader: udkd.Loader, epochs: int, accelerator: Any = None) -> None:
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    if accelerator is not None:
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            loss = loss_of(model, batch)
            loss.backward() if accelerator is None else accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()


def test_accelerate_takes_the_loader(dataset: DatasetFolder, loader: udkd.Loader) -> None:
    """`prepare` passes it through, and `send_to_device` moves its batches."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.prepare(loader) is loader
    accelerated, by_hand = network(dataset), network(dataset)
    train(accelerated, loader, 2, accelerator)
    train(by_hand, loader, 2)
    for ours, theirs in zip(by_hand.parameters(), accelerated.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    augment = udkd.Augment(udkd.ViewSpec(size_px=24, cutmix=1.0), dataset.train, device="cpu")
    with udkd.Loader(dataset.train, 12, device="cpu", seed=SEED, arrange=augment.keep_pairs) as paired:
        accelerator.prepare(paired).set_epoch(2)
        assert ids(paired) == augment.keep_pairs(np.array(order(dataset, 2)), 2).tolist() != order(dataset, 2)
        labels = [augment.labels(batch, 3) for batch in paired]
        assert all(isinstance(each, udkd.MixedLabels) for each in labels)
    moved = accelerate.utils.send_to_device(next(iter(loader)), torch.device("meta"))
    assert isinstance(moved, Batch)
    assert moved.canvas.is_meta
