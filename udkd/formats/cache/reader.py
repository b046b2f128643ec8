"""Reading a cache: what it holds, whether it fits, and its targets as a table on a device."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udkd.formats.cache.key import CacheKey, differences
from udkd.formats.cache.record import RECORD, recorded_views
from udkd.formats.cache.tables import TargetTable, open_table
from udkd.formats.cache.view_file import REBUILD, ViewFile, read_header, view_path
from udkd.words.errors import CacheError, MismatchError
from udkd.words.uncertainty import UNCERTAINTY_OF, Weighing, WeightKind

MAKERS = {"mutual_information": ("mc_dropout", "ensemble"), "vacuity": ("evidential",)}
"""The estimators that give an uncertainty beyond entropy."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of finished views with one key.

    num_rows: N, the split's ids, excluded ones included; num_classes: C.
    views: the numbers of the finished views, ascending. missing: of those that were finished once and are gone.
    """

    folder: Path
    key: CacheKey
    num_rows: int
    views: tuple[int, ...]
    missing: tuple[int, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        """Read all headers. CacheError: no finished view, a damaged file, or views that do not belong together.

        A view that is missing stops only whoever needs it: see `missing`, `require_views` and `strays`.
        """
        views = finished_views(folder)
        if not views:
            partial = len(list(folder.glob("view-*.udkd.partial"))) if folder.is_dir() else 0
            found = f"{partial} unfinished views" if partial else "no view" if folder.is_dir() else "no such folder"
            raise CacheError(f"{folder}: {found}; expected a finished teacher cache; run `udkd cache build`")
        headers = [read_header(view_path(folder, view)) for view in views]
        first = headers[0]
        for view, header in zip(views, headers, strict=True):
            path = view_path(folder, view)
            if header.view != view or header.num_rows != first.num_rows:
                raise CacheError(
                    f"{path} holds view {header.view} of {header.num_rows} rows; "
                    f"expected view {view} of {first.num_rows}; {REBUILD}"
                )
            differing, _ = differences(header.key, vars(first.key))
            if differing:
                raise MismatchError(f"{path}", differing, f"one key in all views of a cache; {REBUILD}")
        count = max(recorded_views(folder, first.key), views[-1] + 1)
        missing = tuple(sorted(set(range(count)) - set(views)))
        return cls(folder=folder, key=first.key, num_rows=first.num_rows, views=views, missing=missing)

    @property
    def num_classes(self) -> int:
        return self.key.num_classes

    @property
    def num_bytes(self) -> int:
        """Of all finished views."""
        return sum(view_path(self.folder, view).stat().st_size for view in self.views)

    def require(self, expected: Mapping[str, object], allow: Collection[str] = ()) -> list[str]:
        """Refuse a cache that was made for other circumstances.

        expected: what the asker knows, by the names of CacheKey's fields. allow: fields that may differ all the same, such
        as "pixel_class" or "views.brightness". Returns those that do, for the run's record.
        MismatchError: fields that differ, each with both values. ConfigError: `allow` names no field.
        """
        refused, allowed = differences(self.key, expected, allow)
        if refused:
            raise MismatchError(
                f"the cache in {self.folder}", refused, "build a cache for these settings, or change the settings"
            )
        return allowed

    def require_views(self, count: int) -> None:
        """CacheError unless views 0 to count - 1 are finished."""
        missing = sorted(set(range(count)) - set(self.views))
        if missing:
            raise CacheError(
                f"{self.folder} lacks views {', '.join(map(str, missing))}; expected {count} views; "
                f"run `udkd cache build` with --views {count}: it adds what is missing"
            )

    def require_rows(self, num_rows: int, ids: NDArray[np.int64], num_classes: int) -> None:
        """CacheError unless there is a target for each of a split's ids: what no allowed difference makes up for."""
        found = f"{self.num_rows} rows of {self.num_classes} classes"
        if (self.num_rows, self.num_classes) == (num_rows, num_classes):
            without = int(np.isnan(self.targets(self.views[0])[1][ids]).sum())
            if not without:
                return
            found = f"no target for {without} of the split's {len(ids)} images"
        raise CacheError(
            f"{self.folder} holds {found}; expected a target for each image, {num_rows} rows of {num_classes} classes; "
            "build a cache for this data set: no allowed difference helps"
        )

    def view_file(self, view: int) -> ViewFile:
        """Map one view; CacheError where its file is damaged outside the blocks."""
        if view not in self.views:
            self.require_views(view + 1)
        return ViewFile(view_path(self.folder, view))

    def targets(self, view: int) -> tuple[np.ndarray, NDArray[np.float32]]:
        """Logits as they are stored and entropy float32 [N] of one view, memory-mapped, not verified; NaN: an excluded id."""
        file = self.view_file(view)
        return file.logits, file.uncertainties["entropy"]

    def require_uncertainty(self, kind: WeightKind) -> None:
        """CacheError unless weights of a kind can be made of what is stored."""
        needed = UNCERTAINTY_OF.get(kind)
        if needed is not None and needed not in self.key.uncertainties:
            makers = " or ".join(MAKERS[needed])
            raise CacheError(
                f"{self.folder} stores {', '.join(self.key.uncertainties)} (its teacher.estimator was {self.key.estimator}); "
                f"expected {needed} for loss.weight = {kind}; build a cache with teacher.estimator = {makers}"
            )

    def require_features(self) -> None:
        """CacheError unless the teacher's pooled features lie beside the targets."""
        if not self.key.features:
            raise CacheError(
                f"{self.folder} holds no features; expected the teacher's pooled ones for this loss.method; "
                "build a cache with --features, or set teacher.source = live"
            )

    def lookup_table(
        self,
        view: int,
        device: torch.device,
        weighing: Weighing | None = None,
        labels_N: Tensor | None = None,
        *,
        features: bool = False,
    ) -> TargetTable:
        """One view's targets for training, weighed by entropy where `weighing` is left out.

        On the CPU they stay memory-mapped, and a block is verified when a lookup first touches it; any other device gets
        a copy that was verified whole, if it fits. labels_N: int64 [N], class indices of all ids, for weights that ask.
        features: the teacher's are asked for too. CacheError names a damaged block, or what is not stored.
        """
        weighing = weighing or Weighing()
        self.require_uncertainty(weighing.kind)
        if features:
            self.require_features()
        return open_table(self.view_file(view), device, weighing, labels_N, features=features)


def verify(cache: Cache) -> list[tuple[int, int]]:
    """Check every block of every view against its checksum: (view, block) of those that are damaged.

    CacheError: damage outside the blocks, which leaves a file unusable as a whole.
    """
    return [(view, block) for view in cache.views for block in cache.view_file(view).damaged_blocks()]


def finished_views(folder: Path) -> tuple[int, ...]:
    """Numbers of the views that stand under their final name, ascending."""
    numbers = (path.name.removeprefix("view-").removesuffix(".udkd") for path in folder.glob("view-*.udkd"))
    return tuple(sorted(int(n) for n in numbers if n.isdecimal() and view_path(folder, int(n)).name == f"view-{n}.udkd"))


def strays(cache: Cache) -> list[str]:
    """What in a cache's folder no build leaves there: file names that are none of its own, and "view N is missing"."""
    known = {view_path(cache.folder, view).name for view in cache.views}
    own = known | {f"{name}.partial" for name in known} | {".lock", RECORD, f"{RECORD}.tmp"}
    unfinished = re.compile(r"view-\d{4,}\.udkd\.partial")
    names = sorted(path.name for path in cache.folder.iterdir())
    odd = [f"{name} is no part of a cache" for name in names if name not in own and not unfinished.fullmatch(name)]
    odd += [f"{name}.partial stands beside the finished view" for name in sorted(known) if f"{name}.partial" in names]
    return odd + [f"view {view} is missing" for view in cache.missing]
