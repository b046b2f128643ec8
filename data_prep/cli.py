"""The commands of `udkd data`, which `udkd-prep` runs, too."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from udkd.utils.errors import UserError
from udkd.utils.files import FolderLock
from udkd.utils.operating_system import available_cores
from udkd.utils.output import err, out, run
from udkd.utils.terminal import observed

app = typer.Typer(
    help="Prepare images once, for udkd to train on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # so that errors, and brackets in help texts, are shown verbatim
)
FolderArgument = Annotated[Path, typer.Argument(help="A dataset folder.", show_default=False)]
WorkersOption = Annotated[
    int, typer.Option(help="Worker processes; 0 for one per core. The result does not depend on it.", min=0)
]
MAX_LISTED_PROBLEMS = 10
# Written out, as the modules that define them take half a second to import; a test compares.
LAYOUTS = "`ilsvrc`, `webdataset`, `beton`, `arrow`, `table`, `parquet`, `imagefolder`, `classfolders`"
FORMAT_NAMES = "`resident` (canvas.npy), `ffcv` (samples.beton), `dali` (samples-*.tfrecord and .idx)"
PIXEL_LIMIT = 100_000_000


@app.command()
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, tars or zips of images, `[train/|val/]<class>/<name>`; ILSVRC2012's tars as downloaded, with the "
            "devkit or LOC_val_solution.csv; tables of paths and labels (.csv, .tsv, .jsonl, .parquet); Hugging Face's "
            "parquet and arrow files; WebDatasets; .beton files. Compressed tars (gz, bz2, xz, zst); tars and parquet files at "
            "addresses: 'https://host/train-{000..146}.tar', 's3://bucket/train-*.tar'. Several sources form one dataset.",
            show_default=False,
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="The dataset folder to write.", show_default=False)],
    side: Annotated[int, typer.Option(help="Canvas side S in pixels: stored images fit in S x S.")] = 512,
    fit: Annotated[
        Literal["pad", "squash"],
        typer.Option(
            help="pad: images up to S keep their bytes, larger ones are scaled down; squash: all images are resampled to S x S."
        ),
    ] = "pad",
    layout: Annotated[str, typer.Option(help=f"Layout of the sources: `auto` to detect it, or {LAYOUTS}.")] = "auto",
    image_field: Annotated[
        str | None,
        typer.Option(
            "--image-field",
            "--image-column",
            help="If samples have several images: the column, the WebDataset's file extension or the .beton's field.",
        ),
    ] = None,
    label_field: Annotated[
        str | None,
        typer.Option(
            "--label-field",
            "--label-column",
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
        str, typer.Option(help="`imagenet100`, a file with one class per line (a folder, a wnid or ImageNet's name), or `all`.")
    ] = "all",
    class_names: Annotated[
        Path | None,
        typer.Option(
            help="A file with the classes' names or wnids: one per line, line i for label i; lines of wnid and name; or JSON, "
            "a list by label or an object by label or class folder.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated formats to derive from the tar shards: {FORMAT_NAMES}; or `none`, or `auto` (resident, "
            "except for padded canvases over 256 px). `derive` can add more at any time."
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
        int, typer.Option(help="Images with more pixels are treated as bad and are not decoded.")
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
    quality: Annotated[int, typer.Option(help="JPEG quality of images that must be encoded.")] = 95,
    subsampling: Annotated[
        Literal["4:4:4", "4:2:0"], typer.Option(help="Chroma subsampling of images that must be encoded.")
    ] = "4:4:4",
    workers: WorkersOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset in FOLDER.")] = False,
) -> None:
    """Convert images into a dataset folder. Every image is checked.

    After an interruption, the same command resumes. FOLDER/report.json lists what was fixed and which images cannot be used.
    """
    from udkd.data_prep.api import convert as convert_sources

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


@app.command()
def derive(
    folder: FolderArgument,
    formats: Annotated[str, typer.Option(help=f"Comma-separated formats to write again: {FORMAT_NAMES}.")] = "resident",
    workers: WorkersOption = 0,
) -> None:
    """Write derived formats from the shards of a finished dataset folder. The source is not needed."""
    from udkd.data.dataset import DatasetFolder
    from udkd.data_prep.formats import DatasetSize, default_formats, derive_formats, parse_formats, size_texts

    chosen = parse_formats(formats)
    dataset = DatasetFolder.open(folder)
    names = default_formats(dataset.fit, dataset.side) if chosen is None else chosen
    with FolderLock(folder), observed(summaries=True) as observer:
        for line in size_texts(names, DatasetSize.of(dataset)).values():
            observer.note(line)
        derive_formats(dataset, names, workers=workers or available_cores(), observer=observer)


@app.command()
def info(folder: FolderArgument) -> None:
    """Show the contents of a dataset folder: counts, sizes, formats, fixed and excluded images."""
    _print_info(folder)


@app.command()
def verify(folder: FolderArgument) -> None:
    """Check every byte of a dataset folder against its checksums. Exit code 1 if anything differs."""
    from udkd.data_prep.verify import verify as verify_folder

    with observed(summaries=True) as observer:
        problems = verify_folder(folder, observer)
    for line in problems[:MAX_LISTED_PROBLEMS]:
        err.print(line)
    if problems:
        raise UserError(f"{folder}: {len(problems):,} problems found; expected none; convert again or restore the folder")
    _print(f"{folder}: intact")


@app.command()
def sheet(
    folder: FolderArgument,
    out: Annotated[Path, typer.Argument(help="The PNG file to write.", show_default=False)],
    split: Annotated[Literal["train", "val"], typer.Option(help="Split to draw images from.")] = "train",
    images: Annotated[int, typer.Option(help="Number of images, spread evenly over the classes.")] = 48,
) -> None:
    """Write a contact sheet: stored images with their classes and fixes."""
    from udkd.data_prep.contact_sheet import write_contact_sheet

    count = write_contact_sheet(folder, out, split=split, images=images)
    _print(f"{out}: {count} images")


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="The ImageFolder tree to write.", show_default=False)],
    classes: Annotated[int, typer.Option(help="Number of classes, in easily confused pairs.", min=2)] = 10,
    images: Annotated[int, typer.Option(help="Total number of training images.", min=1)] = 1600,
    val_images: Annotated[int, typer.Option(help="Total number of validation images.", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.", min=0)] = 0,
    workers: WorkersOption = 0,
) -> None:
    """Write the synthetic dataset: class-structured JPEGs of varying size, as an ImageFolder tree."""
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
    """Run the command line. Exit codes: 0, 1 for a user error, 2 for a usage error, 128 + n for signal n."""
    from udkd.utils.stdio import install_safe_streams

    install_safe_streams()
    run(app)


if __name__ == "__main__":
    main()
