"""`udkd views`: a picture of the views that the students see, with what was done to each.

Letters: B batch, O side of the view.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from udkd.augment.apply import ViewTable, jittered_floats, view_pixels
from udkd.augment.describe import Described, described
from udkd.augment.mixing import partners
from udkd.augment.preprocessing import Interpolation
from udkd.augment.views import ViewSpec, draw_views
from udkd.data.dataset import DatasetFolder, Split
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.pictures import (
    ACCENT,
    FRAME,
    INK,
    PAPER,
    SOFT,
    Fonts,
    check_picture_path,
    choose_ids,
    draw_lines,
    fit_text,
    wrapped,
    write_picture,
)

MAX_CELLS = 240
SAMPLES = 6
"""Samples that are chosen where none are given."""
SHOWN_PX = 256  # views up to this side are shown pixel by pixel or enlarged, larger ones reduced to it
ENLARGED_PX = 208  # about, in whole multiples
BESIDE_PX = 84  # at least, for an id below a small view
MARGIN, GAP = 36, 20
BESIDE = 6  # px between a mixed view and the two that it is made of
LINE, SMALL_LINE = 20, 16  # px
MIN_WIDTH = 640
_BATCH_PX = 1 << 22  # canvas pixels that are worked on at once


@dataclass(frozen=True, kw_only=True)
class SheetSettings:
    """What is shown: views of `spec`, drawn with `seed` and resized with `interpolation`. title: begins the picture."""

    spec: ViewSpec
    seed: int
    interpolation: Interpolation = "bilinear"
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A view, and where samples are mixed the own view and the partner's before that, all as large as they are shown."""

    view: Described
    image: Image.Image
    before: tuple[Image.Image, Image.Image] | None


def write_view_sheet(
    dataset: DatasetFolder,
    out: Path,
    settings: SheetSettings,
    *,
    split: str = "train",
    ids: Sequence[int] | None = None,
    views: Sequence[int] = range(6),
) -> dict[int, list[Described]]:
    """Write views as a PNG, a row for each sample and a column for each view; returns what it shows, by sample.

    ids: samples of the split; None for a few, spread evenly over the classes. Equal arguments give equal bytes.
    Raises DataError (no such split, an unknown, excluded or damaged sample, a path that cannot be written) and ConfigError
    (too many cells, a name that does not end in .png).
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out is {out}; expected a name that ends in .png; change it")
    check_picture_path(out, "picture of views")
    chosen = dataset.split(split)
    rows = chosen.order(np.array(choose_ids(chosen.labels, chosen.ids, SAMPLES) if ids is None else ids, np.int64))
    if not len(rows):
        raise DataError(f"{dataset.path} holds no usable {split} image; expected at least one; see report.json")
    if len(rows) * len(views) > MAX_CELLS:
        found = f"{len(rows)} samples in {len(views)} views are {len(rows) * len(views)} cells"
        raise ConfigError(f"{found}; expected at most {MAX_CELLS}; shorten --ids or --views")
    columns = [list(_cells(chosen, settings, rows, view)) for view in views]
    cells = [[column[row] for column in columns] for row in range(len(rows))]
    write_picture(_Sheet(dataset, chosen, settings, views, cells).drawn(), out)
    return {int(sample_id): [cell.view for cell in row] for sample_id, row in zip(rows, cells, strict=True)}


def _cells(split: Split, settings: SheetSettings, ids: NDArray[np.int64], view: int) -> Iterator[_Cell]:
    """The cells of one view, in the order of `ids`."""
    spec = settings.spec
    partner = partners(settings.seed, view, split.ids, split.num_samples) if spec.mixes else None
    count = max(1, _BATCH_PX // max(split.side, spec.size_px) ** 2)
    for start in range(0, len(ids), count):
        chunk = ids[start : start + count]
        loaded = chunk if partner is None else np.concatenate([chunk, np.setdiff1d(partner[chunk], chunk)])
        mates = None if partner is None else partner[loaded]
        drawn = draw_views(spec, settings.seed, view, loaded, split.sizes[loaded], mates)
        canvas_BSS3 = torch.from_numpy(np.stack([split.pixels(sample_id) for sample_id in loaded.tolist()]))
        table = ViewTable.of(drawn)
        before_BOO3 = _pixels(canvas_BSS3, table, settings)
        after_BOO3 = before_BOO3
        if partner is not None:
            after_BOO3 = _pixels(canvas_BSS3, table.paired(torch.from_numpy(loaded)), settings)
        words = described(spec, drawn, loaded, split.sizes[loaded], spec.size_px)
        place = {sample_id: row for row, sample_id in enumerate(loaded.tolist())}
        for row, sample_id in enumerate(chunk.tolist()):
            before = None
            if partner is not None:
                side = thumbnail_px(spec)
                mate = place[int(partner[sample_id])]
                before = _scaled(before_BOO3[row], side), _scaled(before_BOO3[mate], side)
            yield _Cell(view=words[row], image=_scaled(after_BOO3[row], shown_px(spec)), before=before)


def _pixels(canvas_BSS3: Tensor, table: ViewTable, settings: SheetSettings) -> Tensor:
    """What a student sees before its normalisation: uint8 [B, O, O, 3]."""
    spec = settings.spec
    pixels_BOO3 = view_pixels(canvas_BSS3, table, spec, spec.size_px, settings.interpolation)
    if not spec.jitters_floats:
        return pixels_BOO3
    return (jittered_floats(pixels_BOO3, table, jitter=True) * 255).round().to(torch.uint8)


def shown_px(spec: ViewSpec) -> int:
    """The side of a view in the picture: a whole multiple of its own, or less for large views."""
    return spec.size_px * max(1, round(ENLARGED_PX / spec.size_px)) if spec.size_px <= SHOWN_PX else SHOWN_PX


def thumbnail_px(spec: ViewSpec) -> int:
    """The side of the two views that a mixed one is made of, which stand beside it with their ids below."""
    return max(8, (shown_px(spec) - BESIDE) // 2 - SMALL_LINE)


def _scaled(pixels_OO3: Tensor, side: int) -> Image.Image:
    image = Image.fromarray(pixels_OO3.numpy())
    if image.width == side:
        return image
    enlarged = side % image.width == 0
    return image.resize((side, side), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


class _Sheet:
    """The layout: texts are measured first, as their lines decide the height of a row."""

    def __init__(
        self,
        dataset: DatasetFolder,
        split: Split,
        settings: SheetSettings,
        views: Sequence[int],
        cells: Sequence[Sequence[_Cell]],
    ) -> None:
        self._dataset, self._split, self._settings, self._views, self._cells = dataset, split, settings, views, cells
        self._fonts = Fonts.load()
        spec = settings.spec
        self._shown = shown_px(spec)
        self._cell_width = self._shown + (BESIDE + max(BESIDE_PX, thumbnail_px(spec)) if spec.mixes else 0)
        self._width = max(MIN_WIDTH, 2 * MARGIN + self._shown + len(views) * (GAP + self._cell_width))

    def drawn(self) -> Image.Image:
        """The picture."""
        head = self._head()
        captions = [[self._caption(cell.view) for cell in row] for row in self._cells]
        heights = [self._shown + SMALL_LINE * max(3, *map(len, row)) + 8 + GAP for row in captions]
        top = MARGIN + 40 + SMALL_LINE * len(head) + 16 + LINE
        picture = Image.new("RGB", (self._width, top + 4 + sum(heights) + MARGIN - GAP), PAPER)
        draw = ImageDraw.Draw(picture)
        title = f"{self._dataset.path.resolve().name}/{self._split.name}"
        title = f"{self._settings.title} on {title}" if self._settings.title else title
        draw.text((MARGIN, MARGIN), fit_text(title, self._fonts.title, self._width - 2 * MARGIN), INK, self._fonts.title)
        draw_lines(draw, (MARGIN, MARGIN + 40), [(line, SOFT) for line in head], self._fonts.small, SMALL_LINE)
        draw.text((MARGIN, top - LINE), "stored image", SOFT, self._fonts.label)
        for column, view in enumerate(self._views):
            draw.text((self._left(column), top - LINE), f"view {view}", SOFT, self._fonts.label)
        top += 4
        for row, lines, height in zip(self._cells, captions, heights, strict=True):
            self._draw_stored(picture, draw, row[0].view.id, top)
            for column, (cell, caption) in enumerate(zip(row, lines, strict=True)):
                self._draw_cell(picture, draw, cell, caption, self._left(column), top)
            top += height
        return picture

    def _left(self, column: int) -> int:
        return MARGIN + self._shown + GAP + column * (GAP + self._cell_width)

    def _head(self) -> list[str]:
        """How to read the picture, and the settings."""
        spec = self._settings.spec
        mixed = ["beside a mixed one, the two that it is made of, and the shares of their labels below"] if spec.mixes else []
        reading = "What the students see, before the normalisation"
        lines = wrapped([reading, *mixed], self._fonts.small, self._width - 2 * MARGIN, "; ")
        return lines + wrapped(settings_text(self._settings), self._fonts.small, self._width - 2 * MARGIN, " · ")

    def _caption(self, view: Described) -> list[tuple[str, str]]:
        """Lines and their colours."""
        small, width = self._fonts.small, self._cell_width
        lines = [(line, INK) for line in wrapped(view.words(), small, width)]
        return lines + [(line, ACCENT) for line in wrapped(view.mixed_words(), small, width, " ")]

    def _draw_stored(self, picture: Image.Image, draw: ImageDraw.ImageDraw, sample_id: int, top: int) -> None:
        """The stored image in the aspect ratio of its source, above its id, class and name."""
        split, side = self._split, self._shown
        source_height, source_width, height, width = split.sizes[sample_id].tolist()
        image = Image.fromarray(split.pixels(sample_id)[:height, :width])
        scale = side / max(source_height, source_width)
        shown = (max(1, round(source_width * scale)), max(1, round(source_height * scale)))
        draw.rectangle((MARGIN, top, MARGIN + side - 1, top + side - 1), fill=FRAME)
        fitted = image.resize(shown, Image.Resampling.LANCZOS)
        picture.paste(fitted, (MARGIN + (side - shown[0]) // 2, top + (side - shown[1]) // 2))
        texts = ((f"id {sample_id}", INK), (self._class_name(sample_id), INK), (Path(split.source[sample_id]).name, SOFT))
        lines = [(fit_text(text, self._fonts.small, side), colour) for text, colour in texts]
        draw_lines(draw, (MARGIN, top + side + 6), lines, self._fonts.small, SMALL_LINE)

    def _draw_cell(
        self,
        picture: Image.Image,
        draw: ImageDraw.ImageDraw,
        cell: _Cell,
        caption: Sequence[tuple[str, str]],
        left: int,
        top: int,
    ) -> None:
        picture.paste(cell.image, (left, top))
        small = self._fonts.small
        if cell.before is not None and cell.view.mixed is not None:
            side = cell.before[0].width
            partner = cell.view.mixed.partner
            texts = f"id {cell.view.id}", f"id {partner} {self._class_name(partner)}"
            width = self._cell_width - self._shown - BESIDE
            for row, (image, text) in enumerate(zip(cell.before, texts, strict=True)):
                corner = (left + self._shown + BESIDE, top + row * (side + SMALL_LINE + BESIDE))
                picture.paste(image, corner)
                draw.text((corner[0], corner[1] + side), fit_text(text, small, width), SOFT, small)
        draw_lines(draw, (left, top + self._shown + 6), caption, small, SMALL_LINE)

    def _class_name(self, sample_id: int) -> str:
        return self._dataset.classes[int(self._split.labels[sample_id])].name


def settings_text(settings: SheetSettings) -> list[str]:
    """The settings of views that are not at their default, as `key value`, after the crop and before the seed."""
    spec, default = settings.spec, ViewSpec()
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    unused = {"scale", "ratio"} if spec.scheme != "random_resized" else {"resize_px"}
    shown = [f"{spec.scheme} {spec.size_px} px"]
    for name, value in values.items():
        if name not in {"scheme", "size_px", *unused} and value != getattr(default, name):
            shown.append(f"{name} {_plain(value)}")
    bicubic = ["bicubic"] if settings.interpolation == "bicubic" else []
    return [*shown, *bicubic, f"seed {settings.seed}"]


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(getattr(each, "op", None) or _plain(each)) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
