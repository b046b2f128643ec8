"""Parses image paths into split, class and name: `[prefix/]train/<class>/<name>`, or `[prefix/]<class>/<name>`.

Split folders are recognised by name: `train` and `val` (also `validation` and Kaggle's `train.X1`) at any depth, and names that
contain such a word (`seg_train`, `val_images`, `TestSet`) only among siblings of that kind. A folder named after a split
becomes a class only on request (`--layout classfolders`).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from udkd.data_prep.sources.named_split import all_splits_in, single_split_in
from udkd.data_prep.sources.source import OTHER_FILES, SourceSplit
from udkd.utils.errors import DataError

# Kaggle's ImageNet-100 calls them train.X1 … train.X4 and val.X.
SPLIT_FOLDER = re.compile(r"(?:(train)|val(?:idation)?)(?:\.x\d*)?", re.IGNORECASE)
PLAIN_SPLIT = re.compile(r"train(?:ing)?|val(?:id|idation)?|test(?:ing)?", re.IGNORECASE)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
UNREAD_SUFFIXES = (
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".jfif", ".jpe", ".jpg_large", ".svg", ".psd", ".ico"),
    *(".tga", ".exr", ".hdr", ".pnm", ".pbm", ".pam", ".pcx", ".dng", ".cr2", ".nef", ".arw", ".apng", ".dds", ".raw"),
)
ARCHIVE_SUFFIXES = (".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".mat", ".lst")
PROGRAM_SUFFIXES = (".py", ".ipynb", ".sh", ".md", ".log", ".cfg", ".yaml", ".yml")
# Folders created by macOS, Windows, Linux and network drives whose names do not begin with a dot.
SYSTEM_NAMES = frozenset(
    (
        *("__macosx", "@eadir", "@__thumb", "@recycle", "@tmp", "#recycle", "#snapshot", "~snapshot", "lost+found"),
        *("@recently-snapshot", "@transcode", "@sharebin", "network trash folder", "temporary items", "lost.dir"),
        *("$recycle.bin", "recycler", "system volume information", "found.000", "__pycache__"),
    )
)
HIDDEN = "hidden files and folders, and those of operating systems"
UNREAD = "images with endings that are not read"
ARCHIVES = "archives, which are not looked into"
OUTSIDE_CLASSES = "images outside class folders"
OUTSIDE_SPLITS = "images outside the split folders"
NO_CLASS_FOLDER = "images in a split folder but in no class folder"

Placement = tuple[SourceSplit | None, str, str]
Folder = tuple[str, ...]


def is_image_path(path: str) -> bool:
    """Whether a path has the suffix of an image and is not hidden (macOS writes `._name.JPEG`)."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether any part of a path is hidden, or is a system folder of an operating system or a network drive."""
    return any(part.startswith(".") or part.lower() in SYSTEM_NAMES for part in path.split("/"))


def skip_reason(path: str) -> str:
    """Why a file that is not an image by `is_image_path` is skipped."""
    if is_hidden(path):
        return HIDDEN
    name = path.lower()
    return UNREAD if name.endswith(UNREAD_SUFFIXES) else ARCHIVES if name.endswith(ARCHIVE_SUFFIXES) else OTHER_FILES


def looks_like_val(path: str) -> bool:
    """Whether any part of a path contains the name of a validation split, and the file is not a script or a document."""
    if is_hidden(path) or path.lower().endswith(PROGRAM_SUFFIXES):
        return False
    return any("val" in all_splits_in(part) for part in path.split("/"))


def is_test_list(path: str) -> bool:
    """Whether a file may list the images of a test split: Food-101's `meta/test.txt`, CUB's `train_test_split.txt`."""
    name = path.rsplit("/", 1)[-1]
    return not is_hidden(path) and name.lower().endswith(LIST_SUFFIXES) and "test" in all_splits_in(name)


@dataclass(kw_only=True)
class ParsedPaths:
    """The parsed image paths of a source.

    placements: split, class and name of each path, or the reason for skipping it (a plural noun).
    split_hint, unclear_val, val_advice, warnings: see Listing.
    """

    placements: Iterator[Placement | str]
    split_hint: SourceSplit | None = None
    unclear_val: str = ""
    val_advice: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _SplitLayout:
    """Which folders are splits.

    index: for each folder of images, the index of the split among its parts. flat: split of a folder without class folders.
    """

    index: dict[Folder, int] = field(default_factory=dict)
    flat: dict[Folder, SourceSplit] = field(default_factory=dict)

    def split(self, folder: Folder) -> SourceSplit | None:
        return _folder_split(folder[self.index[folder]])

    def splits(self) -> set[SourceSplit | None]:
        return {self.split(folder) for folder in self.index}


def parse_paths(
    paths: Sequence[str],
    root: str,
    *,
    source: str = "",
    splits: bool = True,
    ground_truth: Callable[[], tuple[str, Mapping[str, str]] | None] = lambda: None,
) -> ParsedPaths:
    """Determine the splits and classes of image paths, which are relative, with `/` between parts.

    root: name of the source; a source called `train` or `val` is a split itself. source: its name in errors; `root` if empty.
    splits: False if all folders are classes. ground_truth: called if validation images are not in class folders; returns
    its name, and the class of each image by its name without the suffix. Raises DataError for ambiguous names.
    """
    source = source or root
    folders = Counter(tuple(path.split("/")[:-1]) for path in paths)
    deep = [folder for folder in folders if folder]
    layout = _find_splits(deep, source) if splits else _SplitLayout()
    known = _known_classes(layout, folders, paths, source, ground_truth) if splits else None
    if layout.index:
        _check_names({folder[depth + 1] for folder, depth in layout.index.items()}, source)
        lacks_val = not known and "val" not in layout.splits()
        unclear_val, val_advice = (_unclear_val(layout, folders), _val_advice(layout, folders)) if lacks_val else ("", "")
        warnings = (
            *_version_warnings(layout, source),
            *_nested_class_warnings(((folder, depth + 1) for folder, depth in layout.index.items()), source),
        )
        return ParsedPaths(
            placements=_in_splits(paths, layout, known), unclear_val=unclear_val, val_advice=val_advice, warnings=warnings
        )
    if known:
        return ParsedPaths(placements=(_by_ground_truth(path, known) for path in paths))
    prefix = _common_prefix(deep)
    if splits and deep:
        _check_names({folder[prefix] for folder in deep if len(folder) > prefix}, source)
        _check_inside(deep, prefix, source)
    split = _exact_split(root) if splits else None
    around = (root, *(deep[0][:prefix] if deep else ()))
    split_hint = next((split for name in reversed(around) if (split := single_split_in(name))), None) if splits else None
    return ParsedPaths(
        placements=_without_splits(paths, prefix, split),
        split_hint=split_hint,
        warnings=tuple(_nested_class_warnings(((f, prefix) for f in deep), source) if splits else ()),
    )


def _find_splits(folders: Sequence[Folder], source: str) -> _SplitLayout:
    """Find the split folders: those with an exact name, or, if there are none, those with a split's name as a word."""
    strict = {
        folder: depth
        for folder in folders
        if (depth := next((n for n, p in enumerate(folder[:-1]) if _exact_split(p)), None)) is not None
    }
    layout = _SplitLayout(dict(strict))
    if strict:
        parents = {folder[:depth] for folder, depth in strict.items()}
        taken = {_exact_split(folder[depth]) for folder, depth in strict.items()}
        for folder in folders:
            depth = next((n for n, p in enumerate(folder) if folder[:n] in parents and single_split_in(p)), None)
            if folder not in strict and depth is not None and single_split_in(folder[depth]) not in taken:
                _add(layout, folder, depth)
        _enter_nested_splits(layout)
    else:
        prefix = _common_prefix(folders)
        candidates = [(f, depth) for f in folders if (depth := _first_split(f, prefix)) is not None]
        for folder, depth in candidates:
            _add(layout, folder, depth)
        every = len(candidates) == len(folders) and all(depth == prefix for _, depth in candidates)
        _enter_nested_splits(layout)
        trained = {folder[depth + 1] for folder, depth in layout.index.items() if layout.split(folder) == "train"}
        # bullet_train/images/ and test_tube/images/ next to cat/images/ are classes.
        if not every and not (len(trained) > 1 and {*layout.splits(), *layout.flat.values()} - {"train"}):
            _check_siblings(candidates, prefix, source)
            return _SplitLayout()
    if not layout.index:
        return _SplitLayout()
    _check_one_each(layout, strict, source)
    return layout


def _check_siblings(candidates: Sequence[tuple[Folder, int]], prefix: int, source: str) -> None:
    """Raise DataError if one of several sibling folders is named after a split and seems to hold class folders."""
    inside: dict[str, set[str]] = {}
    for folder, depth in candidates:
        if depth == prefix and depth < len(folder) - 1:
            inside.setdefault(folder[depth], set()).add(folder[depth + 1])
    names = sorted(name for name, classes in inside.items() if len(classes) > 1)
    if names:
        raise DataError(
            f"{source}: {_shorten(names)} can be read as a split, as it holds several folders, or as a class, as it has "
            "siblings; expected one reading; name the folders that hold class folders as sources, or give --layout "
            "classfolders if it is a class"
        )


def _first_split(folder: Folder, start: int) -> int | None:
    return next((n for n in range(start, len(folder)) if single_split_in(folder[n])), None)


def _add(layout: _SplitLayout, folder: Folder, depth: int) -> None:
    split = single_split_in(folder[depth])
    if depth < len(folder) - 1:
        layout.index[folder] = depth
    elif split is not None:
        layout.flat[folder] = split


def _enter_nested_splits(layout: _SplitLayout) -> None:
    """Replace a split folder by its subfolders if all of these are named after the same split, or after several splits.

    Unpacking an archive into a folder of the same name creates `train/train/<class>`.
    """
    while True:
        inside: dict[Folder, set[str]] = {}
        for folder, depth in layout.index.items():
            inside.setdefault(folder[: depth + 1], set()).add(folder[depth + 1])
        wrappers = {
            outer
            for outer, names in inside.items()
            if None not in (splits := {_folder_split(name) for name in names})
            and (len(splits) > 1 or splits == {_folder_split(outer[-1])})
        }
        if not wrappers:
            return
        for folder, depth in list(layout.index.items()):
            if folder[: depth + 1] in wrappers:
                del layout.index[folder]
                _add(layout, folder, depth + 1)


def _check_one_each(layout: _SplitLayout, strict: Mapping[Folder, int], source: str) -> None:
    """Raise DataError if folders whose names differ in more than digits match one split by a word in their names."""
    names: dict[SourceSplit | None, dict[str, str]] = {}
    for folder, depth in layout.index.items():
        if folder not in strict:
            names.setdefault(layout.split(folder), {}).setdefault(re.sub(r"\d+", "", folder[depth].lower()), folder[depth])
    for split, several in names.items():
        if len(several) > 1 and split != "test":
            raise DataError(
                f"{source} holds {' and '.join(sorted(several.values()))}, which all match the {split} split; expected one; "
                f"name the folders to read as sources, or rename one to {split}"
            )


def _check_names(names: Iterable[str], source: str) -> None:
    """Raise DataError if folders that would become classes are named after splits: all of them, or two splits among a few.

    A single such folder remains a class: ImageNet has a `bullet_train`, CIFAR-100 a `train`.
    """
    every = sorted(set(names))
    suspects = [name for name in every if all_splits_in(name)]
    splits = {split for name in suspects for split in all_splits_in(name)}
    plain = {single_split_in(name) for name in suspects if PLAIN_SPLIT.fullmatch(name)}
    if not suspects or not (
        len(suspects) == len(every) or len(plain) > 1 or (len(splits) > 1 and 2 * len(suspects) >= len(every))
    ):
        return
    would = "would be classes, but are named for splits" if len(suspects) > 1 else "would be a class, but is named for a split"
    raise DataError(
        f"{source}: {_shorten(suspects)} {would}; expected train/<class>/ and val/<class>/ folders; sort the images into "
        "class folders, name the folders that hold class folders as sources, or give --layout classfolders if these are classes"
    )


def _check_inside(folders: Iterable[Folder], prefix: int, source: str) -> None:
    """Raise DataError if all images are in folders named after several splits, one level below the classes."""
    below = {folder[prefix + 1] if len(folder) > prefix + 1 else "" for folder in folders}
    splits = {single_split_in(name) for name in below}
    if None not in splits and len(splits) > 1 and "train" in splits:
        raise DataError(
            f"{source} holds class folders that hold the splits ({_shorten(sorted(below))}); expected train/<class>/ and "
            "val/<class>/; move the images, or give --layout classfolders if these are not splits"
        )


def _known_classes(
    layout: _SplitLayout,
    folders: Mapping[Folder, int],
    paths: Sequence[str],
    source: str,
    ground_truth: Callable[[], tuple[str, Mapping[str, str]] | None],
) -> "_KnownClasses | None":
    """The folders of validation images without class folders, with the ground truth; None if there is none.

    Raises DataError if the ground truth lists only some of the images.
    """
    val = {folder for folder, split in layout.flat.items() if split == "val"}
    sorted_in = {folder for folder in layout.index if layout.split(folder) == "val"}
    if not val and len({folder[: layout.index[folder] + 2] for folder in sorted_in}) == 1:  # Tiny-ImageNet's val/images/
        val = sorted_in
    if not layout.index and len(folders) == 1:
        val = set(folders)
    labels = ground_truth() if val else None
    if labels is None:
        return None
    where, class_of = labels
    if sorted_in and {folder[layout.index[folder] + 1] for folder in sorted_in} & set(class_of.values()):
        return None
    names = [path.rsplit("/", 1)[-1] for path in paths if tuple(path.split("/")[:-1]) in val]
    unknown = [name for name in names if _stem(name) not in class_of]
    if len(unknown) == len(names) and not layout.index:
        return None
    if unknown:
        raise DataError(f"{where} does not list {min(unknown)} of {source}; expected every image; fetch it again")
    return _KnownClasses(val, class_of)


@dataclass(frozen=True)
class _KnownClasses:
    folders: set[Folder]
    class_of: Mapping[str, str]


def _stem(name: str) -> str:
    return name.split(".")[0]


def _by_ground_truth(path: str, known: _KnownClasses) -> Placement:
    name = path.rsplit("/", 1)[-1]
    return "val", known.class_of[_stem(name)], name


def _unclear_val(layout: _SplitLayout, folders: Mapping[Folder, int]) -> str:
    """The first folder of images, if any, that looks like a validation split but was not recognised as one."""
    candidates = sorted(folder for folder in folders if folder not in layout.index and looks_like_val("/".join(folder)))
    return f"{'/'.join(candidates[0])}/ ({folders[candidates[0]]:,} images, not in class folders)" if candidates else ""


def _val_advice(layout: _SplitLayout, folders: Iterable[Folder]) -> str:
    """Advice about the first sibling of train/ that has class folders of the same names; empty if there is none."""
    known = {(folder[:depth], folder[depth + 1]) for folder, depth in layout.index.items()}
    depths = set(layout.index.values())
    siblings = {
        folder[: depth + 1]
        for folder in folders
        if folder not in layout.index
        for depth in depths
        if len(folder) > depth + 1 and (folder[:depth], folder[depth + 1]) in known
    }
    if not siblings:
        return ""
    name = "/".join(min(siblings))
    return f"{name}/ holds the same classes: rename it to val if it is for validation, or give --hold-out PERCENT if it is not"


def _version_warnings(layout: _SplitLayout, source: str) -> Iterator[str]:
    """A warning if several folders have a train folder: these may be parts, sizes or folds of one dataset."""
    train = {folder: depth for folder, depth in layout.index.items() if layout.split(folder) == "train"}
    several = sorted({"/".join(folder[: depth + 1]) for folder, depth in train.items()})
    if len({name.rpartition("/")[0] for name in several}) > 1:
        yield f"{source} holds {_shorten(several)}; all are read: name one of them if these are versions or folds of one set"


def _nested_class_warnings(folders: Iterable[tuple[Folder, int]], source: str) -> Iterator[str]:
    """A warning if class folders hold uniquely named folders and no images: the inner ones may be the classes.

    This is the case in Places365 and SUN397. folders: folders of images, each with the index of the class in its path.
    """
    inside: dict[str, set[str]] = {}
    for folder, depth in folders:
        if len(folder) > depth:
            inside.setdefault(folder[depth], set()).add(folder[depth + 1] if len(folder) > depth + 1 else "")
    names = [name for inner in inside.values() for name in inner]
    if len(inside) > 1 and "" not in names and len(set(names)) == len(names) >= 1.5 * len(inside):
        name, inner = min((name, sorted(inner)) for name, inner in inside.items() if len(inner) > 1)
        yield (
            f"{source}: class folders hold folders, such as {name}/{inner[0]} and {name}/{inner[1]}; the outer ones are "
            "read as the classes: move the inner ones up if these are the classes"
        )


def _in_splits(paths: Sequence[str], layout: _SplitLayout, known: _KnownClasses | None) -> Iterator[Placement | str]:
    split_of = {folder: layout.split(folder) for folder in layout.index}
    split_folders = {*layout.flat, *(folder[: depth + 1] for folder, depth in layout.index.items())}
    for path in paths:
        parts = path.split("/")
        folder = tuple(parts[:-1])
        if known and folder in known.folders:
            yield _by_ground_truth(path, known)
        elif (depth := layout.index.get(folder)) is not None:
            yield split_of[folder], parts[depth + 1], "/".join(parts[depth + 2 :])
        else:
            yield NO_CLASS_FOLDER if folder in split_folders else OUTSIDE_SPLITS


def _without_splits(paths: Sequence[str], prefix: int, split: SourceSplit | None) -> Iterator[Placement | str]:
    for path in paths:
        inside = path.split("/")[prefix:]
        yield (split, inside[0], "/".join(inside[1:])) if len(inside) > 1 else OUTSIDE_CLASSES


def _exact_split(folder: str) -> SourceSplit | None:
    match = SPLIT_FOLDER.fullmatch(folder)
    return None if match is None else "train" if match[1] else "val"


def _folder_split(folder: str) -> SourceSplit | None:
    return _exact_split(folder) or single_split_in(folder)


def _common_prefix(folders: Sequence[Folder]) -> int:
    """Number of leading folders that all paths share, leaving at least a class folder in each path."""
    if not folders:
        return 0
    shared = len(folders[0])
    for folder in folders:
        if folder[:shared] != folders[0][:shared]:
            shared = next(n for n, (a, b) in enumerate(zip((*folder, ""), (*folders[0], ""), strict=False)) if a != b)
    return min(shared, min(map(len, folders)) - 1)


def _shorten(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
