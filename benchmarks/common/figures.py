"""Figures for a README: PNG and SVG, light, the same drawing gives the same SVG."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udkd.actors.reporter.style import LIGHT, MARKERS, Palette
from udkd.words.files import write_bytes

__all__ = ["MARKERS", "Draw", "Palette", "bars", "draw"]

Draw = Callable[[Figure, Palette], None]


def draw(folder: Path, name: str, what: Draw, *, width: float = 7.2, height: float = 3.2) -> list[Path]:
    """Draw `name`.png (200 dots per inch) and `name`.svg into `folder`, width and height in inches."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
        with mpl.rc_context(_style(name)):
            figure = Figure(figsize=(width, height), layout="constrained", facecolor=LIGHT.paper)
            what(figure, LIGHT)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
        path = folder / f"{name}.{kind}"
        write_bytes(path, buffer.getvalue())
        paths.append(path)
    return paths


def bars(
    axes: Axes, palette: Palette, names: list[str], values: list[float | None], *, unit: str, form: str = "{:,.2f}"
) -> None:
    """Horizontal bars from the top down, each with its value written at its end; None leaves a gap that says so."""
    heights = [0.0 if value is None else value for value in values]
    axes.barh(range(len(names)), heights, color=palette.students[0], height=0.6)
    for place, value in enumerate(values):
        text = "not measured yet" if value is None else form.format(value)
        axes.annotate(text, (heights[place], place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max([*heights, 1e-9]) * 1.18)
    axes.set_xlabel(unit)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)


def _style(salt: str) -> dict[Any, Any]:
    return {
        "svg.hashsalt": salt,
        "svg.fonttype": "path",  # a README's reader may lack the font
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.labelcolor": LIGHT.soft,
        "axes.edgecolor": LIGHT.rule,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": LIGHT.rule,
        "grid.linewidth": 0.6,
        "text.color": LIGHT.ink,
        "xtick.color": LIGHT.rule,
        "ytick.color": LIGHT.rule,
        "xtick.labelcolor": LIGHT.soft,
        "ytick.labelcolor": LIGHT.ink,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
