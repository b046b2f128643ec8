"""udkd cache build, import, export, info, verify."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from udkd.cli.arguments import BackendOption, DatasetOption, RecipeArgument, RecipeOption, SetOption
from udkd.utils.commands import Commands
from udkd.utils.errors import CacheError, ConfigError
from udkd.utils.files import atomic_write
from udkd.utils.output import json_result, print_error, print_json, print_warning
from udkd.utils.printable import printable
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption, JsonOption, err, explain_machine_error, observed, out

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from udkd.teacher.cache.reader import Cache
    from udkd.teacher.cache.summary import CacheSummary

HISTOGRAM_BINS = 20
BAR_CHARACTERS = 48
_MAX_LISTED = 20  # missing views that are listed one by one

cache_app = Commands(help="Build, inspect, verify, import, export caches of logits.")

CacheArgument = Annotated[Path, typer.Argument(metavar="CACHE", help="Cache folder.")]
CachedDataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DATA", help="Dataset folder of the cache: adds the teacher's accuracy.")
]
DtypeOption = Annotated[str | None, typer.Option(metavar="DTYPE", help="float16 or float32. Short for teacher.logits_dtype.")]
TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        metavar="K",
        help="For many classes: keep the K largest logits and the mass of the rest. Short for teacher.top_k.",
    ),
]


@cache_app.command(
    "build",
    example="udkd cache build imagenet100-paper --data data --teacher teacher --out cache",
    old_order=("--data", "--teacher", "--out"),
    old_first=("--recipe",),
)
def build(
    data: DatasetOption,
    teachers: Annotated[
        list[Path],
        typer.Option(
            "--teacher",
            metavar="TEACHER",
            help="Teacher folder, written by udkd teacher fit or import. Repeat it for an ensemble.",
        ),
    ],
    cache: Annotated[
        Path, typer.Option("--out", metavar="CACHE", help="Cache folder to create, to resume, or to add views to.")
    ],
    recipe: RecipeArgument = "imagenet100-paper",
    views: Annotated[
        str | None,
        typer.Option(
            metavar="eval|K",
            help="eval: one evaluation view per sample; K: the first K augmented views. Shorthand for teacher.views.",
        ),
    ] = None,
    overrides: SetOption = None,
    logits_dtype: DtypeOption = None,
    top_k: TopKOption = None,
    features: Annotated[
        bool, typer.Option("--features", help="Also store the teacher's pooled features, for loss.method rkd and crd.")
    ] = False,
    backend: BackendOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Run a teacher once over every training sample; store its logits.

    Use the recipe that you will train with: it defines the views and the teacher's batch size, precision and estimator.
    The same command resumes after an interruption; a larger --views adds views and leaves existing ones untouched. Several
    processes share the work under torchrun: torchrun --nproc-per-node 2 -m udkd cache build ...
    """
    from udkd.config.loading import load_recipe
    from udkd.utils.workers import WorkerGroup

    group = WorkerGroup.join()
    with group.reports_once(explain_machine_error):
        if views is not None and views != "eval" and not (views.isdecimal() and int(views) > 0):
            raise ConfigError(f"--views {views!r}; expected eval or a number of views; change it")
        settings = list(overrides or [])
        settings += [f"teacher.views={views if views.isdecimal() else repr(views)}"] if views else []
        settings += [f'data.backend="{backend}"'] if backend else []
        loaded = load_recipe(recipe, [*settings, *_storage(logits_dtype, top_k)])  # before the imports that take seconds
        from udkd.data.dataset import DatasetFolder
        from udkd.teacher.cache.build import build_cache
        from udkd.teacher.folder import TeacherFolder
        from udkd.utils.environment import choose_device

        dataset = DatasetFolder.open(data)
        opened = [TeacherFolder.open(path) for path in teachers]
        with observed() as observer:
            built = build_cache(
                cache,
                dataset=dataset,
                teacher=opened[0],
                other_teachers=opened[1:],
                recipe=loaded,
                device=choose_device(group.device_name(device)),
                features=features,
                observer=observer if group.is_main else SILENT,
                group=group,
            )
    if not group.is_main:
        return
    if built.num_images:
        err.print(f"predicted {built.num_images:,} images in {built.seconds:.1f} s, {built.images_per_s:,.0f} images/s")
    else:
        err.print("nothing to do: every view is complete")
    out.print(_description(built.cache, built.summary))


def _storage(logits_dtype: str | None, top_k: int | None) -> list[str]:
    """The recipe settings of the options."""
    settings = [f'teacher.logits_dtype="{logits_dtype}"'] if logits_dtype else []
    return settings + ([f"teacher.top_k={top_k}"] if top_k is not None else [])


@cache_app.command("import", example="udkd cache import logits.npy --data data --out cache", old_order=("--data", "", "--out"))
def import_(
    logits: Annotated[
        Path,
        typer.Argument(
            metavar="LOGITS",
            help=".npy [N, C], .safetensors (a tensor logits, and perhaps ids) or .parquet (a column logits, or one column for "
            "each class, and a column id, path or file_name).",
        ),
    ],
    data: DatasetOption,
    cache: Annotated[Path, typer.Option("--out", metavar="CACHE", help="Cache folder to create, or to resume.")],
    names: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file name of each row, one per line. Default: rows are in id order."),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The class of each column, one per line: wnid (or folder name) or readable name. Columns of other classes are "
            "left out. imagenet1k: ImageNet's 1,000. Default: the columns are the data's classes in their order.",
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="The rows are probabilities; store their logarithms.")
    ] = False,
    teacher_name: Annotated[str, typer.Option(metavar="NAME", help="Name of the teacher. Default: the file's name.")] = "",
    recipe: RecipeOption = "imagenet100-paper",
    overrides: SetOption = None,
    logits_dtype: DtypeOption = None,
    top_k: TopKOption = None,
) -> None:
    """Make a cache of logits that another program computed.

    The file has one row for each training image. Everything is checked first. What nothing can check, such as the pixels
    that the teacher saw, is recorded as your claim: the recipe's evaluation view. Train with teacher.views = "eval".
    """
    from udkd.config.loading import load_recipe

    loaded = load_recipe(recipe, [*(overrides or []), *_storage(logits_dtype, top_k)])
    from udkd.data.dataset import DatasetFolder
    from udkd.teacher.cache.import_logits import import_cache

    dataset = DatasetFolder.open(data)
    with observed() as observer:
        imported = import_cache(
            cache,
            dataset=dataset,
            logits=logits,
            recipe=loaded,
            teacher=teacher_name,
            names=names,
            class_names=class_names,
            probabilities=probabilities,
            observer=observer,
        )
    if imported.num_images:
        err.print(f"imported {imported.num_images:,} rows in {imported.seconds:.1f} s")
    else:
        err.print("nothing to do: the cache is complete")
    out.print(_description(imported.cache, imported.summary))
    top1 = imported.summary.top1
    if top1 is not None and top1 <= 150 / len(dataset.classes):
        print_warning(
            "this is hardly better than chance: are these rows these images and these columns these classes, in this order?"
        )


@cache_app.command("export", example="udkd cache export cache --data data --out logits.parquet", old_order=("", "--out"))
def export(
    cache: CacheArgument,
    file: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="File to create: .npy [N, C], .safetensors or .parquet, the latter two with ids."
        ),
    ],
    view: Annotated[int, typer.Option(metavar="N", min=0, help="Number of the view.")] = 0,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DATA", help="Dataset folder of the cache: adds labels and file names.")
    ] = None,
) -> None:
    """Write the logits of one view for other programs.

    Rows are in id order, with ids, entropies and weights.
    """
    from udkd.data.dataset import DatasetFolder
    from udkd.teacher.cache.export_logits import export_cache
    from udkd.teacher.cache.reader import Cache

    dataset = None if data is None else DatasetFolder.open(data)
    with observed() as observer:
        count = export_cache(Cache.open(cache), file, view=view, dataset=dataset, observer=observer)
    err.print(f"{count:,} rows in {file}")


@cache_app.command("info", example="udkd cache info cache --data data --picture weights.png")
def info(
    cache: CacheArgument,
    data: CachedDataOption = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.png", help="Also plot the histogram.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a cache's key, size, means and a histogram of the weights."""
    from udkd.teacher.cache.reader import Cache
    from udkd.teacher.cache.summary import summarise_cache, weight_histogram

    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture {picture}; expected a name that ends in .png; change it")
    opened = Cache.open(cache)
    labels = _labels(opened, data) if data is not None else None
    summary = summarise_cache(opened, labels)
    counts = weight_histogram(opened, HISTOGRAM_BINS)
    if as_json:
        print_json(_values(opened, summary, counts))
    else:
        out.print(_description(opened, summary))
        out.print(_histogram(counts))
    if picture is not None:
        _plot(counts, opened, picture)
        err.print(f"histogram in {picture}")


@cache_app.command("verify", example="udkd cache verify cache --recompute 1% --data data --teacher teacher")
def verify_command(
    cache: CacheArgument,
    recompute: Annotated[
        str | None,
        typer.Option(metavar="1%|COUNT", help="Also compare this many random (sample, view) pairs with the teacher."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DATA", help="The cache's dataset folder, for --recompute.")
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(metavar="TEACHER", help="Teacher folder, for --recompute. Repeat it for an ensemble, in the same order."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", min=0, help="Seed of the pairs that --recompute draws.")] = 0,
    backend: BackendOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check every block against its checksum, and some with the teacher.

    Lists everything that is damaged, missing, unexpected or, with --recompute, beyond the bounds; the exit code is then 1.
    """
    from udkd.teacher.cache.reader import Cache

    opened = Cache.open(cache)
    amount = _amount(recompute) if recompute is not None else None
    if amount is not None and opened.key.claimed:
        raise CacheError(
            f"{cache} was imported: udkd has no teacher to recompute its logits with; expected a cache of udkd cache build; "
            "leave out --recompute"
        )
    if (data is None or not teacher) and amount is not None:
        raise ConfigError("--recompute needs the data and the teacher; expected --data DATA --teacher TEACHER; add them")
    with json_result(as_json) as result:
        _verify(opened, result)
        if amount is not None and data is not None and teacher:
            _recompute(opened, result, amount, data, teacher, seed, backend, device)
        result["intact"] = True


def _verify(opened: "Cache", result: dict[str, Any]) -> None:
    from udkd.teacher.cache.reader import find_damaged_blocks, unexpected_files

    damaged = find_damaged_blocks(opened)
    problems = [f"view {view}: block {block} is damaged" for view, block in damaged] + unexpected_files(opened)
    result |= {"cache": str(opened.folder), "intact": False, "views": len(opened.views), "bytes": opened.num_bytes}
    result["problems"] = problems
    for problem in problems:
        print_error(problem)
    if damaged:
        views = ", ".join(map(str, sorted({view for view, _ in damaged})))
        raise CacheError(
            f"{len(damaged)} damaged blocks in views {views} of {opened.folder}; "
            "expected none; delete those view files and run `udkd cache build` again, which computes missing views"
        )
    if problems:
        raise CacheError(
            f"{opened.folder} is not a complete cache ({problems[0]}); expected all views and nothing else; "
            "run `udkd cache build` again for missing views, remove unexpected files"
        )
    out.print(f"{len(opened.views)} views, {opened.num_bytes / 1e6:,.1f} MB: all checksums match")


def _amount(text: str) -> float | int:
    """A fraction of all pairs (float) or a number of them (int)."""
    try:
        value: float | int = float(text.removesuffix("%")) / 100 if text.endswith("%") else int(text)
    except ValueError:
        value = -1
    if not (0 < value <= 1 if isinstance(value, float) else value > 0):
        raise ConfigError(f"--recompute {text!r}; expected a fraction such as 1% or a number of pairs; change it")
    return value


def _recompute(
    cache: "Cache",
    document: dict[str, Any],
    amount: float | int,
    data: Path,
    teachers: list[Path],
    seed: int,
    backend: str | None,
    device: str,
) -> None:
    from udkd.data.dataset import DatasetFolder
    from udkd.teacher.cache.verify import compare_with_teacher
    from udkd.teacher.folder import TeacherFolder
    from udkd.utils.environment import choose_device

    dataset = DatasetFolder.open(data)
    total = len(dataset.split(cache.key.split).ids) * len(cache.views)
    count = min(total, max(1, round(amount * total)) if isinstance(amount, float) else amount)
    with observed() as observer:
        result = compare_with_teacher(
            cache,
            dataset=dataset,
            teachers=[TeacherFolder.open(teacher) for teacher in teachers],
            count=count,
            seed=seed,
            device=choose_device(device),
            backend=backend or "auto",
            observer=observer,
        )
    bounds = {name: getattr(result, f"{name}_bound") for name in ("probability", "weight", "features")}
    document["recomputed"] = {
        "pairs": result.num_pairs,
        "of": total,
        **{name: {"difference": getattr(result, name), "bound": bound} for name, bound in bounds.items()},
        "worst": result.worst,
    }
    if result.error is not None:
        out.print(
            f"{cache.key.precision} moves a probability by up to {result.error.probability:.1e} from float32's, a weight by "
            f"{result.error.weight:.1e}: two predictions may differ by twice that"
        )
    out.print(
        f"{result.num_pairs:,} of {total:,} pairs recomputed: largest difference of a probability {result.probability:.2e} "
        f"(bound {result.probability_bound:.2e}), of a weight {result.weight:.2e} (bound {result.weight_bound:.2e})"
    )
    if cache.key.features:
        out.print(f"features: largest difference {result.features:.2e} of a row's largest (bound {result.features_bound:.2e})")
    if result.worst is not None:
        view, sample = result.worst
        raise CacheError(
            f"{cache.folder} differs from this teacher's predictions: id {sample} of view {view} is beyond the bound; "
            "expected equal predictions; build the cache again, or find out what changed (pixels, drivers, versions)"
        )


def _labels(cache: "Cache", data: Path) -> "NDArray[np.int32]":
    from udkd.data.dataset import DatasetFolder

    dataset = DatasetFolder.open(data)
    cache.require({"dataset_digest": dataset.digest, "num_classes": len(dataset.classes)})
    return dataset.split(cache.key.split).labels


def _description(cache: "Cache", summary: "CacheSummary") -> Table:
    key, scheme, size_px = cache.key, cache.key.views.get("scheme"), cache.key.views.get("size_px")
    rows = {
        "views": f"{summary.num_views} ({key.policy}, {scheme}, {size_px} px, seed {key.seed})",
        "targets": f"{summary.num_targets:,} of {key.num_classes} classes, {cache.num_rows:,} {key.split} samples",
        "size": f"{summary.num_bytes / 1e6:,.1f} MB, {summary.num_bytes / max(summary.num_targets, 1):.1f} bytes a target",
        "mean weight": f"{summary.mean_weight:.4f}",
        "mean entropy": f"{summary.mean_entropy:.4f} of {summary.max_entropy:.4f} nats",
        **{f"mean {name.replace('_', ' ')}": f"{value:.4f}" for name, value in summary.mean_others.items()},
        "teacher": f"{key.teacher}, {key.precision} on {key.device}, weights {_short(key.teacher_sha256)}",
        "estimator": key.estimator,
        "build": f"batch {key.teacher_batch}, blocks of {key.block_rows}, {_layout(cache)}, stored as {key.storage}",
        "data": f"{key.dataset_digest[:16]}…, {key.pixel_class}",
    }
    if key.claimed:
        rows["teacher"] = f"{key.teacher}, imported, sha256 {_short(key.teacher_sha256)}"
        rows["build"] = f"blocks of {key.block_rows}, stored as {key.storage}"
        rows["data"] = f"{key.dataset_digest[:16]}…"
        rows["not checked"] = f"{', '.join(key.claimed)}: claims of the import"
    if key.features:
        rows["features"] = f"{key.features} float16 numbers a target, the teacher's pooled features"
    if cache.missing:
        more = f" and {len(cache.missing) - _MAX_LISTED:,} more" if len(cache.missing) > _MAX_LISTED else ""
        missing = ", ".join(map(str, cache.missing[:_MAX_LISTED]))
        rows["missing"] = f"views {missing}{more}: they were built and are missing now; build again to restore them"
    if summary.top1 is not None:
        shares = ", where each label of a mixed view counts by its share" if key.mixes else ""
        rows["teacher accuracy"] = f"top-1 {summary.top1:.2f} %, top-5 {summary.top5:.2f} % of these targets{shares}"
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _values(cache: "Cache", summary: "CacheSummary", counts: "NDArray[np.int64]") -> dict[str, Any]:
    """For JSON: the key's fields as they are stored, the means, and the histogram in equal bins of the weight from 0 to 1."""
    values = asdict(summary) | {"mean_others": dict(summary.mean_others)}
    return {
        "cache": str(cache.folder),
        "key": asdict(cache.key),
        **values,
        "missing": cache.missing,
        "weights": counts.tolist(),
    }


def _short(digests: str) -> str:
    return " + ".join(f"{digest[:16]}…" for digest in digests.split(" + "))


def _layout(cache: "Cache") -> str:
    layout = "channels last" if cache.key.channels_last else "channels first"
    return f"{layout}, {cache.key.threads} threads" if cache.key.device == "cpu" else layout


def _histogram(counts: "NDArray[np.int64]") -> Table:
    table = Table("weight", "targets", "", box=None, pad_edge=False, title="weights", title_justify="left")
    table.columns[1].justify = "right"
    for number, count in enumerate(counts.tolist()):
        bar = "█" * round(BAR_CHARACTERS * count / max(int(counts.max()), 1))
        table.add_row(f"{number / len(counts):.2f} - {(number + 1) / len(counts):.2f}", f"{count:,}", bar)
    return table


def _plot(counts: "NDArray[np.int64]", cache: "Cache", path: Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, len(counts) + 1)
    axes.bar(edges[:-1], counts / max(int(counts.sum()), 1), width=1 / len(counts), align="edge", edgecolor="white")
    axes.set_xlabel("confidence weight of the teacher, w = 1 - H / ln C")
    axes.set_ylabel("fraction of the targets")
    axes.set_title(printable(f"{cache.key.teacher}: {int(counts.sum()):,} targets", 200), fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
