"""Reading a cache: its views, whether it matches a run, and its targets as a table on a device.

Only the tables need torch: a cache is opened and described without it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from udkd.augment.mixing import MixedLabels
from udkd.losses.sample_weight import SampleWeighting, uncertainty_of
from udkd.teacher.cache.key import CacheKey, Differing, Remedy, key_differences
from udkd.teacher.cache.view_count import MAX_VIEWS, VIEW_COUNT_FILE, read_view_count
from udkd.teacher.cache.view_file import REBUILD, ViewFile, read_view_header, view_path
from udkd.utils.errors import CacheError, MismatchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from udkd.teacher.cache.tables import DeviceTable, TargetTable

ESTIMATORS_WITH = {"mutual_information": ("mc_dropout", "ensemble"), "vacuity": ("evidential",)}
"""The estimators that give an uncertainty beyond entropy."""

_MAX_LISTED = 20  # missing views that an error names one by one


def _settings(key: CacheKey, differing: Differing) -> str:
    return "build a cache for these settings, or change the settings"


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of finished views with one key.

    num_rows: N, the split's ids, excluded ones included; num_classes: C.
    views: the numbers of the finished views, ascending. missing: the numbers of finished views whose files are gone.
    """

    folder: Path
    key: CacheKey
    num_rows: int
    views: tuple[int, ...]
    missing: tuple[int, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> Cache:
        """Read all headers. CacheError: no finished view, a damaged file, or views that do not belong together.

        A missing view is not an error here: see `missing`, `require_views` and `unexpected_files`.
        """
        views = finished_views(folder)
        if not views:
            partial = len(list(folder.glob("view-*.udkd.partial"))) if folder.is_dir() else 0
            state = f"{partial} unfinished views" if partial else "no view" if folder.is_dir() else "no such folder"
            raise CacheError(f"{folder}: {state}; expected a finished teacher cache; run `udkd cache build`")
        headers = [read_view_header(view_path(folder, view)) for view in views]
        first = headers[0]
        for view, header in zip(views, headers, strict=True):
            path = view_path(folder, view)
            if header.view != view or header.num_rows != first.num_rows:
                raise CacheError(
                    f"{path} holds view {header.view} of {header.num_rows} rows; "
                    f"expected view {view} of {first.num_rows}; {REBUILD}"
                )
            differing, _ = key_differences(header.key, vars(first.key))
            if differing:
                raise MismatchError(f"{path}", differing, f"one key in all views of a cache; {REBUILD}")
        # In this order, as a concurrent build first counts a view, while it is unfinished, and then finishes it.
        count = max(read_view_count(folder, first.key), views[-1] + 1)
        present = _unfinished_views(folder).union(finished_views(folder), views)
        missing = tuple(view for view in range(count) if view not in present)
        return cls(folder=folder, key=first.key, num_rows=first.num_rows, views=views, missing=missing)

    @property
    def num_classes(self) -> int:
        return self.key.num_classes

    @property
    def unchecked(self) -> str:
        """One line for the user of a cache of imported logits: what of it nothing can check. "" for a cache of a build."""
        claimed = ", ".join(self.key.claimed)
        return f"the cache was imported from {self.key.teacher}: its {claimed} are not checked" if claimed else ""

    @property
    def num_bytes(self) -> int:
        """Size of all finished views."""
        return sum(view_path(self.folder, view).stat().st_size for view in self.views)

    def require(self, expected: Mapping[str, object], allow: Collection[str] = (), remedy: Remedy = _settings) -> list[str]:
        """Check the key against the fields that the caller expects.

        expected: by the names of CacheKey's fields; those that an importer claimed are not compared. allow: fields that may
        differ, such as "pixel_class" or "views.brightness". remedy: writes an error's advice. Returns the allowed fields that
        do differ, for the run's record.
        MismatchError: fields that differ, each with both values. ConfigError: `allow` holds a name that no key has.
        """
        known = {name: value for name, value in expected.items() if name not in self.key.claimed}
        refused, allowed = key_differences(self.key, known, allow)
        if refused:
            raise MismatchError(f"the cache in {self.folder}", refused, remedy(self.key, refused))
        return allowed

    def require_views(self, count: int) -> None:
        """CacheError unless views 0 to count - 1 are finished."""
        present = {view for view in self.views if view < count}
        lacking = count - len(present)
        if lacking:
            listed = ", ".join(map(str, islice((view for view in range(count) if view not in present), _MAX_LISTED)))
            more = f" and {lacking - _MAX_LISTED:,} more" if lacking > _MAX_LISTED else ""
            raise CacheError(
                f"{self.folder} lacks views {listed}{more}; expected {count} views; "
                f"run `udkd cache build` with --views {count}: it adds what is missing"
            )

    def require_rows(self, num_rows: int, ids: NDArray[np.int64], num_classes: int) -> None:
        """CacheError unless there is a target for each of a split's ids. `allow` cannot waive this."""
        if (self.num_rows, self.num_classes) == (num_rows, num_classes):
            return self.require_targets(self.views[0], ids)
        raise self._rows_error(f"{self.num_rows} rows of {self.num_classes} classes", num_rows, num_classes)

    def require_targets(self, view: int, ids: NDArray[np.int64]) -> None:
        """CacheError unless a view has a target for each of `ids`."""
        without = int(np.isnan(self.targets(view)[1][ids]).sum())
        if without:
            content = f"in view {view} no target for {without} of the split's {len(ids)} images"
            raise self._rows_error(content, self.num_rows, self.num_classes)

    def _rows_error(self, content: str, num_rows: int, num_classes: int) -> CacheError:
        return CacheError(
            f"{self.folder} holds {content}; expected a target for each image, {num_rows} rows of {num_classes} classes; "
            "build a cache for this data set: no allowed difference helps"
        )

    def view_file(self, view: int) -> ViewFile:
        """Memory-map one view. CacheError where its file is damaged outside the blocks."""
        if view not in self.views:
            self.require_views(view + 1)
        return ViewFile(view_path(self.folder, view))

    def targets(self, view: int) -> tuple[np.ndarray, NDArray[np.float32]]:
        """One view's logits as stored and entropy, float32 [N], NaN for excluded ids: memory-mapped and not verified."""
        file = self.view_file(view)
        return file.logits, file.uncertainties["entropy"]

    def require_uncertainty(self, kind: str) -> None:
        """CacheError unless the cache stores the uncertainty that a kind of sample weight needs."""
        needed = uncertainty_of(kind)
        if needed is not None and needed not in self.key.uncertainties:
            estimators = " or ".join(ESTIMATORS_WITH[needed])
            raise CacheError(
                f"{self.folder} stores {', '.join(self.key.uncertainties)} (its teacher.estimator was {self.key.estimator}); "
                f"expected {needed} for loss.sample_weight = {kind}; build a cache with teacher.estimator = {estimators}"
            )

    def require_features(self) -> None:
        """CacheError unless the cache stores the teacher's pooled features."""
        if not self.key.features:
            raise CacheError(
                f"{self.folder} holds no features; expected the teacher's pooled features for this loss.method; "
                "build a cache with --features, or set teacher.source = live"
            )

    def lookup_table(
        self,
        view: int,
        device: torch.device,
        weighting: SampleWeighting | None = None,
        labels_N: Tensor | MixedLabels | None = None,
        *,
        features: bool = False,
        ids: NDArray[np.int64] | None = None,
        in_memory: bool = False,
        into: DeviceTable | None = None,
    ) -> TargetTable:
        """One view's targets for training, weighted by entropy unless `weighting` is given.

        On the CPU they are memory-mapped, and a block is verified when a lookup first touches it; any other device gets
        a fully verified copy, if it fits. labels_N: int64 [N], class indices of all ids, for weights that need them, or those
        of the view's mixed samples.
        features: include the teacher's. ids: the ids that will be looked up. in_memory: a verified copy on any device,
        whether it fits or not. into: a table of another view, which this view overwrites.
        CacheError: a damaged block, or targets, uncertainties or features that are not stored.
        """
        from udkd.teacher.cache.tables import open_table

        if ids is not None:
            self.require_targets(view, ids)
        weighting = weighting or SampleWeighting()
        self.require_uncertainty(weighting.kind)
        if features:
            self.require_features()
        return open_table(self.view_file(view), device, weighting, labels_N, features=features, in_memory=in_memory, into=into)


def find_damaged_blocks(cache: Cache) -> list[tuple[int, int]]:
    """Check every block of every view against its checksum; returns (view, block) of the damaged ones.

    CacheError: damage outside the blocks, which makes the file unusable.
    """
    return [(view, block) for view in cache.views for block in cache.view_file(view).damaged_blocks()]


def finished_views(folder: Path) -> tuple[int, ...]:
    """Numbers of the views with a final file name, ascending."""
    return tuple(sorted(_numbers(folder, ".udkd")))


def _unfinished_views(folder: Path) -> set[int]:
    """Numbers of the views that a build is writing, or was writing when it stopped."""
    return _numbers(folder, ".udkd.partial")


def _numbers(folder: Path, ending: str) -> set[int]:
    names = (path.name.removeprefix("view-").removesuffix(ending) for path in folder.glob(f"view-*{ending}"))
    numbers = {n: int(n) for n in names if n.isdecimal()}
    return {view for n, view in numbers.items() if f"{view:04d}" == n and view < MAX_VIEWS}


def unexpected_files(cache: Cache) -> list[str]:
    """One line for each problem of a cache's folder: a file that no build leaves there, or a missing view."""
    names = sorted(path.name for path in cache.folder.iterdir())
    known = {view_path(cache.folder, view).name for view in cache.views}
    # After `names`: a view that a build finishes meanwhile was not opened, and is not unexpected either.
    expected = {view_path(cache.folder, view).name for view in finished_views(cache.folder)}
    expected |= known | {".lock", VIEW_COUNT_FILE, f"{VIEW_COUNT_FILE}.tmp"}
    unfinished = re.compile(r"view-\d{4,}\.udkd\.partial")
    lines = [f"{name} is not part of a cache" for name in names if name not in expected and not unfinished.fullmatch(name)]
    lines += [f"{name}.partial exists beside the finished view" for name in sorted(known) if f"{name}.partial" in names]
    lines += [f"view {view} is missing" for view in cache.missing[:_MAX_LISTED]]
    if (more := len(cache.missing) - _MAX_LISTED) > 0:
        lines.append(f"{more:,} more views are missing")
    return lines
