"""Reading a cache: what it holds, whether it fits, and its targets as a table on a device."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udkd.losses.sample_weight import UNCERTAINTY_OF, SampleWeighting, WeightKind
from udkd.teacher.cache.key import CacheKey, Differing, Remedy, differences
from udkd.teacher.cache.tables import DeviceTable, TargetTable, open_table
from udkd.teacher.cache.view_count import MOST_VIEWS, RECORD, recorded_views
from udkd.teacher.cache.view_file import REBUILD, ViewFile, read_header, view_path
from udkd.utils.errors import CacheError, MismatchError

ESTIMATORS_WITH = {"mutual_information": ("mc_dropout", "ensemble"), "vacuity": ("evidential",)}
"""The estimators that give an uncertainty beyond entropy."""

_NAMED = 20  # missing views that are told one by one


def _settings(key: CacheKey, differing: Differing) -> str:
    return "build a cache for these settings, or change the settings"


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

        A view that is missing stops only whoever needs it: see `missing`, `require_views` and `unexpected_files`.
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
        # In this order: a view that a build finishes meanwhile is recorded, unfinished, and finished, one after the other.
        count = max(recorded_views(folder, first.key), views[-1] + 1)
        there = _unfinished_views(folder).union(finished_views(folder), views)
        missing = tuple(view for view in range(count) if view not in there)
        return cls(folder=folder, key=first.key, num_rows=first.num_rows, views=views, missing=missing)

    @property
    def num_classes(self) -> int:
        return self.key.num_classes

    @property
    def num_bytes(self) -> int:
        """Of all finished views."""
        return sum(view_path(self.folder, view).stat().st_size for view in self.views)

    def require(self, expected: Mapping[str, object], allow: Collection[str] = (), remedy: Remedy = _settings) -> list[str]:
        """Refuse a cache that was made for other circumstances.

        expected: what the asker knows, by the names of CacheKey's fields. allow: fields that may differ all the same, such
        as "pixel_class" or "views.brightness". remedy: what an error advises. Returns those that do, for the run's record.
        MismatchError: fields that differ, each with both values. ConfigError: `allow` names no field.
        """
        refused, allowed = differences(self.key, expected, allow)
        if refused:
            raise MismatchError(f"the cache in {self.folder}", refused, remedy(self.key, refused))
        return allowed

    def require_views(self, count: int) -> None:
        """CacheError unless views 0 to count - 1 are finished."""
        there = {view for view in self.views if view < count}
        lacking = count - len(there)
        if lacking:
            some = ", ".join(map(str, islice((view for view in range(count) if view not in there), _NAMED)))
            more = f" and {lacking - _NAMED:,} more" if lacking > _NAMED else ""
            raise CacheError(
                f"{self.folder} lacks views {some}{more}; expected {count} views; "
                f"run `udkd cache build` with --views {count}: it adds what is missing"
            )

    def require_rows(self, num_rows: int, ids: NDArray[np.int64], num_classes: int) -> None:
        """CacheError unless there is a target for each of a split's ids: what no allowed difference makes up for."""
        if (self.num_rows, self.num_classes) == (num_rows, num_classes):
            return self.require_targets(self.views[0], ids)
        raise self._other_rows(f"{self.num_rows} rows of {self.num_classes} classes", num_rows, num_classes)

    def require_targets(self, view: int, ids: NDArray[np.int64]) -> None:
        """CacheError unless a view has a target for each of some ids."""
        without = int(np.isnan(self.targets(view)[1][ids]).sum())
        if without:
            found = f"in view {view} no target for {without} of the split's {len(ids)} images"
            raise self._other_rows(found, self.num_rows, self.num_classes)

    def _other_rows(self, found: str, num_rows: int, num_classes: int) -> CacheError:
        return CacheError(
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
            makers = " or ".join(ESTIMATORS_WITH[needed])
            raise CacheError(
                f"{self.folder} stores {', '.join(self.key.uncertainties)} (its teacher.estimator was {self.key.estimator}); "
                f"expected {needed} for loss.sample_weight = {kind}; build a cache with teacher.estimator = {makers}"
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
        weighing: SampleWeighting | None = None,
        labels_N: Tensor | None = None,
        *,
        features: bool = False,
        ids: NDArray[np.int64] | None = None,
        in_memory: bool = False,
        into: DeviceTable | None = None,
    ) -> TargetTable:
        """One view's targets for training, weighed by entropy where `weighing` is left out.

        On the CPU they stay memory-mapped, and a block is verified when a lookup first touches it; any other device gets
        a copy that was verified whole, if it fits. labels_N: int64 [N], class indices of all ids, for weights that ask.
        features: the teacher's are asked for too. ids: those that will be looked up. in_memory: a verified copy on any device,
        whether it fits or not. into: a table of another view, to be overwritten by this one. CacheError names a damaged block,
        or what is not stored.
        """
        if ids is not None:
            self.require_targets(view, ids)
        weighing = weighing or SampleWeighting()
        self.require_uncertainty(weighing.kind)
        if features:
            self.require_features()
        return open_table(self.view_file(view), device, weighing, labels_N, features=features, in_memory=in_memory, into=into)


def verify(cache: Cache) -> list[tuple[int, int]]:
    """Check every block of every view against its checksum: (view, block) of those that are damaged.

    CacheError: damage outside the blocks, which leaves a file unusable as a whole.
    """
    return [(view, block) for view in cache.views for block in cache.view_file(view).damaged_blocks()]


def finished_views(folder: Path) -> tuple[int, ...]:
    """Numbers of the views that stand under their final name, ascending."""
    return tuple(sorted(_numbers(folder, ".udkd")))


def _unfinished_views(folder: Path) -> set[int]:
    """Numbers of the views that a build is at, or was when it ended."""
    return _numbers(folder, ".udkd.partial")


def _numbers(folder: Path, ending: str) -> set[int]:
    names = (path.name.removeprefix("view-").removesuffix(ending) for path in folder.glob(f"view-*{ending}"))
    numbers = {n: int(n) for n in names if n.isdecimal()}
    return {view for n, view in numbers.items() if f"{view:04d}" == n and view < MOST_VIEWS}


def unexpected_files(cache: Cache) -> list[str]:
    """What in a cache's folder no build leaves there: file names that are none of its own, and "view N is missing"."""
    names = sorted(path.name for path in cache.folder.iterdir())
    known = {view_path(cache.folder, view).name for view in cache.views}
    # Names first: a view that a build finishes meanwhile is none of those that were opened, and no stranger either.
    own = {view_path(cache.folder, view).name for view in finished_views(cache.folder)}
    own |= known | {".lock", RECORD, f"{RECORD}.tmp"}
    unfinished = re.compile(r"view-\d{4,}\.udkd\.partial")
    odd = [f"{name} is no part of a cache" for name in names if name not in own and not unfinished.fullmatch(name)]
    odd += [f"{name}.partial stands beside the finished view" for name in sorted(known) if f"{name}.partial" in names]
    odd += [f"view {view} is missing" for view in cache.missing[:_NAMED]]
    return odd + ([f"{len(cache.missing) - _NAMED:,} more views are missing"] if len(cache.missing) > _NAMED else [])
