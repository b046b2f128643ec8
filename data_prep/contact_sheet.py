"""`udkd data sheet`: a contact sheet of the images in a dataset folder."""

import io
import math
from bisect import bisect_right
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from udkd.data.canvas import stored_image
from udkd.data.dataset import DatasetFolder, Split
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.files import write_bytes
from udkd.utils.printable import printable

COLUMNS = 8
CELL = 176  # px: the square that an image is fitted into
GAP = 20
CAPTION = 48  # px below each image
HEAD = 92
MARGIN = 36
PAPER, FRAME, INK, SOFT, ACCENT = "#ffffff", "#f1f1ef", "#1c1c1a", "#76766f", "#b3541e"
MAX_IMAGES = 400
LARGE_PX = 1 << 24  # larger images are decoded at reduced size: a file of 100 KB may decode to 12 GB
MAX_LETTERS = 400  # of a text; no cell has room for more
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Fonts:
    title: ImageFont.FreeTypeFont
    label: ImageFont.FreeTypeFont
    small: ImageFont.FreeTypeFont

    @staticmethod
    def load() -> "_Fonts":
        """Load DejaVu, which comes with matplotlib and covers most languages."""
        folder = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf"
        regular, bold = ((folder / name).read_bytes() for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
        sizes = ((bold, 26), (regular, 15), (regular, 12))
        return _Fonts(*(ImageFont.truetype(io.BytesIO(data), size) for data, size in sizes))


def write_contact_sheet(folder: Path, out: Path, *, split: str = "train", images: int = 48) -> int:
    """Write a contact sheet as PNG; returns the number of images on it.

    Classes, and the images of each class, are chosen evenly, so a folder always gives the same sheet. Raises DataError (no such
    folder or split, a damaged sample) and ConfigError (too many images).
    """
    if not 1 <= images <= MAX_IMAGES:
        raise ConfigError(f"--images is {images}; expected 1 to {MAX_IMAGES}; change it")
    if not out.parent.is_dir():
        raise DataError(f"{out.parent} is not a folder; expected one to write {out.name} to; check the path")
    if out.exists() and not _is_png(out):
        raise DataError(f"{out} exists and is not a PNG; expected a new file or an earlier sheet; give another path")
    dataset = DatasetFolder.open(folder)
    chosen = dataset.split(split)
    ids = choose_ids(chosen.labels, chosen.ids, images)
    if not ids:
        raise DataError(f"{folder} holds no usable {split} image; expected at least one; see report.json")
    picture = _draw(dataset, chosen, ids)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_bytes(out, buffer.getvalue())
    return len(ids)


def _is_png(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(PNG)) == PNG


def choose_ids(labels: np.ndarray, ids: np.ndarray, count: int) -> list[int]:
    """Choose up to `count` of `ids`, ordered by class. labels: int [N], of all samples."""
    present = np.unique(labels[ids])
    if not len(present):
        return []
    classes = present[_evenly(len(present), count)]
    per_class = -(-count // len(classes))
    chosen = []
    for label in classes.tolist():
        class_ids = ids[labels[ids] == label]
        chosen += class_ids[_evenly(len(class_ids), per_class)].tolist()
    return chosen[:count]


def _evenly(total: int, count: int) -> np.ndarray:
    """Up to `count` indices below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int))


def _draw(dataset: DatasetFolder, split: Split, ids: list[int]) -> Image.Image:
    columns = min(COLUMNS, max(4, len(ids)))
    rows = -(-len(ids) // columns)
    size = (2 * MARGIN + columns * (CELL + GAP) - GAP, MARGIN + HEAD + rows * (CELL + CAPTION + GAP))
    picture = Image.new("RGB", size, PAPER)
    draw, fonts = ImageDraw.Draw(picture), _Fonts.load()
    width = size[0] - 2 * MARGIN
    title = _fit_text(draw, f"{dataset.path.resolve().name}/{split.name}", fonts.title, width)
    draw.text((MARGIN, MARGIN), title, INK, fonts.title)
    subtitle = (
        f"{len(ids):,} of {len(split.ids):,} images · {len(dataset.classes):,} classes · "
        f"{dataset.fit} to {dataset.side} px · formats: {', '.join(dataset.formats)}"
    )
    draw.text((MARGIN, MARGIN + 40), _fit_text(draw, subtitle, fonts.label, width), SOFT, fonts.label)
    for index, sample_id in enumerate(ids):
        row, column = divmod(index, columns)
        corner = (MARGIN + column * (CELL + GAP), MARGIN + HEAD + row * (CELL + CAPTION + GAP))
        _draw_cell(picture, draw, fonts, corner, dataset, split, sample_id)
    return picture


def _draw_cell(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    fonts: _Fonts,
    corner: tuple[int, int],
    dataset: DatasetFolder,
    split: Split,
    sample_id: int,
) -> None:
    """Draw a stored image in the aspect ratio of its source, above its class and its note, or else its id and source size."""
    left, top = corner
    source_height, source_width, height, width = split.sizes[sample_id].tolist()
    what = split.describe(sample_id)
    with stored_image(split.read(sample_id), split.side, height=height, width=width, what=what) as stored:
        if height * width > LARGE_PX:
            stored.draft("RGB", (CELL, CELL))
        image = stored.convert("RGB")
    scale = CELL / max(source_height, source_width)
    shown = (max(1, round(source_width * scale)), max(1, round(source_height * scale)))
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=FRAME)
    picture.paste(image.resize(shown, Image.Resampling.LANCZOS), (left + (CELL - shown[0]) // 2, top + (CELL - shown[1]) // 2))
    name = dataset.classes[split.labels[sample_id]].name
    draw.text((left, top + CELL + 6), _fit_text(draw, name, fonts.label, CELL), INK, fonts.label)
    note = split.note[sample_id]
    line = note or f"#{sample_id} · {source_width} × {source_height}"
    draw.text((left, top + CELL + 27), _fit_text(draw, line, fonts.small, CELL), ACCENT if note else SOFT, fonts.small)


def _fit_text(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text as one line of at most `width` px, cut with an ellipsis; control characters are escaped."""
    text = printable(text, MAX_LETTERS)
    if draw.textlength(text, font) <= width:
        return text
    letters = bisect_right(range(1, len(text)), width, key=lambda count: math.ceil(draw.textlength(text[:count] + "…", font)))
    return text[:letters].rstrip() + "…"
