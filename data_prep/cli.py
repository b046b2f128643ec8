"""The commands of `udkd data`; `udkd-prep`, their earlier name, runs them, too."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from udkd.utils.commands import Commands
from udkd.utils.errors import ConfigError, UserError
from udkd.utils.files import FolderLock
from udkd.utils.operating_system import available_cores
from udkd.utils.output import out, print_error, print_json, run
from udkd.utils.terminal import JsonOption, observed

app = Commands(help="Convert images to a dataset folder; inspect and verify it.")
FolderArgument = Annotated[Path, typer.Argument(metavar="DATA", help="A dataset folder.")]
WorkersOption = Annotated[
    int, typer.Option(metavar="N", help="Worker processes; 0 for one per core. The result does not depend on it.", min=0)
]
MAX_LISTED_PROBLEMS = 10
# Written out, as the modules that define them take half a second to import; a test compares.
LAYOUTS = "`ilsvrc`, `webdataset`, `beton`, `arrow`, `table`, `parquet`, `imagefolder`, `classfolders`"
FORMAT_NAMES = "`resident` (canvas.npy), `ffcv` (samples.beton), `dali` (samples-*.tfrecord and .idx)"
PIXEL_LIMIT = 100_000_000


@app.command("convert", example="udkd data convert photos --out data --hold-out 10")
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="Folders, tars or zips of images, `[train/|val/]<class>/<name>`; ILSVRC2012's tars as downloaded, with the "
            "devkit or LOC_val_solution.csv; tables of paths and labels (.csv, .tsv, .jsonl, .parquet); Hugging Face's "
            "parquet and arrow files; WebDatasets; .beton files. Compressed tars (gz, bz2, xz, zst); tars and parquet files at "
            "addresses: 'https://host/train-{000..146}.tar', 's3://bucket/train-*.tar'. Several sources form one dataset.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DATA", help="The dataset folder to write. Default: the last argument, as with cp."),
    ] = None,
    side: Annotated[int, typer.Option(metavar="S", help="Canvas side S in pixels: stored images fit in S x S.")] = 512,
    fit: Annotated[
        Literal["pad", "squash"],
        typer.Option(
            help="pad: images up to S keep their bytes, larger ones are scaled down; squash: all images are resampled to S x S."
        ),
    ] = "pad",
    layout: Annotated[
        str, typer.Option(metavar="LAYOUT", help=f"Layout of the sources: `auto` to detect it, or {LAYOUTS}.")
    ] = "auto",
    image_field: Annotated[
        str | None,
        typer.Option(
            "--image-field",
            "--image-column",
            metavar="NAME",
            help="If samples have several images: the column, the WebDataset's file extension or the .beton's field.",
        ),
    ] = None,
    label_field: Annotated[
        str | None,
        typer.Option(
            "--label-field",
            "--label-column",
            metavar="NAME",
            help="If samples have several labels: the column, the .beton's field, the WebDataset's file extension or "
            "the key in its .json.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For tables: the folder that their paths are relative to, if it is not the table's.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str,
        typer.Option(
            metavar="CLASSES",
            help="`imagenet100`, a file with one class per line (a folder, a wnid or ImageNet's name), or `all`.",
        ),
    ] = "all",
    class_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file with the classes' names or wnids: one per line, line i for label i; lines of wnid and name; or JSON, "
            "a list by label or an object by label or class folder.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            metavar="FORMATS",
            help=f"Comma-separated formats to derive from the tar shards: {FORMAT_NAMES}; or `none`, or `auto` (resident, "
            "except for padded canvases over 256 px). `derive` can add more at any time.",
        ),
    ] = "auto",
    on_bad: Annotated[
        Literal["fix", "skip", "fail"],
        typer.Option(
            help="What to do with images that cannot be used. fail: stop, and write no usable folder; skip: leave them out and "
            "count them; fix: keep the intact part of truncated JPEGs if it is at least half, and leave out the others."
        ),
    ] = "fail",
    exif: Annotated[
        Literal["ignore", "apply"],
        typer.Option(help="EXIF orientation tag: ignored, as usual for ImageNet, or applied to the pixels."),
    ] = "ignore",
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Images with more pixels are treated as bad and are not decoded.")
    ] = PIXEL_LIMIT,
    hold_out: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="For sources without val/: percent of the images to hold out for validation, chosen by a hash of each name. "
            "100: a test set, for udkd eval --data.",
        ),
    ] = None,
    val: Annotated[
        Literal["val", "test"], typer.Option(help="Split of the source to validate on: `test` for sources without val/.")
    ] = "val",
    quality: Annotated[int, typer.Option(metavar="Q", help="JPEG quality of images that must be encoded.")] = 95,
    subsampling: Annotated[
        Literal["4:4:4", "4:2:0"], typer.Option(help="Chroma subsampling of images that must be encoded.")
    ] = "4:4:4",
    workers: WorkersOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset in DATA.")] = False,
) -> None:
    """Convert images to a dataset folder; every image is checked.

    After an interruption, the same command resumes. DATA/report.json lists what was fixed and which images cannot be used.
    """
    from udkd.data_prep.api import convert as convert_sources

    if folder is None:  # like cp
        *sources, last = sources
        folder = Path(last)
    if not sources:
        raise ConfigError(f"found one folder, {folder}; expected images and a folder to write; add --out DATA")
    with observed(summaries=True) as observer:
        convert_sources(
            sources,
            folder,
            side=side,
            fit=fit,
            layout=layout,
            image_field=image_field,
            label_field=label_field,
            images=images,
            classes=classes,
            class_names=class_names,
            formats=formats,
            on_bad=on_bad,
            exif=exif,
            max_pixels=max_pixels,
            hold_out=hold_out,
            val=val,
            quality=quality,
            subsampling=subsampling,
            workers=workers,
            overwrite=overwrite,
            observer=observer,
        )
    _print_info(folder)


@app.command("derive", example="udkd data derive data --formats resident,dali")
def derive(
    folder: FolderArgument,
    formats: Annotated[
        str, typer.Option(metavar="FORMATS", help=f"Comma-separated formats to write again: {FORMAT_NAMES}.")
    ] = "resident",
    workers: WorkersOption = 0,
) -> None:
    """Write further formats of a dataset folder, from its shards.

    The source is not needed.
    """
    from udkd.data.dataset import DatasetFolder
    from udkd.data_prep.formats import DatasetSize, default_formats, derive_formats, parse_formats, size_texts

    chosen = parse_formats(formats)
    dataset = DatasetFolder.open(folder)
    names = default_formats(dataset.fit, dataset.side) if chosen is None else chosen
    with FolderLock(folder), observed(summaries=True) as observer:
        for line in size_texts(names, DatasetSize.of(dataset)).values():
            observer.note(line)
        derive_formats(dataset, names, workers=workers or available_cores(), observer=observer)


@app.command("stage", example="udkd data stage /shared/imagenet /local/imagenet")
def stage(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A dataset folder, or the address of one, such as s3://bucket/imagenet.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to copy it to, on a disk of this machine.")],
    formats: Annotated[
        str,
        typer.Option(
            metavar="FORMATS",
            help=f"Comma-separated formats to derive from the shards: {FORMAT_NAMES}; or `none`, or `auto` as in convert.",
        ),
    ] = "none",
    workers: WorkersOption = 0,
) -> None:
    """Copy a dataset folder to a disk near the node, checked.

    After an interruption, the same command resumes. Of several processes with one FOLDER, one works and the others wait.
    """
    from udkd.data_prep.formats import parse_formats
    from udkd.data_prep.sources.address import location_of, require_path
    from udkd.data_prep.stage import stage as stage_folder

    folder = require_path(folder)
    with observed() as observer:
        staged = stage_folder(
            location_of(source),
            folder,
            formats=parse_formats(formats),
            workers=workers or available_cores(),
            observer=observer,
        )
    if staged is None:
        _print(f"{folder} is complete: there is nothing to do")
        return
    copied, kept = staged.copied_bytes / 1e6, staged.kept_bytes / 1e6
    parts = [f"copied {copied:,.1f} MB in {staged.seconds:,.1f} s ({copied / staged.seconds:,.0f} MB/s)"] if copied else []
    parts += [f"{kept:,.1f} MB were there already"] if kept else []
    parts += [f"derived {', '.join(staged.formats)}"] if staged.formats else []
    _print(f"{folder}: {'; '.join(parts)}")


@app.command("info", example="udkd data info data")
def info(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Show what a dataset folder holds: images, sizes, formats, fixes."""
    from udkd.data_prep.info import describe

    if as_json:
        print_json(describe(folder))
    else:
        _print_info(folder)


@app.command("verify", example="udkd data verify data")
def verify(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Check every byte of a dataset folder against its checksums.

    The exit code is 1 if anything differs.
    """
    from udkd.data_prep.verify import verify as verify_folder

    with observed(summaries=True) as observer:
        problems = verify_folder(folder, observer)
    if as_json:
        print_json({"data": str(folder), "intact": not problems, "problems": problems})
    for line in problems[:MAX_LISTED_PROBLEMS]:
        print_error(line)
    if problems:
        raise UserError(f"{folder}: {len(problems):,} problems found; expected none; convert again or restore the folder")
    if not as_json:
        _print(f"{folder}: intact")


@app.command("sheet", example="udkd data sheet data --out sheet.png", old_order=("", "--out"))
def sheet(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The PNG file to write.")],
    split: Annotated[Literal["train", "val"], typer.Option(help="Split to draw images from.")] = "train",
    images: Annotated[int, typer.Option(metavar="N", help="Number of images, spread evenly over the classes.")] = 48,
) -> None:
    """Write a picture of many images with their classes and fixes."""
    from udkd.data_prep.contact_sheet import write_contact_sheet

    count = write_contact_sheet(folder, out, split=split, images=images)
    _print(f"{out}: {count} images")


@app.command("synth", example="udkd data synth --out images", old_order=("--out",))
def synth(
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The ImageFolder tree to write.")],
    classes: Annotated[int, typer.Option(metavar="N", help="Number of classes, in easily confused pairs.", min=2)] = 10,
    images: Annotated[int, typer.Option(metavar="N", help="Total number of training images.", min=1)] = 1600,
    val_images: Annotated[int, typer.Option(metavar="N", help="Total number of validation images.", min=1)] = 300,
    seed: Annotated[int, typer.Option(metavar="SEED", help="The same seed gives the same files.", min=0)] = 0,
    workers: WorkersOption = 0,
) -> None:
    """Write synthetic images: JPEGs of several classes and sizes.

    They form an ImageFolder tree, FOLDER/train/CLASS/NAME and FOLDER/val/CLASS/NAME.
    """
    from udkd.data_prep.synth import synth as write_tree

    with observed(summaries=True) as observer:
        write_tree(
            folder,
            classes=classes,
            images=images,
            val_images=val_images,
            seed=seed,
            workers=workers or available_cores(),
            observer=observer,
        )


def _print(line: str) -> None:
    out.print(line, soft_wrap=True)


def _print_info(folder: Path) -> None:
    from udkd.data_prep.info import info_lines

    for line in info_lines(folder):
        _print(line)


def main() -> None:
    """Run `udkd-prep`. Exit codes: see `udkd --help`."""
    from udkd.utils.stdio import install_safe_streams

    install_safe_streams()
    run(lambda: app(prog_name="udkd-prep"))


if __name__ == "__main__":
    main()
