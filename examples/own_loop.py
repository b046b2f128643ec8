"""A custom training loop: two torchvision networks learn from the cached teacher of `make quickstart`.

python examples/own_loop.py --data quickstart/data --cache quickstart/cache
"""

import argparse

import torch
import torchvision

import udkd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="quickstart/data", help="dataset folder")
    parser.add_argument("--cache", default="quickstart/cache", help="teacher cache of that data set")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = udkd.Dataset(args.data)
    loader = udkd.Loader(data.train, batch_size=args.batch_size, device=device, seed=0)
    augment = udkd.Augment(udkd.ViewSpec(size_px=48, brightness=0.4), data.train, seed=0, device=device)
    teacher = udkd.CachedTeacher(args.cache, loader, augment)
    criterion = udkd.DistillationLoss(alpha=0.4, beta=0.4, gamma=0.2, temperature=4.0)
    networks = [torchvision.models.get_model(name, num_classes=len(data.classes)) for name in ("resnet18", "mobilenet_v2")]
    students = torch.nn.ModuleList(networks).to(device)
    optimizer = torch.optim.SGD(students.parameters(), lr=0.02, momentum=0.9)

    for epoch in range(args.epochs):
        for batch in loader.epoch(epoch):
            x = augment(batch, epoch)
            terms = criterion([student(x) for student in students], batch.labels, teacher(batch, epoch))
            terms.total.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: loss of the last batch {terms.total.item():.3f}")
    loader.close()


if __name__ == "__main__":
    main()
