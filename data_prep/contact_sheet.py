"""`udkd data sheet`: a contact sheet of the images in a dataset folder."""

from pathlib import Path

from PIL import Image, ImageDraw

from udkd.data.canvas import stored_image
from udkd.data.dataset import DatasetFolder, Split
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.pictures import ACCENT, FRAME, INK, PAPER, SOFT, Fonts, check_picture_path, choose_ids, fit_text, write_picture

COLUMNS = 8
CELL = 176  # px: the square that an image is fitted into
GAP = 20
CAPTION = 48  # px below each image
HEAD = 92
MARGIN = 36
MAX_IMAGES = 400
LARGE_PX = 1 << 24  # larger images are decoded at reduced size: a file of 100 KB may decode to 12 GB


def write_contact_sheet(folder: Path, out: Path, *, split: str = "train", images: int = 48) -> int:
    """Write a contact sheet as PNG; returns the number of images on it.

    Classes, and the images of each class, are chosen evenly, so a folder always gives the same sheet. Raises DataError (no such
    folder or split, a damaged sample) and ConfigError (too many images).
    """
    if not 1 <= images <= MAX_IMAGES:
        raise ConfigError(f"--images is {images}; expected 1 to {MAX_IMAGES}; change it")
    check_picture_path(out, "sheet")
    dataset = DatasetFolder.open(folder)
    chosen = dataset.split(split)
    ids = choose_ids(chosen.labels, chosen.ids, images)
    if not ids:
        raise DataError(f"{folder} holds no usable {split} image; expected at least one; see report.json")
    write_picture(_draw(dataset, chosen, ids), out)
    return len(ids)


def _draw(dataset: DatasetFolder, split: Split, ids: list[int]) -> Image.Image:
    columns = min(COLUMNS, max(4, len(ids)))
    rows = -(-len(ids) // columns)
    size = (2 * MARGIN + columns * (CELL + GAP) - GAP, MARGIN + HEAD + rows * (CELL + CAPTION + GAP))
    picture = Image.new("RGB", size, PAPER)
    draw, fonts = ImageDraw.Draw(picture), Fonts.load()
    width = size[0] - 2 * MARGIN
    title = fit_text(f"{dataset.path.resolve().name}/{split.name}", fonts.title, width)
    draw.text((MARGIN, MARGIN), title, INK, fonts.title)
    subtitle = (
        f"{len(ids):,} of {len(split.ids):,} images · {len(dataset.classes):,} classes · "
        f"{dataset.fit} to {dataset.side} px · formats: {', '.join(dataset.formats)}"
    )
    draw.text((MARGIN, MARGIN + 40), fit_text(subtitle, fonts.label, width), SOFT, fonts.label)
    for index, sample_id in enumerate(ids):
        row, column = divmod(index, columns)
        corner = (MARGIN + column * (CELL + GAP), MARGIN + HEAD + row * (CELL + CAPTION + GAP))
        _draw_cell(picture, draw, fonts, corner, dataset, split, sample_id)
    return picture


def _draw_cell(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    fonts: Fonts,
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
    draw.text((left, top + CELL + 6), fit_text(name, fonts.label, CELL), INK, fonts.label)
    note = split.note[sample_id]
    line = note or f"#{sample_id} · {source_width} × {source_height}"
    draw.text((left, top + CELL + 27), fit_text(line, fonts.small, CELL), ACCENT if note else SOFT, fonts.small)
