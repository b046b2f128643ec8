"""Imports a cache: logits that another program computed become targets in a build's format."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udkd.augment.preprocessing import Preprocessing
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder, Split
from udkd.data.sample_names import find_samples, shown
from udkd.losses.storage import Storage
from udkd.teacher.cache.build import BLOCK_ROWS, BuiltCache
from udkd.teacher.cache.key import CacheKey, Differing
from udkd.teacher.cache.logits_file import LogitsFile, open_logits
from udkd.teacher.cache.reader import Cache
from udkd.teacher.cache.writer import CacheWriter, ViewWriter
from udkd.teacher.frozen import require_several_classes
from udkd.teacher.target_key import target_fields
from udkd.teacher.targets import pack
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.files import sha256_file
from udkd.utils.progress import SILENT, Observer

IMAGENET = "imagenet1k"
"""In place of a file of class names: ILSVRC2012's 1,000 sorted wnids, the outputs of pretrained classifiers."""

_KNOWN = {
    *("format_version", "dataset_digest", "split", "policy", "seed", "num_classes", "teacher", "teacher_sha256", "estimator"),
    *("block_rows", "storage", "uncertainties", "features", "claimed"),
}
CLAIMED = tuple(sorted(field.name for field in fields(CacheKey) if field.name not in _KNOWN))
"""The key fields that nothing can check in imported logits."""

_PIECE_ROWS = 4096
_MAX_NAME = 200


def import_cache(
    folder: str | Path,
    *,
    dataset: DatasetFolder,
    logits: Path,
    recipe: Recipe,
    teacher: str = "",
    names: Path | None = None,
    class_names: Path | None = None,
    probabilities: bool = False,
    observer: Observer = SILENT,
) -> BuiltCache:
    """Store one row of logits for each training image as a cache of evaluation views in `folder`.

    logits: see `open_logits`; rows in id order (of all samples, or of those that are not excluded), or with ids or file names.
    recipe: its evaluation view is recorded as the importer's claim; its storage is used. teacher: a name; default: the file's.
    names: a file with the file name of each row. class_names: a file with the class, wnid or readable name, of each column, or
    IMAGENET; without it the columns are the dataset's classes in order. probabilities: the rows are probabilities, and their
    logarithms are stored; a 0 counts as the smallest positive number of the file's dtype, or float32's.
    Everything is checked before the first byte is written. A killed import resumes, with the bytes of an uninterrupted one.
    DataError: rows, names, classes or numbers that do not fit. ConfigError: an estimator or top-k that does not apply.
    MismatchError: `folder` holds other targets. CacheError: a full disk.
    """
    folder, started = Path(folder), time.perf_counter()
    split = dataset.split("train")
    require_several_classes(dataset)
    if len(split.ids) == 0:
        raise DataError(f"{dataset.path} has no training images; expected some to have logits for; convert again")
    storage, teacher = recipe.teacher.storage, teacher or logits.name
    _require_possible(recipe, teacher, len(dataset.classes))
    file = open_logits(logits, next(path for path in (folder, *folder.absolute().parents) if path.is_dir()))
    source = _Source(
        file=file,
        row_of_id=_rows(file, split, names, observer),
        columns=_columns(file, dataset, class_names, observer),
        probabilities=probabilities,
    )
    source.check(observer)
    used = [path for path in (names, class_names) if path is not None]
    recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"views": "eval"})})
    key_fields: dict[str, Any] = target_fields(recipe, dataset, "unknown") | {
        "teacher": teacher,
        "teacher_sha256": _digest(logits, used, probabilities),
        "normalisation": Preprocessing().key_values,
        "device": "cpu",
        "threads": 0,
        "channels_last": False,
        "teacher_batch": 1,
        "claimed": CLAIMED,
    }
    key, written = CacheKey(**key_fields, block_rows=BLOCK_ROWS, storage=storage.text), 0
    with CacheWriter(folder, key, split.excluded, _remedy) as writer:
        if not writer.finished:
            writer.require_disk_space([0])
            with writer.view(0) as view:
                written = source.write(view, storage, observer)
                view.finish()
    return BuiltCache(cache=Cache.open(folder), labels=split.labels, num_images=written, seconds=time.perf_counter() - started)


def _remedy(key: CacheKey, differing: Differing) -> str:
    return "import into another folder, or delete that one"


def _require_possible(recipe: Recipe, teacher: str, num_classes: int) -> None:
    if recipe.teacher.estimator != "plain":
        raise ConfigError(
            f"teacher.estimator is {recipe.teacher.estimator} and imported logits are one prediction for each image; "
            "expected plain; change it"
        )
    if recipe.teacher.top_k >= num_classes:
        raise ConfigError(
            f"teacher.top_k is {recipe.teacher.top_k} of {num_classes} classes; expected fewer; lower it, or 0 for all"
        )
    if not teacher.isprintable() or len(teacher) > _MAX_NAME:
        raise ConfigError(
            f"the teacher's name is {teacher[:40]!r}…; expected up to {_MAX_NAME} printable characters; change it"
        )


def _digest(logits: Path, used: Sequence[Path], probabilities: bool) -> str:
    """The sha256 of the logits file; of more than that where other files or a logarithm decide the targets, too."""
    parts = [sha256_file(logits), *(sha256_file(path) if path.is_file() else str(path) for path in used)]
    parts += ["probabilities"] if probabilities else []
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """The logits of a split's samples.

    row_of_id: int64 [N], -1 for a sample without a row. columns: int64 [C], the file's column of each class; None for all.
    """

    file: LogitsFile
    row_of_id: NDArray[np.int64]
    columns: NDArray[np.int64] | None
    probabilities: bool

    def check(self, observer: Observer) -> None:
        """Read every row that is used, in the file's order. DataError: numbers that are no logits, or no probabilities."""
        id_of_row = np.full(self.file.num_rows, -1, np.int64)
        kept = np.flatnonzero(self.row_of_id >= 0)
        id_of_row[self.row_of_id[kept]] = kept
        observer.start(f"checking {self.file.path.name}", len(kept), "rows")
        for start in range(0, self.file.num_rows, _PIECE_ROWS):
            rows = np.flatnonzero(id_of_row[start : start + _PIECE_ROWS] >= 0) + start
            if len(rows):
                self._check(self.file.gather(rows), id_of_row[rows], first=start == 0)
                observer.advance(len(rows))
        observer.finish()

    def _check(self, values: Tensor, ids: NDArray[np.int64], *, first: bool) -> None:
        path, chosen = self.file.path, self._select(values)
        _require(torch.isfinite(chosen.float()).all(-1), ids, f"{path}: the row of id {{}} is not finite", "finite numbers")
        double = values.double()
        sums, tolerance = double.sum(-1), 1e-2 if values.dtype in (torch.float16, torch.bfloat16) else 1e-3
        is_distribution = (double >= 0).all(-1) & ((sums - 1).abs() <= tolerance)
        if self.probabilities:
            _require(
                is_distribution,
                ids,
                f"{path}: the row of id {{}} has a negative number or does not sum to 1 (sum {{:.6g}})",
                f"probabilities, with a sum within {tolerance:g} of 1",
                sums,
            )
        elif first and is_distribution.all():
            raise DataError(
                f"{path} holds rows that are not negative and sum to 1, which are probabilities; "
                "expected logits; give --probabilities"
            )

    def write(self, view: ViewWriter, storage: Storage, observer: Observer) -> int:
        """Write every unfinished block; returns the number of rows."""
        blocks = [(block, view.ids(block)) for block in list(view.unfinished)]
        total = sum(len(ids) for _, ids in blocks)
        observer.start("importing", total, "rows")
        for block, ids in blocks:
            targets = pack(self._logits(ids), storage)
            specs = {spec.name: spec.dtype for spec in view.header.arrays}
            view.write(block, *(array.numpy().astype(specs[name], copy=False) for name, array in targets.arrays.items()))
            observer.advance(len(ids))
        observer.finish()
        return total

    def _logits(self, ids: NDArray[np.int64]) -> Tensor:
        """Logits float32 or float64 [n, C]."""
        values = self._select(self.file.gather(self.row_of_id[ids]))
        if not self.probabilities:
            return values if values.dtype == torch.float64 else values.float()
        # Half of it and less was stored as 0; -inf would turn KL(student || teacher) into infinity.
        smallest = max(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in (values.dtype, torch.float32))
        return values.double().clamp(min=smallest).log()

    def _select(self, values: Tensor) -> Tensor:
        return values if self.columns is None else values[:, torch.from_numpy(self.columns)]


def _require(holds_B: Tensor, ids_B: NDArray[np.int64], found: str, expected: str, sums_B: Tensor | None = None) -> None:
    """DataError naming the first id for which something does not hold."""
    if not holds_B.all():
        row = int(holds_B.byte().argmin())
        text = found.format(ids_B[row], *(() if sums_B is None else (float(sums_B[row]),)))
        raise DataError(f"{text}; expected {expected}; correct the file")


def _rows(file: LogitsFile, split: Split, names_file: Path | None, observer: Observer) -> NDArray[np.int64]:
    """The file's row of each sample: int64 [N], -1 for an excluded one. DataError: rows that cannot be matched, or missing."""
    names: Sequence[str] | None = file.names
    if names_file is not None:
        if file.ids is not None or names is not None:
            raise DataError(f"{file.path} has its own keys and --names names others; expected one of them; leave out --names")
        names = _lines(names_file)
        if len(names) != file.num_rows:
            raise DataError(f"{names_file} has {len(names):,} names and {file.path} {file.num_rows:,} rows; expected as many")
    if names is None and file.ids is None:
        return _rows_in_order(file, split, observer)
    ids = file.ids
    if ids is not None and len(ids) and not (ids.min() >= 0 and ids.max() < split.num_samples):
        raise DataError(
            f"{file.path} has ids from {ids.min()} to {ids.max()}; expected 0 to {split.num_samples - 1}, the ids of the "
            f"{split.num_samples:,} training samples; correct them"
        )
    if names is not None:
        by_name = find_samples(names, split.source, str(names_file or file.path))
        if ids is not None and (differing := np.flatnonzero(ids != by_name)).size:
            row = int(differing[0])
            raise DataError(
                f"{file.path}: row {row} has id {ids[row]} and the name {names[row]}, which is "
                f"{'no training image' if by_name[row] < 0 else f'id {by_name[row]}'}, and {len(differing) - 1:,} more rows "
                "differ; expected one sample; drop the column that is wrong"
            )
        ids = by_name
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            first = shown([names[row] for row in unknown[:4].tolist()])
            observer.note(f"{len(unknown):,} of {file.num_rows:,} rows name no training image and are left out: {first}")
    assert ids is not None
    return _rows_of_ids(file, split, ids)


def _rows_in_order(file: LogitsFile, split: Split, observer: Observer) -> NDArray[np.int64]:
    rows = np.full(split.num_samples, -1, np.int64)
    if file.num_rows not in (split.num_samples, len(split.ids)):
        without = f", or {len(split.ids):,} without the excluded ones" if len(split.ids) < split.num_samples else ""
        raise DataError(
            f"{file.path} has {file.num_rows:,} rows; expected {split.num_samples:,}, one for each training sample{without}; "
            "name its rows with --names, or compute logits for this data"
        )
    if file.num_rows == split.num_samples:
        observer.note(f"rows: in id order, row i is training sample i of {split.num_samples:,}")
        rows[split.ids] = split.ids
    else:
        observer.note(f"rows: in id order of the {len(split.ids):,} training samples that are not excluded")
        rows[split.ids] = np.arange(len(split.ids))
    return rows


def _rows_of_ids(file: LogitsFile, split: Split, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each sample that is not excluded, from the sample of each row (-1 for none)."""
    given = np.flatnonzero(ids >= 0)
    order = given[np.argsort(ids[given], kind="stable")]
    repeated = order[1:][ids[order[1:]] == ids[order[:-1]]]
    if len(repeated):
        samples = [split.source[sample_id] for sample_id in np.unique(ids[repeated])[:4].tolist()]
        raise DataError(f"{file.path} has {len(repeated):,} rows too many, of {shown(samples)}; expected one for each sample")
    rows = np.full(split.num_samples, -1, np.int64)
    rows[ids[given]] = given
    missing = split.ids[rows[split.ids] < 0]
    if len(missing):
        samples = [split.source[sample_id] for sample_id in missing[:4].tolist()]
        raise DataError(
            f"{file.path} has no row for {len(missing):,} of {len(split.ids):,} training images: {shown(samples)}; "
            "expected one for each; add them, or check that names or ids are those of this data"
        )
    rows[split.excluded] = -1
    return rows


def _columns(
    file: LogitsFile, dataset: DatasetFolder, class_names: Path | None, observer: Observer
) -> NDArray[np.int64] | None:
    """The file's column of each class; None for all columns in order. DataError: classes that are not among the columns."""
    wnids, readable = [entry.wnid for entry in dataset.classes], [entry.name for entry in dataset.classes]
    if class_names is not None:
        columns = _imagenet() if str(class_names) == IMAGENET else _lines(class_names)
        if len(columns) != file.num_columns:
            raise DataError(
                f"{class_names} names {len(columns):,} classes and {file.path} has {file.num_columns:,} columns; "
                "expected as many; correct it"
            )
    elif file.columns and (set(wnids) <= set(file.columns) or set(readable) <= set(file.columns)):
        columns = list(file.columns)
    elif file.num_columns == len(wnids):
        observer.note(f"classes: the {len(wnids)} columns are taken in this data's order, {shown(wnids)}")
        return None
    else:
        raise DataError(
            f"{file.path} has {file.num_columns:,} columns and this data {len(wnids):,} classes; expected as many; "
            f"name the class of each column with --class-names FILE (--class-names {IMAGENET} for ImageNet's 1,000)"
        )
    for labels in (wnids, readable):
        if set(labels) <= set(columns) and len(set(labels)) == len(labels):
            twice = next((name for name in labels if columns.count(name) > 1), None)
            if twice is not None:
                raise DataError(
                    f"{class_names or file.path} names {twice} twice; expected one column for each class; correct it"
                )
            index = {name: column for column, name in enumerate(columns)}
            observer.note(f"classes: {len(labels)} of {len(columns):,} columns are taken by their names")
            return np.array([index[name] for name in labels], np.int64)
    missing = [f"{entry.wnid} ({entry.name})" for entry in dataset.classes if not {entry.wnid, entry.name} & set(columns)]
    raise DataError(
        f"{class_names} does not name {len(missing):,} of {len(wnids):,} classes: {shown(missing or wnids)}; "
        "expected the wnid of every class, or the readable name of every class; correct it"
    )


def _lines(path: Path) -> list[str]:
    """A text file's lines, without empty ones at its end. DataError: no such file."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape").rstrip("\n")  # some editors write a BOM
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a file with one name per line") from None
    return text.split("\n") if text else []


def _imagenet() -> list[str]:
    text = (files("udkd") / "assets" / "imagenet1k-classes.tsv").read_text(encoding="utf-8")
    return [line.split("\t")[0] for line in text.splitlines()]
