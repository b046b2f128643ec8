"""`udkd.convert`: the command `udkd data convert` as a function, also for datasets of PyTorch."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from udkd.data.dataset import Dataset
from udkd.data_prep.class_names import class_names_of
from udkd.data_prep.convert import ConvertSettings, convert_datasets
from udkd.data_prep.convert import convert as convert_paths
from udkd.data_prep.formats import parse_formats
from udkd.data_prep.image import PIXEL_LIMIT
from udkd.data_prep.sources import AUTO
from udkd.data_prep.sources.address import Location, location_of, require_path
from udkd.data_prep.sources.loaded_dataset import loaded_datasets
from udkd.data_prep.sources.source import SourceSplit
from udkd.data_prep.sources.torch_dataset import require_map_style
from udkd.utils.errors import ConfigError
from udkd.utils.operating_system import available_cores
from udkd.utils.progress import SILENT, Observer

if TYPE_CHECKING:
    from torch.utils.data import Dataset as MapDataset


def convert(
    source: "str | PathLike[str] | Sequence[str | PathLike[str]] | MapDataset[Any] | Mapping[str, Any]",
    out: str | PathLike[str],
    *,
    side: int = 512,
    fit: Literal["pad", "squash"] = "pad",
    layout: str = AUTO,
    image_field: str | None = None,
    label_field: str | None = None,
    images: str | PathLike[str] | None = None,
    classes: str = "all",
    class_names: str | PathLike[str] | Sequence[str] | Mapping[str, str] | Mapping[int, str] | None = None,
    formats: str = "auto",
    on_bad: Literal["fix", "skip", "fail"] = "fail",
    exif: Literal["ignore", "apply"] = "ignore",
    max_pixels: int = PIXEL_LIMIT,
    hold_out: float | None = None,
    val: "Literal['val', 'test'] | MapDataset[Any]" = "val",
    quality: int = 95,
    subsampling: Literal["4:4:4", "4:2:0"] = "4:4:4",
    workers: int = 0,
    overwrite: bool = False,
    observer: Observer = SILENT,
) -> Dataset:
    """Convert images into the dataset folder `out`, as `udkd data convert` does, and open it. Options: see its `--help`.

    source: a path or an address (`https://…`, `s3://…`), several that form one dataset, a map-style torch Dataset of
    (image, label) without random transforms, ToTensor or Normalize, or a Dataset or DatasetDict of Hugging Face's `datasets`,
    whose stored bytes are used. Images of a torch Dataset are PIL, uint8 tensors [C, H, W] or uint8 arrays [H, W, C], C 1 or 3;
    its labels are integers.
    val: for a Dataset, the one to validate on, unless hold_out is given; for paths and a DatasetDict, "test" to validate on
    their test split.
    class_names: a file as for --class-names, the names in label order, or a mapping by label or class folder. Without it, a
    Dataset's `classes` (or `wnids`) are used. workers: processes, 0 for one per core.

    Each item of a Dataset is read once, in this process. Its pixels lie uncompressed in a file in `out` until the end; the
    files of an ImageFolder without transforms are read as they are. After an interruption the same call resumes.
    Raises DataError (with the index of an item that cannot be used), ConfigError, MismatchError, BusyError and OSError.

        udkd.convert("photos", "data", hold_out=10, side=256)
        udkd.convert(torchvision.datasets.CIFAR10("cifar"), "data", val=torchvision.datasets.CIFAR10("cifar", train=False))
    """
    settings = ConvertSettings(
        side=side,
        fit=fit,
        layout=layout,
        image_field=image_field,
        label_field=label_field,
        images=None if images is None else Path(images),
        classes=classes,
        class_names=None if class_names is None else class_names_of(class_names),
        on_bad=on_bad,
        exif=exif,
        max_pixels=max_pixels,
        hold_out_percent=hold_out,
        val="test" if isinstance(val, str) and val == "test" else None,
        quality=quality,
        subsampling=subsampling,
        formats=parse_formats(formats),
        workers=workers or available_cores(),
        overwrite=overwrite,
    )
    folder, locations = require_path(out), _locations(source)
    if locations is not None:
        if not isinstance(val, str):
            raise ConfigError("val is a Dataset and source is a path; expected two Datasets; or name both paths in source")
        convert_paths(locations, folder, settings, observer)
    else:
        convert_datasets(_by_split(source, val, settings), folder, settings, observer)
    return Dataset(folder)


def _locations(source: object) -> list[Location] | None:
    """The paths and addresses in `source`; None if it is something else."""
    each = source if isinstance(source, list | tuple) else [source]
    locations = [location_of(text) for text in each if isinstance(text, str | PathLike)]
    return locations if locations and len(locations) == len(each) else None


def _by_split(source: Any, val: Any, settings: ConvertSettings) -> "dict[SourceSplit | None, MapDataset[Any]]":
    """The datasets by split. Raises ConfigError for options of paths, and unless either val or hold_out is given."""
    loaded = loaded_datasets(source)
    for name, value, default in (
        ("layout", settings.layout, AUTO),
        ("image_field", settings.image_field, settings.image_field if loaded else None),
        ("label_field", settings.label_field, settings.label_field if loaded else None),
        ("images", settings.images, None),
    ):
        if value != default:
            raise ConfigError(f"{name} is {value!r} and source is a Dataset; expected a path for it; remove {name}")
    if loaded is not None and None not in loaded:
        needed = {settings.val or "val"} if settings.hold_out_percent is None else set()
        if not isinstance(val, str) or needed - loaded.keys():
            raise ConfigError(
                f"source is a DatasetDict with the splits {', '.join(source)}; expected validation among them; or give "
                "val='test' to validate on test, or hold_out, a percentage"
            )
        return {split: each for split, each in loaded.items() if split != "test" or settings.val or len(loaded) == 1}
    if not isinstance(val, str) and (loaded is None) != (loaded_datasets(val) is None):
        raise ConfigError("source and val are datasets of different kinds; expected two of torch, or two of `datasets`")
    if isinstance(val, str) == (settings.hold_out_percent is None):
        found = "a Dataset has no splits of its own" if isinstance(val, str) else "both val and hold_out are given"
        raise ConfigError(f"{found}; expected val, a second Dataset, or hold_out, a percentage; give one of them")
    datasets: dict[SourceSplit | None, Any] = {None: source} if isinstance(val, str) else {"train": source, "val": val}
    for dataset in datasets.values():
        require_map_style(dataset)
    return datasets
