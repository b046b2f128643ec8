"""Figures for a README: PNG and SVG in light colours; the same plot always gives the same SVG bytes."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udkd.report.style import LIGHT, MARKERS, Palette
from udkd.utils.files import write_bytes

__all__ = ["MARKERS", "Palette", "PlotFunction", "bars", "draw"]

PlotFunction = Callable[[Figure, Palette], None]
"""Draws into an empty figure."""


def draw(folder: Path, name: str, plot: PlotFunction, *, width: float = 7.2, height: float = 3.2) -> list[Path]:
    """Write `name`.png (200 dots per inch) and `name`.svg into `folder`; width and height in inches. Returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
        with mpl.rc_context(_style(name)):
            figure = Figure(figsize=(width, height), layout="constrained", facecolor=LIGHT.paper)
            plot(figure, LIGHT)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
        path = folder / f"{name}.{kind}"
        write_bytes(path, buffer.getvalue())
        paths.append(path)
    return paths


def bars(
    axes: Axes,
    palette: Palette,
    names: list[str],
    values: list[float | None],
    *,
    unit: str,
    value_format: str = "{:,.2f}",
    spans: Sequence[tuple[float, float] | None] = (),
) -> None:
    """Horizontal bars from top to bottom, each labelled with its value; None leaves a gap labelled "not measured yet".

    spans: minimum and maximum over the rounds, drawn as a whisker below the middle of each bar.
    """
    heights = [0.0 if value is None else value for value in values]
    ends = list(heights)
    axes.barh(range(len(names)), heights, color=palette.students[0], height=0.6)
    for row, span in enumerate(spans):
        if span is not None:
            axes.plot(span, [row + 0.2] * 2, color=palette.mark, linewidth=1.2, marker="|", markersize=4)
            ends[row] = max(ends[row], span[1])
    for row, value in enumerate(values):
        text = "not measured yet" if value is None else value_format.format(value)
        box = {"facecolor": palette.paper, "edgecolor": "none", "pad": 0.8}  # covers the line of a baseline
        axes.annotate(text, (ends[row], row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, bbox=box)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max([*ends, 1e-9]) * 1.18)
    axes.set_xlabel(f"{unit}; whiskers: all rounds" if any(spans) else unit)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)


def speed_span(row: dict[str, Any]) -> tuple[float, float]:
    """Minimum and maximum items per second of a result's row."""
    seconds = row["seconds"]
    scale = row["items_per_s"] * seconds["median"]
    return scale / seconds["max"], scale / seconds["min"]


def ratio_span(row: dict[str, Any]) -> tuple[float, float]:
    """Minimum and maximum of a row's ratios to its baseline."""
    return row["ratio"]["min"], row["ratio"]["max"]


def _style(salt: str) -> dict[Any, Any]:
    return {
        "svg.hashsalt": salt,
        "svg.fonttype": "path",  # the reader may lack the font
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
