"""udkd cache build, udkd cache info, udkd cache verify."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from udkd.actors.cache_builder import build_cache
from udkd.console.terminal import BackendOption, DeviceOption, RecipeOption, SetOption, err, observed, out
from udkd.formats.cache import Cache, CacheSummary, summarise, verify, weight_histogram
from udkd.formats.config import load_recipe
from udkd.formats.dataset import DatasetFolder
from udkd.formats.teacher import TeacherFolder
from udkd.parts.environment import choose_device
from udkd.words.errors import CacheError, ConfigError
from udkd.words.files import atomic

BINS = 20
BAR_CHARACTERS = 48

cache_app = typer.Typer(no_args_is_help=True, help="The teacher's logits and weights, computed once.")

CacheArgument = Annotated[Path, typer.Argument(metavar="CACHE", help="Cache folder.")]


@cache_app.command("build")
def build(
    data: Annotated[Path, typer.Argument(metavar="FOLDER", help="Dataset folder, made by udkd-prep convert.")],
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="Teacher folder, made by udkd teacher fit or import.")],
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="Folder to make, to go on with, or to add views to.")],
    views: Annotated[
        str | None,
        typer.Option(
            metavar="canonical|K",
            help="canonical: one evaluation view a sample; K: the first K augmented views. Short for teacher.views.",
        ),
    ] = None,
    recipe: RecipeOption = "imagenet100-paper",
    overrides: SetOption = None,
    backend: BackendOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Ask the teacher once about every training sample and write down what it says.

    Views, evaluation, teacher batch and precision come from the recipe, which should be the one to train with.
    The same command goes on after an interruption; a larger --views adds views and leaves what is there untouched.
    """
    if views is not None and views != "canonical" and not (views.isdecimal() and int(views) > 0):
        raise ConfigError(f"--views {views!r}; expected canonical or a number of views; change it")
    chosen = list(overrides or [])
    chosen += [f"teacher.views={views if views.isdecimal() else repr(views)}"] if views else []
    chosen += [f'data.backend="{backend}"'] if backend else []
    how = load_recipe(recipe, chosen)
    dataset, folder = DatasetFolder.open(data), TeacherFolder.open(teacher)
    with observed() as observer:
        built = build_cache(cache, dataset=dataset, teacher=folder, recipe=how, device=choose_device(device), observer=observer)
    if built.num_images:
        err.print(f"asked about {built.num_images:,} images in {built.seconds:.1f} s, {built.images_per_s:,.0f} images/s")
    else:
        err.print("nothing to do: every view is there already")
    out.print(_described(built.cache, built.summary))


@cache_app.command("info")
def info(
    cache: CacheArgument,
    data: Annotated[
        Path | None, typer.Option("--data", help="Dataset folder the cache was made of: adds the teacher's accuracy.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.png", help="Also draw the histogram.")] = None,
) -> None:
    """Show a cache's key, size, mean weight and entropy, and how the weights are spread."""
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture {picture}; expected a name that ends in .png; change it")
    opened = Cache.open(cache)
    labels = _labels(opened, data) if data is not None else None
    out.print(_described(opened, summarise(opened, labels)))
    counts = weight_histogram(opened, BINS)
    out.print(_histogram(counts))
    if picture is not None:
        _draw(counts, opened, picture)
        err.print(f"histogram in {escape(str(picture))}")


@cache_app.command("verify")
def verify_command(cache: CacheArgument) -> None:
    """Check every block of every view against its checksum; damage is named and the exit code is 1."""
    opened = Cache.open(cache)
    damaged = verify(opened)
    for view, block in damaged:
        err.print(f"view {view}: block {block} does not match its checksum")
    if damaged:
        raise CacheError(
            f"{len(damaged)} damaged blocks in views {', '.join(map(str, sorted({view for view, _ in damaged})))} of {cache}; "
            "expected none; delete those view files and run `udkd cache build` again: it computes what is missing"
        )
    out.print(f"{len(opened.views)} views, {opened.num_bytes / 1e6:,.1f} MB: every checksum matches")


def _labels(cache: Cache, data: Path) -> NDArray[np.int32]:
    dataset = DatasetFolder.open(data)
    cache.require({"dataset_digest": dataset.digest})
    return dataset.split(cache.key.split).labels


def _described(cache: Cache, summary: CacheSummary) -> Table:
    key = cache.key
    rows = {
        "views": f"{summary.num_views} ({key.policy}, {key.views['scheme']}, {key.views['size_px']} px, seed {key.seed})",
        "targets": f"{summary.num_targets:,} of {key.num_classes} classes, {cache.num_rows:,} {key.split} samples",
        "size": f"{summary.num_bytes / 1e6:,.1f} MB, {summary.num_bytes / max(summary.num_targets, 1):.1f} bytes a target",
        "mean weight": f"{summary.mean_weight:.4f}",
        "mean entropy": f"{summary.mean_entropy:.4f} of {summary.max_entropy:.4f} nats",
        "teacher": f"{key.teacher}, {key.precision} on {key.device}, weights {key.teacher_sha256[:16]}…",
        "build": f"batch {key.teacher_batch}, blocks of {key.block_rows}, {_layout(cache)}, stored as {key.storage}",
        "data": f"{key.dataset_digest[:16]}…, {key.pixel_class}",
    }
    if summary.top1 is not None:
        rows["teacher right"] = f"top-1 {summary.top1:.2f} %, top-5 {summary.top5:.2f} % of these targets"
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _layout(cache: Cache) -> str:
    layout = "channels last" if cache.key.channels_last else "channels first"
    return f"{layout}, {cache.key.threads} threads" if cache.key.device == "cpu" else layout


def _histogram(counts: NDArray[np.int64]) -> Table:
    table = Table("weight", "targets", "", box=None, pad_edge=False, title="weights", title_justify="left")
    table.columns[1].justify = "right"
    for number, count in enumerate(counts.tolist()):
        bar = "█" * round(BAR_CHARACTERS * count / max(int(counts.max()), 1))
        table.add_row(f"{number / len(counts):.2f} - {(number + 1) / len(counts):.2f}", f"{count:,}", bar)
    return table


def _draw(counts: NDArray[np.int64], cache: Cache, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, len(counts) + 1)
    axes.bar(edges[:-1], counts / max(int(counts.sum()), 1), width=1 / len(counts), align="edge", edgecolor="white")
    axes.set_xlabel("confidence weight of the teacher, w = 1 - H / ln C")
    axes.set_ylabel("share of the targets")
    axes.set_title(f"{cache.key.teacher}: {int(counts.sum()):,} targets", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        figure.savefig(file, format="png")
