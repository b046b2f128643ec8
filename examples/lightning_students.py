"""Two students in PyTorch Lightning, which learn from the cached teacher of `make quickstart`.

python examples/lightning_students.py --data quickstart/data --cache quickstart/cache
"""

import argparse
from typing import Any

import lightning
import torch
import torchvision

import udkd
from udkd.data.batch import Batch

NAMES = ("resnet18", "mobilenet_v2")


class Students(lightning.LightningModule):
    def __init__(self, classes: int, train: udkd.Augment, val: udkd.Augment, teacher: udkd.CachedTeacher) -> None:
        super().__init__()
        networks = [torchvision.models.get_model(name, num_classes=classes) for name in NAMES]
        self.students = torch.nn.ModuleList(networks)
        self.criterion = udkd.DistillationLoss(alpha=0.4, beta=0.4, gamma=0.2, temperature=4.0)
        self.train_views, self.val_views, self.teacher = train, val, teacher

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        x = self.train_views(batch, self.current_epoch)
        targets = self.teacher(batch, self.current_epoch)
        terms = self.criterion([student(x) for student in self.students], batch.labels, targets)
        self.log("loss", terms.total, prog_bar=True)
        return terms.total

    def validation_step(self, batch: Batch, index: int) -> None:
        x = self.val_views(batch, 0)
        for name, student in zip(NAMES, self.students, strict=True):
            correct = (student(x).argmax(1) == batch.labels).float().mean()
            self.log(f"{name} top-1", correct, on_epoch=True, batch_size=len(batch.labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="quickstart/data", help="dataset folder")
    parser.add_argument("--cache", default="quickstart/cache", help="teacher cache of that data set")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", default=".", help="folder for Lightning's checkpoints")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: Any = {"batch_size": args.batch_size, "device": device}
    data = udkd.Dataset(args.data)
    with udkd.Loader(data.train, seed=0, **options) as train, udkd.Loader(data.val, shuffle=False, **options) as val:
        train_views = udkd.Augment(udkd.ViewSpec(size_px=48, brightness=0.4), data.train, seed=0, device=device)
        centre = udkd.ViewSpec(size_px=48, resize_px=54, scheme="centre")
        val_views = udkd.Augment(centre, data.val, device=device)
        teacher = udkd.CachedTeacher(args.cache, train, train_views)
        model = Students(len(data.classes), train_views, val_views, teacher)
        trainer = lightning.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,  # every process would see all batches
            max_epochs=args.epochs,
            default_root_dir=args.out,
            logger=False,
        )
        trainer.fit(model, train, val)
    for name in NAMES:
        print(f"{name}: top-1 {100 * trainer.callback_metrics[f'{name} top-1'].item():.2f} %")


if __name__ == "__main__":
    main()
