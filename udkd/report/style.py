"""Light and dark colours, and rendering of a figure as an SVG that follows them and as a PNG.

An SVG is drawn once in placeholder colours, each of which is then replaced by a CSS variable, so that one figure serves both
colour schemes. The hues are distinguishable in the common kinds of colour blindness; lines also differ in marker.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from udkd.report.page import Plot
from udkd.utils.printable import printable_lines

NUM_STUDENT_COLOURS = 6
_LONGEST_LABEL = 60
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours by role.

    paper: background. ink: text and the students' average. soft: secondary text. rule: axes and grid. fill: bars. mark:
    highlights in bars. students: one each, repeating from the start.
    """

    paper: str
    ink: str
    soft: str
    rule: str
    fill: str
    mark: str
    students: tuple[str, ...]

    def student(self, index: int) -> str:
        return self.students[index % len(self.students)]

    def roles(self) -> dict[str, str]:
        """CSS variable -> colour."""
        plain = {name: getattr(self, name) for name in ("paper", "ink", "soft", "rule", "fill", "mark")}
        return plain | {f"s{index}": colour for index, colour in enumerate(self.students)}


LIGHT = Palette(
    paper="#ffffff",
    ink="#1c2024",
    soft="#5c6670",
    rule="#d5dade",
    fill="#b9c6d2",
    mark="#3d4b59",
    students=("#0067a5", "#b84a00", "#007a5a", "#a03a7c", "#7a6200", "#5a4db2"),
)
DARK = Palette(
    paper="#15181b",
    ink="#e8ebee",
    soft="#9aa5b0",
    rule="#353c43",
    fill="#4d5c6a",
    mark="#c3ced8",
    students=("#62b4f0", "#ff9a57", "#45cfa0", "#f08fc4", "#dfc04a", "#aba0ff"),
)
_PLACEHOLDERS = Palette(
    paper="#fe0001",
    ink="#fe0002",
    soft="#fe0003",
    rule="#fe0004",
    fill="#fe0005",
    mark="#fe0006",
    students=tuple(f"#fe001{index}" for index in range(NUM_STUDENT_COLOURS)),
)

Draw = Callable[[Figure, Palette], None]


def css() -> str:
    """The variables of both palettes; dark by the browser's prefers-color-scheme."""

    def variables(palette: Palette) -> str:
        return " ".join(f"--{name}: {colour};" for name, colour in palette.roles().items())

    return (
        f":root {{ color-scheme: light dark; {variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    )


def plot(name: str, title: str, caption: str, draw: Draw, *, height: float = 2.9) -> Plot:
    """Draw a figure, 4.4 inches wide and `height` inches high, for the page and as a file."""
    return Plot(name=name, title=title, caption=caption, svg=svg(name, caption, draw, height), png=png(draw, height))


def svg(name: str, caption: str, draw: Draw, height: float) -> str:
    """An SVG element whose colours are CSS variables; deterministic. caption: its aria-label."""
    text = _drawn(draw, _PLACEHOLDERS, height, "svg", salt=name).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib's style rule would apply to the entire page, and its numbered ids would repeat from figure to figure.
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9._]+_[0-9]+"', "", text)
    for role, colour in _PLACEHOLDERS.roles().items():
        text = text.replace(colour, f"var(--{role})")
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(caption)}" ', 1).strip()


def png(draw: Draw, height: float, width: float = 4.4) -> bytes:
    """The figure in light colours, 200 dots per inch; height and width in inches."""
    return _drawn(draw, LIGHT, height, "png", salt="png", width=width)


def _drawn(draw: Draw, palette: Palette, height: float, kind: str, *, salt: str, width: float = 4.4) -> bytes:
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,  # class names may contain dollar signs
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "axes.labelcolor": palette.soft,
        "axes.edgecolor": palette.rule,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": palette.rule,
        "grid.linewidth": 0.6,
        "text.color": palette.ink,
        "xtick.color": palette.rule,
        "ytick.color": palette.rule,
        "xtick.labelcolor": palette.soft,
        "ytick.labelcolor": palette.soft,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "ytick.major.size": 0,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 9,
        "hatch.linewidth": 0.8,
    }
    buffer = io.BytesIO()
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A class name may hold characters that the figure's font lacks; the browser's fonts show them in the page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # where long names leave no room
        figure = Figure(
            figsize=(width, height),
            dpi=72 if kind == "svg" else 200,
            layout="constrained",
            facecolor="none" if kind == "svg" else palette.paper,
        )
        draw(figure, palette)
        _escape_texts(figure)
        if kind == "svg":  # not savefig, which draws everything twice, first for the layout
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
        else:
            FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _escape_texts(figure: Figure) -> None:
    """Escape and shorten all texts: XML has no control characters, and the layout of a name of megabytes takes minutes."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FuncFormatter):  # set_xticks with labels: the texts are set at drawing time
                axis.set_major_formatter(FuncFormatter(partial(_tick_label, formatter)))
    for text in _texts(figure):
        text.set_text(_label(text.get_text()))


def _texts(artist: Artist) -> Iterator[Text]:
    """All texts except tick labels: the axis formatter sets those, and visiting them would create ticks that are not shown."""
    if isinstance(artist, Text):
        yield artist
    for part in [artist.label] if isinstance(artist, Axis) else artist.get_children():
        yield from _texts(part)


def _tick_label(formatter: FuncFormatter, value: float, position: int | None) -> str:
    return _label(formatter(value, position))


def _label(text: str) -> str:
    lines = printable_lines(text).split("\n")
    return "\n".join(line if len(line) <= _LONGEST_LABEL else line[: _LONGEST_LABEL - 1] + "…" for line in lines)


def _attribute(text: str) -> str:
    text = printable_lines(text)
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
