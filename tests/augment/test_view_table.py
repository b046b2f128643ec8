"""View tables of a split: row n is sample n's view, excluded rows do no harm, two tables are kept."""

from types import SimpleNamespace

import numpy as np
import torch

from udkd.augment import view_table as epoch_views
from udkd.augment.apply import ViewTable, pixels
from udkd.augment.view_table import EpochViews
from udkd.augment.views import ViewSpec, draw_views

SPEC = ViewSpec(size_px=16, brightness=0.4)


def split(count: int, excluded: tuple[int, ...] = ()) -> SimpleNamespace:
    sizes = np.random.default_rng(0).integers(1, 40, (count, 4)).astype(np.uint32)
    flags = np.isin(np.arange(count), excluded)
    sizes[flags] = 0
    return SimpleNamespace(
        num_samples=count, excluded=flags, sizes=sizes, ids=np.flatnonzero(~flags), labels=np.arange(count, dtype=np.int32) % 3
    )


def test_a_row_is_the_samples_view() -> None:
    some = split(50, excluded=(0, 7, 49))
    full = EpochViews(SPEC, 5, some, torch.device("cpu")).table(3)  # type: ignore[arg-type]
    ids = np.flatnonzero(~some.excluded)[::-1].copy()
    want = ViewTable.of(draw_views(SPEC, 5, 3, ids, some.sizes[ids]))
    for name, value in want.tensors.items():
        assert torch.equal(getattr(full.gather(torch.from_numpy(ids)), name), value), name


def test_excluded_rows_have_a_view_that_can_be_cropped() -> None:
    full = EpochViews(SPEC, 5, split(4, excluded=(1,)), torch.device("cpu")).table(0)  # type: ignore[arg-type]
    assert pixels(torch.zeros(4, 40, 40, 3, dtype=torch.uint8), full, 16).shape == (4, 16, 16, 3)


def test_two_tables_are_kept(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    calls = []

    def counted(spec, seed, view, ids, sizes, partner):  # type: ignore[no-untyped-def]
        calls.append(view)
        return draw_views(spec, seed, view, ids, sizes, partner)

    monkeypatch.setattr(epoch_views, "draw_views", counted)
    views = EpochViews(SPEC, 5, split(4), torch.device("cpu"))  # type: ignore[arg-type]
    for view in (0, 1, 0, 1, 2, 1, 0):
        views.table(view)
    assert calls == [0, 1, 2, 0]
    assert not torch.equal(views.table(0).window, views.table(1).window)
