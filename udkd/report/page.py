"""A page as data: sections of blocks. The modules with content make blocks; the template only lays them out."""

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
    """A figure: svg follows the page's colours; png (light) is written to a separate file, `name`.png."""

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
    """Figures, side by side where there is room."""

    plots: Sequence[Plot]
    kind: str = "plots"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A table's row. A cell that is None is shown as a dash.

    hue: the CSS variable of the row's colour. bar: length in percent of a bar in the first cell. key: mark the label with the
    colour. detail: small print beside the label. strong: bold.
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
    """A table; `head` names the label column and the cells. stacked: details are placed under their labels."""

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
    """A predicted class. percent: its probability. correct: it is the label. by: the network, where a card shows several."""

    name: str
    percent: float
    correct: bool
    by: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Card:
    """One image, uint8 [h, w, 3], with its label and guesses: several of the teacher, best first, or one of each network.

    weight: the teacher's, None where unknown. kind: of the image, for the alt text.
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
    """A grid of cards; png is the same grid as a separate file, `name`.png."""

    name: str
    title: str
    cards: Sequence[Card]
    png: bytes
    caption: str
    kind: str = "gallery"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence; missing: it explains the absence of something."""

    text: str
    missing: bool = False
    kind: str = "note"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values, collapsed unless open. text: a longer listing under them."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    text: str = ""
    open: bool = False
    kind: str = "facts"


Block = Plots | Table | Gallery | Note | Facts


@dataclass(frozen=True, kw_only=True)
class PageSection:
    """A section of the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]

    def files(self) -> dict[str, bytes]:
        """PNG bytes by file name."""
        images: dict[str, bytes] = {}
        for block in self.blocks:
            if isinstance(block, Plots):
                images |= {f"{plot.name}.png": plot.png for plot in block.plots}
            elif isinstance(block, Gallery):
                images[f"{block.name}.png"] = block.png
        return images


@dataclass(frozen=True, kw_only=True)
class Page:
    """A complete page. lead: the result in a sentence. footer: the page's origin."""

    title: str
    subtitle: str
    lead: str
    sections: Sequence[PageSection]
    footer: str = "Written by udkd from this run’s files. Each figure is beside this page as a PNG."


def _shown(value: object) -> object:
    """A string for the page: control characters escaped, no break before a percent sign. Markup is not changed."""
    return printable_lines(value).replace(" %", "\u00a0%") if type(value) is str else value


def render(page: Page, style: str) -> str:
    """A self-contained HTML file. style: CSS variables of the palettes."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    template = environment.from_string((files("udkd.report") / "page.html").read_text(encoding="utf-8"))
    return template.render(page=page, style=Markup(style)) + "\n"
