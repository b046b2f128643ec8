"""Chooses the columns of paths, labels and splits in a table."""

import re
from collections.abc import Sequence
from itertools import islice

from udkd.data_prep.sources.fields import IMAGE_OPTION, LABEL_LIKE, LABEL_OPTION, Fields, choose_field
from udkd.data_prep.sources.layout import is_image_path
from udkd.data_prep.sources.table_rows import TableRows
from udkd.utils.errors import DataError

# Names of columns, in lower case and without other characters. The first group of PATHS that a table has decides.
PATHS: tuple[tuple[str, ...], ...] = (
    ("path", "paths", "filepath", "filepaths", "imagepath", "imagepaths", "imgpath", "relativepath", "relpath"),
    ("file", "files", "filename", "filenames", "imagefile", "imagefilename", "imagename", "imgname", "imgfile", "fname"),
    ("image", "images", "img"),
    ("imageid", "imgid", "id"),
)
LABELS = (
    *("wnid", "synset", "synsetid", "wordnetid", "label", "labels", "classname", "labelname", "categoryname", "class"),
    *("classes", "category", "target", "species", "breed", "classlabel", "labelid", "classid", "categoryid", "y"),
)
SPLITS = ("split", "splits", "subset", "partition", "dataset", "set", "usage", "phase", "fold")
IS_VAL = ("isvalid", "isval", "isvalidation")  # fastai's, with True for rows of val
_SPLIT_FLAGS = re.compile(r"is(train|training|test|testing)(img|image)?")
_SUBMISSION = re.compile(r".*submission.*", re.IGNORECASE)  # Kaggle's example answers have made-up labels
_BINARY = {"0", "1", "0.0", "1.0", "True", "False"}
_PEEKED_ROWS = 100


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_submission(name: str) -> bool:
    """Whether a file's name is that of Kaggle's example answers."""
    return _SUBMISSION.fullmatch(name) is not None


def path_columns(columns: Sequence[str]) -> Sequence[str]:
    """The columns that may hold paths, by the first group of PATHS that has any."""
    return next((named for group in PATHS if (named := [name for name in columns if _plain(name) in group])), ())


def label_columns(columns: Sequence[str]) -> Sequence[str]:
    """The columns that may hold labels, in order of priority."""
    named = [name for name in columns if _plain(name) in LABELS or LABEL_LIKE.fullmatch(name)]
    return sorted(named, key=lambda name: LABELS.index(_plain(name)) if _plain(name) in LABELS else len(LABELS))


def choose_columns(table: TableRows, fields: Fields, may_lack_labels: bool) -> tuple[str, Sequence[str], str]:
    """The columns of paths, labels (in order of priority) and splits (may be empty). Raises DataError."""
    columns = [name for name in table.columns if name and not name.startswith("Unnamed:")]  # pandas' index
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise DataError(f"{table.path} has two columns {twice}; expected one; rename the other")
    paths, labels = path_columns(columns), label_columns(columns)
    if fields.image is not None:
        paths = [choose_field(columns, fields.image, where=table.path, what="column", option=IMAGE_OPTION)]
    if fields.label is not None and not (may_lack_labels and fields.label not in columns):
        labels = [choose_field(columns, fields.label, where=table.path, what="column", option=LABEL_OPTION)]
    labels = [name for name in labels if name not in paths]
    if not paths or not (labels or may_lack_labels):
        if paths and (one_hot := _one_hot(table, [name for name in columns if name not in paths])):
            raise DataError(
                f"{table.path} has a column of 0 and 1 for each class ({', '.join(one_hot[:5])}{'…' if one_hot[5:] else ''}); "
                "expected one column with the class of each image; write it as a column `label`"
            )
        remedy = f"choose with {IMAGE_OPTION} NAME and {LABEL_OPTION} NAME"
        if any(map(is_image_path, columns)):
            remedy = "write these names as its first line, such as: path,label"
        raise DataError(
            f"{table.path} has the columns {table.listed()}; expected one of paths (path, file_name, image_id …) and one of "
            f"labels (label, class, category …); {remedy}"
        )
    path = choose_field(paths, None, where=table.path, what="path column", option=IMAGE_OPTION) if len(paths) > 1 else paths[0]
    splits = [name for group in (SPLITS, IS_VAL) for name in columns if _plain(name) in group and name not in (path, *labels)]
    return path, labels, splits[0] if splits else ""


def is_val_column(name: str) -> bool:
    """Whether a column marks the validation rows, as fastai's `is_valid`."""
    return _plain(name) in IS_VAL


def is_split_flag(name: str) -> bool:
    """Whether a column seems to mark the rows of a split, as CUB's `is_training_image`, in a way that is not read."""
    return _SPLIT_FLAGS.fullmatch(_plain(name)) is not None


def _one_hot(table: TableRows, columns: Sequence[str]) -> Sequence[str]:
    """The columns, at least two, that have only the values 0 and 1 in the first rows."""
    rows = [values for _, values in islice(table.read(columns), _PEEKED_ROWS)]
    binary = [name for n, name in enumerate(columns) if {str(values[n]).strip() for values in rows} <= _BINARY]
    return binary if len(binary) > 1 and rows else ()
