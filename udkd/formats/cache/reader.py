"""Reading a cache: what it holds, whether it fits, and its targets as a table on a device."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udkd.formats.cache.key import CacheKey, differences
from udkd.formats.cache.view_file import REBUILD, ViewFile, read_header, view_path
from udkd.words.errors import CacheError, MismatchError
from udkd.words.uncertainty import entropy_weight


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of finished views with one key.

    num_rows: N, the split's ids, excluded ones included; num_classes: C.
    views: the numbers of the finished views, ascending.
    """

    folder: Path
    key: CacheKey
    num_rows: int
    views: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        """Read all headers. CacheError: no finished view, a damaged file, or views that do not belong together."""
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
        return cls(folder=folder, key=first.key, num_rows=first.num_rows, views=views)

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

    def view_file(self, view: int) -> ViewFile:
        """Map one view; CacheError where its file is damaged outside the blocks."""
        self.require_views(view + 1)
        return ViewFile(view_path(self.folder, view))

    def targets(self, view: int) -> tuple[np.ndarray, NDArray[np.float32]]:
        """Logits [N, C] and entropy float32 [N] of one view, memory-mapped and not verified; NaN marks excluded ids."""
        file = self.view_file(view)
        return file.logits, file.uncertainties["entropy"]

    def lookup_table(self, view: int, device: torch.device) -> "TargetTable":
        """One view's targets for training.

        On the CPU they stay memory-mapped, and a block is verified when a lookup first touches it; any other device gets
        a copy that was verified whole. CacheError names a damaged block.
        """
        file = self.view_file(view)
        logits_NC = torch.from_numpy(file.logits)
        entropy_N = torch.from_numpy(file.uncertainties["entropy"])
        if device.type == "cpu":
            weight_N = entropy_weight(entropy_N, self.num_classes)
            return TargetTable(logits_NC, weight_N, file)
        for block in range(file.header.num_blocks):
            file.require_block(block)
        # The weight is derived where a live teacher's is: a division rounds differently on another device.
        return TargetTable(logits_NC.to(device), entropy_weight(entropy_N.to(device), self.num_classes), None)


class TargetTable:
    """The targets of one view: a lookup is one gather for the logits and one for the weights.

    logits: float16 or float32 [N, C]; weight: float32 [N], NaN for excluded ids. Both on the table's device.
    """

    def __init__(self, logits_NC: Tensor, weight_N: Tensor, unverified: ViewFile | None) -> None:
        self.logits = logits_NC
        self.weight = weight_N
        self._file = unverified
        self._verified: NDArray[np.bool_] = np.zeros(unverified.header.num_blocks if unverified else 0, np.bool_)

    def lookup(self, ids_B: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher logits [B, C] and weight float32 [B] of int64 ids [B] on the table's device.

        CacheError (CPU): a damaged block. An excluded id is an assertion on the CPU and a NaN weight elsewhere, where
        asking would make the device wait.
        """
        if self._file is not None:
            self._verify(self._file, ids_B.numpy())
        return self.logits.index_select(0, ids_B), self.weight.index_select(0, ids_B)

    def _verify(self, file: ViewFile, ids_B: NDArray[np.int64]) -> None:
        blocks = ids_B // file.header.key.block_rows
        if not self._verified[blocks].all():
            for block in np.unique(blocks[~self._verified[blocks]]).tolist():
                file.require_block(block)
                self._verified[block] = True
        assert not np.isnan(file.uncertainties["entropy"][ids_B]).any(), "lookup of an excluded id"


def verify(cache: Cache) -> list[tuple[int, int]]:
    """Check every block of every view against its checksum: (view, block) of those that are damaged.

    CacheError: damage outside the blocks, which leaves a file unusable as a whole.
    """
    return [(view, block) for view in cache.views for block in cache.view_file(view).damaged_blocks()]


def finished_views(folder: Path) -> tuple[int, ...]:
    """Numbers of the views that stand under their final name, ascending."""
    numbers = (path.name.removeprefix("view-").removesuffix(".udkd") for path in folder.glob("view-*.udkd"))
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))
