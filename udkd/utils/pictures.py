"""What the pictures of images share: colours, fonts, text that fits, the choice of images, and the PNG that is written."""

import io
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from udkd.utils.errors import DataError
from udkd.utils.files import write_bytes
from udkd.utils.printable import printable

PAPER, FRAME, INK, SOFT, ACCENT = "#ffffff", "#f1f1ef", "#1c1c1a", "#76766f", "#b3541e"
MAX_LETTERS = 400  # of a text; no cell has room for more
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Fonts:
    """DejaVu in three sizes, px."""

    title: ImageFont.FreeTypeFont
    label: ImageFont.FreeTypeFont
    small: ImageFont.FreeTypeFont

    @staticmethod
    def load() -> "Fonts":
        """Load DejaVu, which comes with matplotlib and covers most languages."""
        folder = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf"
        regular, bold = ((folder / name).read_bytes() for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
        sizes = ((bold, 26), (regular, 15), (regular, 12))
        return Fonts(*(ImageFont.truetype(io.BytesIO(data), size) for data, size in sizes))


def check_picture_path(out: Path, noun: str) -> None:
    """Raise DataError unless `out` can be written: in a folder, and new or an earlier PNG. noun: what is written."""
    if not out.parent.is_dir():
        raise DataError(f"{out.parent} is not a folder; expected one to write {out.name} to; check the path")
    if out.exists() and not _is_png(out):
        raise DataError(f"{out} exists and is not a PNG; expected a new file or an earlier {noun}; give another path")


def _is_png(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_PNG)) == _PNG


def write_picture(picture: Image.Image, out: Path) -> None:
    """Write a PNG: the same pixels give the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_bytes(out, buffer.getvalue())


def choose_ids(labels: NDArray[np.integer], ids: NDArray[np.integer], count: int) -> list[int]:
    """Choose up to `count` of `ids`, ordered by class, as many of each class as of the others where there are as many.

    labels: int [N], of all samples.
    """
    present = np.unique(labels[ids])
    if not len(present):
        return []
    of_class = [ids[labels[ids] == label] for label in present[_evenly(len(present), count)].tolist()]
    taken = [0] * len(of_class)
    for _ in range(min(count, sum(map(len, of_class)))):
        taken[min((n for n in range(len(taken)) if taken[n] < len(of_class[n])), key=lambda n: taken[n])] += 1
    return [
        int(each) for samples, number in zip(of_class, taken, strict=True) for each in samples[_evenly(len(samples), number)]
    ]


def _evenly(total: int, count: int) -> NDArray[np.int64]:
    """Up to `count` indices below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(np.int64))


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text as one line of at most `width` px, cut with an ellipsis; control characters are escaped."""
    text = printable(text, MAX_LETTERS)
    if font.getlength(text) <= width:
        return text
    letters = bisect_right(range(1, len(text)), width, key=lambda count: math.ceil(font.getlength(text[:count] + "…")))
    return text[:letters].rstrip() + "…"


def wrapped(parts: Sequence[str], font: ImageFont.FreeTypeFont, width: int, separator: str = ", ") -> list[str]:
    """Parts of a sentence as lines of at most `width` px, broken between parts where that is possible, else between words."""
    lines: list[str] = []
    for number, part in enumerate(parts):
        part += separator.rstrip() if number < len(parts) - 1 else ""
        for piece in [part] if font.getlength(part) <= width else part.split(" "):
            joined = f"{lines[-1]} {piece}" if lines else piece
            if lines and font.getlength(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    return [fit_text(line, font, width) for line in lines]


def draw_lines(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[tuple[str, str]],
    font: ImageFont.FreeTypeFont,
    step: int,
) -> None:
    """Lines of text, each with its colour, `step` px apart."""
    left, top = corner
    for number, (line, colour) in enumerate(lines):
        draw.text((left, top + number * step), line, colour, font)
