"""The training images that the teacher is surest and least sure of."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.actors.reporter.certainty import first_guess_is_right
from udkd.actors.reporter.inputs import ReportInputs, Targets
from udkd.actors.reporter.page import Block, Card, Gallery, Guess, Note, Section
from udkd.actors.reporter.style import Palette, png
from udkd.actors.reporter.words import count, percent, sentence, short
from udkd.words.errors import UserError

IMAGES = 12
GUESSES = 3
_COLUMNS = 4


def section(inputs: ReportInputs) -> Section:
    """Two grids of images, or a sentence that says why there are none."""
    blocks: list[Block] = []
    targets, thumbnail = inputs.targets, inputs.thumbnail
    if targets is None or thumbnail is None:
        why = inputs.why_no_targets or inputs.why_no_data or "This run has no cached targets"
        blocks.append(Note(text=sentence(why), missing=True))
    else:
        try:
            blocks += _galleries(inputs, targets, thumbnail)
        except (UserError, OSError) as error:
            blocks.append(Note(text=sentence(f"The images cannot be shown: {error}"), missing=True))
        if not targets.canonical:
            blocks.append(Note(text="The stored images are shown; the teacher saw an augmented view of each."))
    return Section(anchor="images", title="Surest and least sure images", blocks=blocks)


def extremes(targets: Targets, images: int = IMAGES) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the lowest entropies, and of the highest, the most extreme first, int64; equal ones in the order of ids.

    No row is in both: few samples are divided.
    """
    images = min(images, len(targets.ids) // 2)
    surest = np.lexsort((targets.ids, targets.entropy))[:images]
    least = np.lexsort((targets.ids, -targets.entropy))[:images]
    return surest, least


def guesses(targets: Targets, row: int, names: tuple[str, ...]) -> tuple[Guess, ...]:
    """The likeliest classes of a row at temperature 1; of equal logits the lower class first."""
    logits = targets.logits[row].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = np.argsort(-logits, kind="stable")[:GUESSES]
    return tuple(
        Guess(name=_name(names, at), percent=100 * float(probabilities[at]), right=bool(at == targets.labels[row]))
        for at in best
    )


def _galleries(inputs: ReportInputs, targets: Targets, thumbnail: Callable[[int], NDArray[np.uint8]]) -> list[Gallery]:
    right = first_guess_is_right(targets)
    surest, least = extremes(targets)
    if not len(surest):
        return []

    def gallery(name: str, title: str, rows: NDArray[np.int64], bound: str) -> Gallery:
        cards = [
            Card(
                sample_id=int(targets.ids[row]),
                pixels=thumbnail(int(targets.ids[row])),
                label=_name(inputs.class_names, int(targets.labels[row])),
                weight=float(targets.weight[row]),
                guesses=guesses(targets, int(row), inputs.class_names),
            )
            for row in rows
        ]
        wrong = int((~right[rows]).sum())
        told = "no first guess is wrong" if not wrong else f"{wrong} of {len(rows)} first guesses are wrong"
        caption = f"The {count(len(rows), 'training image')} of {bound}: {told}; of all samples it is {_share(right)}."
        return Gallery(name=name, title=title, cards=cards, png=_contact_sheet(cards), caption=caption)

    return [
        gallery("surest", "Surest", surest, f"the lowest entropy, w ≥ {float(targets.weight[surest].min()):.3f}"),
        gallery("least-sure", "Least sure", least, f"the highest entropy, w ≤ {float(targets.weight[least].max()):.3f}"),
    ]


def _share(right: NDArray[np.bool_]) -> str:
    return percent(100 * float((~right).mean()), 1)


def _name(names: tuple[str, ...], label: int) -> str:
    return short(names[label], 60) if 0 <= label < len(names) else f"class {label}"


def _contact_sheet(cards: Sequence[Card]) -> bytes:
    rows = -(-len(cards) // _COLUMNS)

    def draw(figure: Figure, palette: Palette) -> None:
        grid = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, card in zip(grid.flat, cards, strict=False):
            height, width = card.pixels.shape[:2]
            side = max(height, width)
            axes.imshow(card.pixels)
            axes.set_xlim((width - side) / 2 - 0.5, (width + side) / 2 - 0.5)  # one square for all, so that texts line up
            axes.set_ylim((height + side) / 2 - 0.5, (height - side) / 2 - 0.5)
            axes.set_title(short(card.label, 18), fontsize=8, color=palette.ink)
            sign = "✓" if card.right else "✗"
            lines = [
                f"{sign + ' ' if rank == 0 else ''}{short(guess.name, 15)} {guess.percent:.0f} %"
                for rank, guess in enumerate(card.guesses)
            ]
            axes.text(
                0.5, -0.06, "\n".join(lines), transform=axes.transAxes, ha="center", va="top", fontsize=6.5, color=palette.soft
            )

    return png(draw, height=2.35 * rows, width=7.2)
