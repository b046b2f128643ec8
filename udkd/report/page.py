"""The page as data: sections of blocks. Content modules make blocks, the template only lays them out."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from udkd.utils.printable import printable_lines


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure: svg follows the page's colours; png (light) goes to a file of its own, `name`.png."""

    name: str
    title: str
    svg: str
    png: bytes
    caption: str
    kind: str = "plot"

    @property
    def inline(self) -> Markup:
        """The SVG for the template; matplotlib has escaped its texts."""
        return Markup(self.svg)


@dataclass(frozen=True, kw_only=True)
class Plots:
    """Figures side by side where there is room."""

    plots: Sequence[Plot]
    kind: str = "plots"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A table's row. A cell that is None is a gap.

    hue: the role of the row's colour. bar: percent to draw in it before the first figure. key: mark the label with it.
    detail: small print beside the label. strong: the run's own figures stand in the row.
    """

    label: str
    cells: tuple[str | None, ...]
    hue: str = "soft"
    bar: float | None = None
    key: bool = False
    detail: str = ""
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """A heading over `span` columns of a table."""

    label: str
    span: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; `head` names the label column and the cells. stacked: a row's small print goes under its label."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: Sequence[Row]
    caption: str
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()
    stacked: bool = False
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One guess. percent: its probability. right: it is the label. by: whose it is, where a card shows several networks'."""

    name: str
    percent: float
    correct: bool
    by: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Card:
    """One image, uint8 [h, w, 3], with its label and guesses: the teacher's, the likeliest first, or several networks'.

    weight: the teacher's, None where it was not asked. kind: of the image, for those who cannot see it.
    """

    sample_id: int
    pixels: NDArray[np.uint8]
    label: str
    weight: float | None
    guesses: tuple[Guess, ...]
    kind: str = "Training image"

    @property
    def correct(self) -> bool:
        """Whether the first guess is the label."""
        return self.guesses[0].correct

    @property
    def source(self) -> Markup:
        """The image as a data URI, which needs no escaping."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "JPEG", quality=90, subsampling=0)
        return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A grid of cards; png is the same grid as a file of its own, `name`.png."""

    name: str
    title: str
    cards: Sequence[Card]
    png: bytes
    caption: str
    kind: str = "gallery"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence; `missing` marks one that stands where something else would."""

    text: str
    missing: bool = False
    kind: str = "note"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values, folded away unless open. text: a longer listing under them."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    text: str = ""
    open: bool = False
    kind: str = "facts"


Block = Plots | Table | Gallery | Note | Facts


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chapter of the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]

    def files(self) -> dict[str, bytes]:
        """PNG bytes by file name."""
        found: dict[str, bytes] = {}
        for block in self.blocks:
            if isinstance(block, Plots):
                found |= {f"{plot.name}.png": plot.png for plot in block.plots}
            elif isinstance(block, Gallery):
                found[f"{block.name}.png"] = block.png
        return found


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole report. lead: the result in a sentence. footer: where the page is from."""

    title: str
    subtitle: str
    lead: str
    sections: Sequence[Section]
    footer: str = "Written by udkd from this run’s own files. Each figure lies beside this page as a PNG."


def _shown(value: object) -> object:
    """What the page shows of a text: control characters escaped, no break before a percent sign. Markup stays as it is."""
    return printable_lines(value).replace(" %", "\u00a0%") if type(value) is str else value


def render(page: Page, style: str) -> str:
    """One HTML file that needs nothing else. style: CSS variables of the palettes."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    template = environment.from_string((files("udkd.report") / "page.html").read_text())
    return template.render(page=page, style=Markup(style)) + "\n"
