"""Observers that record notes or stop a training run."""

from udkd.utils.progress import Silent


class Notes(Silent):
    """Records the notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


class StopAfter(Silent):
    """Requests a stop after so many training steps; None: never."""

    def __init__(self, steps: int | None, batch_size: int = 8) -> None:
        self.images_left = None if steps is None else steps * batch_size
        self.training = False

    def start(self, task: str, total: int, unit: str) -> None:
        self.training = task.startswith("epoch")

    def advance(self, count: int, **fields: float | str) -> None:
        if self.images_left is not None and self.training:
            self.images_left -= count

    def stopped(self) -> bool:
        return self.images_left is not None and self.images_left <= 0
