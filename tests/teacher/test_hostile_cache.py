"""Caches that no build wrote, under checksums that match: a one-line error, and no memory for unchecked sizes."""

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.teacher.synthetic_cache import CLASSES, EXCLUDED, KEY, ROWS, build, contents
from udkd.data.batch import Batch
from udkd.losses.sample_weight import SampleWeighting, weight_kinds
from udkd.losses.storage import Storage
from udkd.teacher.cache import reader as reader_module
from udkd.teacher.cache.key import CacheKey
from udkd.teacher.cache.reader import Cache, find_damaged_blocks, unexpected_files
from udkd.teacher.cache.summary import summarise_cache, weight_histogram
from udkd.teacher.cache.view_count import VIEW_COUNT_FILE
from udkd.teacher.cache.view_file import ViewFile, ViewHeader, block_checksum, read_view_header, view_path
from udkd.teacher.cache.writer import CacheWriter
from udkd.teacher.sources import CachedTargets
from udkd.teacher.targets import pack
from udkd.utils.errors import CacheError, MismatchError
from udkd.utils.files import json_bytes

CPU = torch.device("cpu")
IDS = np.flatnonzero(~EXCLUDED)
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**12, 10**30, 2**63, 1e300, "", "x", "nan", "\u202e\u001b[2J", [], [1], {}, {"a": {"b": [1]}},
)  # fmt: skip
SEALED = struct.Struct("<8sIII")


def sealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a view file's header and seal it with a checksum that matches, its length unchanged."""
    data = path.read_bytes()
    magic, version, length, _ = SEALED.unpack_from(data)
    header = json.loads(data[SEALED.size : SEALED.size + length])
    rest = data[-(-(SEALED.size + length) // 64) * 64 :]
    change(header)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    signed = struct.pack("<8sII", magic, version, len(text))
    head = SEALED.pack(magic, version, len(text), zlib.crc32(text, zlib.crc32(signed))) + text
    path.write_bytes(head.ljust(-(-len(head) // 64) * 64, b"\0") + rest)


def reseal(path: Path) -> None:
    """Give the blocks of a view file checksums that match, if its header can be read at all."""
    header, content = read_view_header(path), bytearray(path.read_bytes())
    specs, start = header.arrays, header.data_start
    rows = [
        np.frombuffer(content, spec.dtype, int(np.prod(spec.shape)), start + spec.offset).reshape(spec.shape)
        for spec in specs[:-1]
    ]
    sums = [
        block_checksum(header.checksum, block, [array[slice(*header.block_range(block))] for array in rows])
        for block in range(header.num_blocks)
    ]
    del rows
    start_of_sums = start + specs[-1].offset
    content[start_of_sums : start_of_sums + 4 * len(sums)] = np.array(sums, "<u4").tobytes()
    path.write_bytes(content)


def use(folder: Path) -> None:
    """All that commands do with a cache."""
    cache = Cache.open(folder)
    cache.require({name: getattr(KEY, name) for name in ("dataset_digest", "num_classes", "views", "estimator", "precision")})
    cache.require_rows(ROWS, IDS, CLASSES)
    assert isinstance(unexpected_files(cache), list)
    summarise_cache(cache, np.zeros(ROWS, np.int32))
    weight_histogram(cache, 20)
    labels_N = torch.zeros(ROWS, dtype=torch.int64)
    for kind in weight_kinds():
        with contextlib.suppress(CacheError):  # of an uncertainty that is not stored
            cache.lookup_table(0, CPU, SampleWeighting(kind=kind), labels_N, ids=IDS).lookup(torch.from_numpy(IDS))
    find_damaged_blocks(cache)


@pytest.mark.parametrize("name", [*vars(KEY), "features", "more"])
def test_a_key_of_any_other_value(tmp_path: Path, name: str) -> None:
    build(tmp_path, [0])
    good = view_path(tmp_path, 0).read_bytes()
    for value in ODD_VALUES:
        view_path(tmp_path, 0).write_bytes(good)
        sealed(view_path(tmp_path, 0), lambda header, value=value: header["key"].update({name: value}))  # type: ignore[misc]
        if view_path(tmp_path, 0).read_bytes() == good:
            continue
        (tmp_path / VIEW_COUNT_FILE).unlink(missing_ok=True)
        try:
            reseal(view_path(tmp_path, 0))
            use(tmp_path)
        except (CacheError, MismatchError) as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 3000  # noqa: PT017


@pytest.mark.parametrize("name", ["view", "rows", "arrays", "key"])
def test_a_header_of_any_other_value(tmp_path: Path, name: str) -> None:
    build(tmp_path, [0])
    good = view_path(tmp_path, 0).read_bytes()
    for value in ODD_VALUES:
        view_path(tmp_path, 0).write_bytes(good)
        sealed(view_path(tmp_path, 0), lambda header, value=value: header.update({name: value}))  # type: ignore[misc]
        if view_path(tmp_path, 0).read_bytes() != good:
            with pytest.raises(CacheError):
                use(tmp_path)


def test_a_header_that_is_nested_without_end(tmp_path: Path) -> None:
    build(tmp_path, [0])
    path, text = view_path(tmp_path, 0), b'{"key":' + b"[" * 100_000 + b"]" * 100_000 + b',"view":0,"rows":1}'
    signed = struct.pack("<8sII", b"UDKDVIEW", 1, len(text))
    path.write_bytes(SEALED.pack(b"UDKDVIEW", 1, len(text), zlib.crc32(text, zlib.crc32(signed))) + text)
    with pytest.raises(CacheError, match="unreadable header"):
        Cache.open(tmp_path)


def test_an_invalid_view_count_is_refused(tmp_path: Path) -> None:
    """Under a matching checksum: hundreds of millions of views, or a value that is no count."""
    build(tmp_path, [0])
    good = (tmp_path / VIEW_COUNT_FILE).read_bytes()
    for count in (10**8, 10**30, -1, True, 1.0, "2", None, [], {}):
        crc = zlib.crc32(f"{count} {KEY.to_json()}".encode())
        (tmp_path / VIEW_COUNT_FILE).write_bytes(json_bytes({"views": count, "crc32": crc}))
        with pytest.raises(CacheError, match=r"views\.json does not belong"):
            Cache.open(tmp_path)
    for data in (b"[" * 4000, b" " * 10_000, b"[]", b'{"views": 1, "views": 1}'):
        (tmp_path / VIEW_COUNT_FILE).write_bytes(data)
        with pytest.raises(CacheError, match=r"views\.json does not belong"):
            Cache.open(tmp_path)
    (tmp_path / VIEW_COUNT_FILE).unlink()
    os.mkfifo(tmp_path / VIEW_COUNT_FILE)
    with pytest.raises(CacheError, match=r"views\.json does not belong"):
        Cache.open(tmp_path)
    build(tmp_path, [0])
    assert (tmp_path / VIEW_COUNT_FILE).read_bytes() == good
    with pytest.raises(CacheError, match=r"lacks views 1, 2, .* and 999,999,979 more; expected 1000000000 views"):
        Cache.open(tmp_path).require_views(10**9)
    (tmp_path / f"view-{10**9}.udkd").write_bytes(view_path(tmp_path, 0).read_bytes())
    assert unexpected_files(Cache.open(tmp_path)) == [f"view-{10**9}.udkd is not part of a cache"]


def test_something_else_in_place_of_a_view(tmp_path: Path) -> None:
    build(tmp_path, [0, 1])
    path = view_path(tmp_path, 1)
    path.unlink()
    for make in (
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path.name),
    ):
        make()
        with pytest.raises(CacheError, match=r"view-0001\.udkd is (not a regular file|missing)"):
            Cache.open(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()
    path.symlink_to(view_path(tmp_path, 0))
    with pytest.raises(CacheError, match="holds view 0"):
        Cache.open(tmp_path)


def test_nothing_is_written_through_a_link_named_like_an_unfinished_view(tmp_path: Path) -> None:
    other_file, partial = tmp_path / "other", tmp_path / "cache" / "view-0000.udkd.partial"
    partial.parent.mkdir()
    other_file.write_bytes(b"mine")
    for make in (
        lambda: partial.symlink_to(other_file),
        lambda: partial.hardlink_to(other_file),
        lambda: os.mkfifo(partial),
        lambda: partial.mkdir(),
    ):
        make()
        with pytest.raises(CacheError, match="is a link or not a regular file"):
            build(partial.parent, [0])
        assert other_file.read_bytes() == b"mine"
        partial.rmdir() if partial.is_dir() else partial.unlink()
    build(partial.parent, [0])


def test_a_view_of_more_rows_is_not_resumed(tmp_path: Path) -> None:
    """A cache of the same key and more rows than the split has is not resumed."""
    build(tmp_path, [0], excluded=np.zeros(ROWS + 3, np.bool_))
    with pytest.raises(CacheError, match=f"holds view 0 of {ROWS + 3} rows; expected view 0 of {ROWS}"):
        build(tmp_path, [0, 1])
    with pytest.raises(CacheError, match=f"holds {ROWS + 3} rows and the split {ROWS}"):
        summarise_cache(Cache.open(tmp_path), np.zeros(ROWS, np.int32))


def test_disk_space_is_checked_before_the_work(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, KEY, EXCLUDED) as writer:
        writer.require_disk_space(range(3))
        with pytest.raises(CacheError, match=r"lacks 1,000,000,000,000,000 views of .* MB are free; expected room for all"):
            writer.require_disk_space(range(10**15))


def forged(folder: Path, name: str, value: float, *, top_k: int = 3) -> Cache:
    """A cache with one value of one array replaced under checksums that match: row 9, its first number."""
    key = CacheKey(**vars(KEY) | {"storage": f"float16 top-{top_k}" if top_k else "float16", "features": 5})
    z = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)) * 4
    packed = pack(z, Storage(top_k=top_k))
    rows = {
        **{column: array.numpy() for column, array in packed.arrays.items()},
        "features": np.ones((ROWS, 5), np.float16),
    }
    with CacheWriter(folder, key, EXCLUDED) as writer, writer.view(0) as view:
        for block in list(view.unfinished):
            ids = view.ids(block)
            view.write(
                block,
                *(rows[column][ids].astype("<u2") if column == "classes" else rows[column][ids] for column in rows),
            )
        view.finish()
    file = ViewFile(view_path(folder, 0))
    changed, content = file.arrays[name].copy(), bytearray(view_path(folder, 0).read_bytes())
    changed.reshape(ROWS, -1)[9, 0] = value
    start = next(file.header.data_start + spec.offset for spec in file.header.arrays if spec.name == name)
    content[start : start + changed.nbytes] = changed.tobytes()
    view_path(folder, 0).write_bytes(content)
    reseal(view_path(folder, 0))
    return Cache.open(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logits", np.nan), ("logits", -np.inf), ("classes", CLASSES), ("classes", 65_535), ("tail", 1.0), ("tail", -0.5),
        ("tail", np.nan), ("entropy", np.inf), ("features", np.inf), ("features", np.nan),
    ],
)  # fmt: skip
def test_impossible_values_under_checksums_that_match(tmp_path: Path, name: str, value: float) -> None:
    cache = forged(tmp_path, name, value)
    assert find_damaged_blocks(cache) == [(0, 1)]
    for device in (CPU, torch.device("meta")):
        with pytest.raises(CacheError, match=rf"block 1 \(ids 8 to 15\) holds impossible {name} although its checksum matches"):
            cache.lookup_table(0, device).lookup(torch.tensor([9]))


def test_an_image_without_a_target_is_refused_before_training(tmp_path: Path) -> None:
    cache = forged(tmp_path, "entropy", np.nan, top_k=0)
    ids = torch.from_numpy(IDS)
    batch = Batch(ids=ids, canvas=torch.zeros(len(IDS), 2, 2, 3, dtype=torch.uint8), labels=torch.zeros_like(ids))
    with pytest.raises(CacheError, match=f"in view 0 no target for 1 of the split's {len(IDS)} images"):
        CachedTargets(cache, CPU, ids=IDS)(batch, torch.zeros(1), 0)
    with pytest.raises(CacheError, match="no target for 1"):
        cache.require_rows(ROWS, IDS, CLASSES)


def test_beside_a_build_that_adds_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view is recorded, unfinished and finished in turn; a reader misses nothing and reports nothing unexpected."""
    build(tmp_path, [0, 1])
    opened, before = Cache.open(tmp_path), contents(tmp_path)
    build(tmp_path, [0, 1, 2])
    assert unexpected_files(opened) == [], "finished after it was opened"
    final = view_path(tmp_path, 2)
    partial = final.with_name(final.name + ".partial")
    final.rename(partial)
    assert (Cache.open(tmp_path).missing, unexpected_files(Cache.open(tmp_path))) == ((), []), "recorded, and not finished yet"
    real = reader_module.read_view_count

    def finished_now(folder: Path, key: CacheKey) -> int:
        count = real(folder, key)
        if partial.exists():
            partial.rename(final)
        return count

    monkeypatch.setattr(reader_module, "read_view_count", finished_now)
    cache = Cache.open(tmp_path)
    assert (cache.views, cache.missing, unexpected_files(cache)) == ((0, 1), (), [])
    assert contents(tmp_path).keys() - before.keys() == {final.name}
    assert ViewHeader(key=KEY, view=2, num_rows=ROWS).num_bytes == final.stat().st_size
