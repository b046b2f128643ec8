"""The cache's files: every bit checked, safe against kills, and what does not fit is refused."""

import dataclasses
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.teacher.synthetic_cache import CLASSES, EXCLUDED, KEY, ROWS, build, contents, synthetic_targets
from tests.timeouts import scaled
from udkd.losses.sample_weight import entropy_weight
from udkd.losses.storage import Storage
from udkd.teacher.cache.key import CacheKey
from udkd.teacher.cache.reader import Cache, find_damaged_blocks, unexpected_files
from udkd.teacher.cache.view_file import ViewHeader, view_path
from udkd.teacher.cache.writer import CacheWriter
from udkd.teacher.targets import pack
from udkd.utils.errors import BusyError, CacheError, ConfigError, MismatchError


def test_round_trip(tmp_path: Path) -> None:
    build(tmp_path, [0, 1])
    cache = Cache.open(tmp_path)
    assert (cache.key, cache.num_rows, cache.num_classes, cache.views) == (KEY, ROWS, CLASSES, (0, 1))
    ids = np.flatnonzero(~EXCLUDED)
    for view in cache.views:
        logits, entropy = cache.targets(view)
        want_logits, want_entropy = synthetic_targets(view, ids)
        assert logits.dtype == np.float16
        np.testing.assert_array_equal(logits[ids], want_logits)
        np.testing.assert_array_equal(entropy[ids], want_entropy)
        assert not logits[EXCLUDED].any()
        assert np.isnan(entropy[EXCLUDED]).all()
        table = cache.lookup_table(view, torch.device("cpu"))
        shuffled = torch.from_numpy(np.random.default_rng(0).permutation(ids))
        got_logits, got_weight = table.lookup(shuffled)
        assert torch.equal(got_logits, torch.from_numpy(logits[shuffled.numpy()]))
        assert torch.equal(got_weight, entropy_weight(torch.from_numpy(entropy[shuffled.numpy()]), CLASSES))
    assert find_damaged_blocks(cache) == []


def test_order_of_blocks_does_not_change_the_bytes(tmp_path: Path) -> None:
    build(tmp_path / "a", [0])
    build(tmp_path / "b", [0], backwards=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_float32_storage(tmp_path: Path) -> None:
    key = dataclasses.replace(KEY, storage="float32")
    build(tmp_path, [0], key)
    logits, _ = Cache.open(tmp_path).targets(0)
    ids = np.flatnonzero(~EXCLUDED)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits[ids], synthetic_targets(0, ids, key)[0])


def test_size_at_100_classes() -> None:
    key = dataclasses.replace(KEY, num_classes=100, block_rows=256)
    header = ViewHeader(key=key, view=3, num_rows=130_000)
    assert header.num_bytes / header.num_rows <= 204.1
    assert all((header.data_start + spec.offset) % 64 == 0 for spec in header.arrays)


@given(rows=st.integers(1, 70), block_rows=st.integers(1, 80), classes=st.integers(2, 9), seed=st.integers(0, 1000))
def test_any_shape(tmp_path_factory: pytest.TempPathFactory, rows: int, block_rows: int, classes: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("cache")
    key = dataclasses.replace(KEY, num_classes=classes, block_rows=block_rows)
    excluded = np.random.default_rng(seed).random(rows) < 0.2
    build(folder, [0], key, excluded)
    cache = Cache.open(folder)
    assert find_damaged_blocks(cache) == []
    ids = np.flatnonzero(~excluded)
    np.testing.assert_array_equal(cache.targets(0)[0][ids], synthetic_targets(0, ids, key)[0])
    header = ViewHeader(key=key, view=0, num_rows=rows)
    assert view_path(folder, 0).stat().st_size == header.num_bytes


def test_excluded_ids_cannot_be_looked_up(tmp_path: Path) -> None:
    build(tmp_path, [0])
    table = Cache.open(tmp_path).lookup_table(0, torch.device("cpu"))
    with pytest.raises(AssertionError, match="excluded"):
        table.lookup(torch.tensor([1, 13]))


def test_views_are_added_without_touching_existing_ones(tmp_path: Path) -> None:
    build(tmp_path, [0, 1])
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.glob("view-*")}
    build(tmp_path, range(4))
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.glob("view-*")}
    assert {name: after[name] for name in before} == before
    cache = Cache.open(tmp_path)
    assert cache.views == (0, 1, 2, 3)
    cache.require_views(4)
    with pytest.raises(CacheError, match="lacks views 4, 5"):
        cache.require_views(6)


def test_a_missing_view_is_named_the_last_one_too(tmp_path: Path) -> None:
    build(tmp_path, [0, 1, 2])
    intact = contents(tmp_path)
    for gone in ([2], [1, 2], [0]):
        for view in gone:
            view_path(tmp_path, view).unlink()
        cache = Cache.open(tmp_path)
        assert cache.missing == tuple(gone)
        assert unexpected_files(cache) == [f"view {view} is missing" for view in gone]
        build(tmp_path, [view for view in range(3) if view not in gone])  # rebuilding existing views keeps the others
        assert Cache.open(tmp_path).missing == tuple(gone)
        build(tmp_path, range(3))
        assert contents(tmp_path) == intact
        assert unexpected_files(Cache.open(tmp_path)) == []


def test_a_cache_without_a_view_count_opens_and_gets_one(tmp_path: Path) -> None:
    """As those of earlier versions: the view files are the same bytes."""
    build(tmp_path, [0, 1])
    note = (tmp_path / "views.json").read_bytes()
    (tmp_path / "views.json").unlink()
    assert (Cache.open(tmp_path).views, unexpected_files(Cache.open(tmp_path))) == ((0, 1), [])
    build(tmp_path, [0, 1])
    assert (tmp_path / "views.json").read_bytes() == note


def test_a_damaged_view_count_is_found_and_repaired(tmp_path: Path) -> None:
    build(tmp_path / "cache", [0, 1])
    path, folder = tmp_path / "cache" / "views.json", tmp_path / "cache"
    note = path.read_bytes()
    bad = [bytes(byte ^ (1 << at % 8) if n == at else byte for n, byte in enumerate(note)) for at in range(len(note))]
    build(tmp_path / "other", [0, 1], dataclasses.replace(KEY, seed=8))
    for data in (*bad, b"", b"[]", b"{}", note + b" ", (tmp_path / "other" / "views.json").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(CacheError, match=r"views\.json does not belong to these views"):
            Cache.open(folder)
    (folder / "views.json.tmp").write_bytes(b"half")
    build(folder, [0, 1])
    assert path.read_bytes() == note
    assert not (folder / "views.json.tmp").exists()


OTHER_FIELDS: dict[str, object] = {
    "dataset_digest": "e" * 64,
    "split": "val",
    "pixel_class": "nvjpeg",
    "policy": "canonical",
    "views": {**KEY.views, "size_px": 64},
    "views_version": 2,
    "seed": 8,
    "augment_version": 2,
    "normalisation": {"mean": (0, 0, 0), "std": (1, 1, 1)},
    "num_classes": 12,
    "teacher": "resnet50",
    "teacher_sha256": "b" * 64,
    "estimator": "ensemble",
    "precision": "bfloat16",
    "device": "cuda",
    "threads": 2,
    "channels_last": True,
    "teacher_batch": 8,
    "block_rows": 16,
    "storage": "float32",
    "uncertainties": ("entropy", "margin"),
    "features": 5,
    "teacher_size_px": 40,
    "claimed": ("views",),
    "format_version": 2,
}


def test_every_field_is_compared() -> None:
    assert set(OTHER_FIELDS) == {field.name for field in dataclasses.fields(CacheKey)}


@pytest.mark.parametrize("name", [name for name in OTHER_FIELDS if name != "format_version"])
def test_adding_to_a_cache_of_another_key_names_the_field(tmp_path: Path, name: str) -> None:
    build(tmp_path, [0])
    before = contents(tmp_path)
    other = dataclasses.replace(KEY, **{name: OTHER_FIELDS[name]})  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=re.escape(name)) as refusal, CacheWriter(tmp_path, other, EXCLUDED):
        pass
    assert {field.split(".")[0] for field, _, _ in refusal.value.fields} == {name}
    assert contents(tmp_path) == before


def test_a_partial_file_of_another_key_is_refused(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, KEY, EXCLUDED) as writer, writer.view(0) as view:
        view.write(0, *synthetic_targets(0, view.ids(0)))
    with pytest.raises(MismatchError, match="seed: stored 7, wanted 8"):
        build(tmp_path, [0], dataclasses.replace(KEY, seed=8))


def test_require_lists_every_field_with_both_values(tmp_path: Path) -> None:
    build(tmp_path, [0])
    cache = Cache.open(tmp_path)
    known = {name: getattr(KEY, name) for name in ("dataset_digest", "seed", "views", "pixel_class")}
    assert cache.require(known) == []
    other = known | {"seed": 9, "views": {**KEY.views, "size_px": 64, "flip": 0.25}, "pixel_class": "nvjpeg"}
    with pytest.raises(MismatchError) as refusal:
        cache.require(other)
    assert refusal.value.fields == (
        ("pixel_class", KEY.pixel_class, "nvjpeg"),
        ("seed", 7, 9),
        ("views.flip", 0.5, 0.25),
        ("views.size_px", 48, 64),
    )
    assert "seed: stored 7, wanted 9" in str(refusal.value)
    assert cache.require(other, allow=["seed", "views", "pixel_class"]) == [
        "pixel_class",
        "seed",
        "views.flip",
        "views.size_px",
    ]
    with pytest.raises(MismatchError, match=r"views\.flip"):
        cache.require(other, allow=["seed", "views.size_px", "pixel_class"])
    with pytest.raises(ConfigError, match="'decoder'"):
        cache.require(known, allow=["decoder"])


def test_a_target_for_each_image(tmp_path: Path) -> None:
    build(tmp_path, [0])
    cache, ids = Cache.open(tmp_path), np.flatnonzero(~EXCLUDED)
    cache.require_rows(ROWS, ids, CLASSES)
    for rows, wanted, classes, message in (
        (ROWS + 1, ids, CLASSES, f"holds {ROWS} rows of {CLASSES} classes"),
        (ROWS, ids, CLASSES + 1, f"holds {ROWS} rows of {CLASSES} classes"),
        (ROWS, np.arange(ROWS), CLASSES, f"no target for {EXCLUDED.sum()} of the split's {ROWS} images"),
    ):
        with pytest.raises(CacheError, match=message):
            cache.require_rows(rows, wanted, classes)


def test_key_is_strict() -> None:
    text = KEY.to_json()
    assert CacheKey.from_json(text) == KEY
    for bad in (
        text.replace('"seed":7', '"seed":"7"'),
        text.replace('"seed":7', '"seed":7,"sead":1'),
        text.replace('"estimator":"plain",', ""),
        text.replace('"block_rows":8', '"block_rows":0'),
        "[]",
        "{",
    ):
        with pytest.raises(CacheError):
            CacheKey.from_json(bad)


TOP_K = dataclasses.replace(
    KEY,
    storage="float16 top-3",
    estimator="ensemble",
    teacher_sha256=f"{'a' * 64} + {'b' * 64}",
    uncertainties=("entropy", "mutual_information"),
)


def test_size_of_the_top_k_form() -> None:
    key = dataclasses.replace(KEY, num_classes=1000, block_rows=256, storage="float16 top-32")
    header = ViewHeader(key=key, view=3, num_rows=1_281_167)
    assert header.num_bytes / header.num_rows <= 136.1
    assert {spec.name: spec.dtype for spec in header.arrays}["classes"] == "<u2"
    wide = ViewHeader(key=dataclasses.replace(key, num_classes=70_000), view=0, num_rows=10)
    assert {spec.name: spec.dtype for spec in wide.arrays}["classes"] == "<u4"
    with pytest.raises(CacheError, match="leaves classes out"):
        CacheKey.from_json(TOP_K.to_json().replace("top-3", "top-11"))


def test_a_flipped_bit_of_the_top_k_form(tmp_path: Path) -> None:
    """Every array with its checksum: three best of eleven classes, what the others share, two uncertainties."""
    z = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)) * 4
    packed = pack(z, Storage(top_k=3), {"mutual_information": torch.rand(ROWS)})
    with CacheWriter(tmp_path, TOP_K, EXCLUDED) as writer, writer.view(0) as view:
        for block in list(view.unfinished):
            rows = {name: array[view.ids(block)].numpy() for name, array in packed.arrays.items()}
            view.write(block, *(rows[name].astype("<u2") if name == "classes" else rows[name] for name in rows))
        view.finish()
    cache, ids = Cache.open(tmp_path), torch.from_numpy(np.flatnonzero(~EXCLUDED))
    logits, _ = cache.lookup_table(0, torch.device("cpu")).lookup(ids)
    assert torch.equal(logits, packed.dense(CLASSES)[ids])
    assert np.array_equal(cache.view_file(0).dense_logits(ids.numpy()), logits.numpy())
    path, rng = view_path(tmp_path, 0), random.Random(1)
    good = path.read_bytes()
    for _ in range(120):
        bad = bytearray(good)
        bad[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            assert len(find_damaged_blocks(Cache.open(tmp_path))) == 1
        except CacheError as error:
            assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.long), 7])
def test_any_flipped_bit_is_found_and_named(tmp_path: Path, every: int) -> None:
    build(tmp_path, [0])
    path = view_path(tmp_path, 0)
    good = path.read_bytes()
    header = ViewHeader(key=KEY, view=0, num_rows=ROWS)
    rng = random.Random(0)
    for position in range(0, len(good), every):  # each with a random bit
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            damaged = find_damaged_blocks(Cache.open(tmp_path))
        except CacheError as error:
            assert str(path) in str(error)  # noqa: PT017
            continue
        assert len(damaged) == 1, f"byte {position}"
        _, block = damaged[0]
        offset = position - header.data_start
        spec = [spec for spec in header.arrays if spec.offset <= offset][-1]
        row = (offset - spec.offset) // (spec.num_bytes // spec.shape[0])
        assert block == (row if spec.name == "checksums" else row // KEY.block_rows)
        first, end = header.block_range(block)
        ids = torch.tensor([i for i in range(first, end) if not EXCLUDED[i]])
        table = Cache.open(tmp_path).lookup_table(0, torch.device("cpu"))
        if len(ids):
            with pytest.raises(CacheError, match=rf"block {block} \(ids {first} to {end - 1}\)"):
                table.lookup(ids[:1])


def test_a_block_of_another_view_is_damage(tmp_path: Path) -> None:
    build(tmp_path, [0, 1])
    zero, one = view_path(tmp_path, 0).read_bytes(), view_path(tmp_path, 1).read_bytes()
    start = ViewHeader(key=KEY, view=0, num_rows=ROWS).data_start
    view_path(tmp_path, 1).write_bytes(one[:start] + zero[start:])
    assert find_damaged_blocks(Cache.open(tmp_path)) == [(1, block) for block in range(6)]


def test_a_copy_for_a_device_is_verified_completely(tmp_path: Path) -> None:
    build(tmp_path, [0])
    elsewhere = torch.device("meta")  # stands in for a GPU: a copy is made, whose values cannot be read
    table = Cache.open(tmp_path).lookup_table(0, elsewhere)
    logits, weight = table.lookup(torch.zeros(3, dtype=torch.int64, device=elsewhere))
    assert (logits.shape, weight.shape) == ((3, CLASSES), (3,))
    path = view_path(tmp_path, 0)
    content = bytearray(path.read_bytes())
    content[ViewHeader(key=KEY, view=0, num_rows=ROWS).data_start + 2 * CLASSES * 30] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"block 3 \(ids 24 to 31\)"):
        Cache.open(tmp_path).lookup_table(0, elsewhere)


def test_truncated_extended_and_strange_files(tmp_path: Path) -> None:
    build(tmp_path, [0])
    path = view_path(tmp_path, 0)
    good = path.read_bytes()
    for bad, what in (
        (good[:-1], "bytes; expected"),
        (good[:2000], "bytes"),
        (good[:30], "header of"),
        (good[:10], "not a cached view"),
        (b"", "not a cached view"),
        (good + b"\0", "bytes; expected"),
        (b"PK\3\4" + good[4:], "not a cached view"),
        (good[:8] + b"\2" + good[9:], "format version 2"),
        (good[:12] + b"\xff\xff\xff\xff" + good[16:], "header of 4294967295 bytes"),
    ):
        path.write_bytes(bad)
        with pytest.raises(CacheError, match=what) as error:
            Cache.open(tmp_path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_file_under_another_views_name(tmp_path: Path) -> None:
    build(tmp_path, [0])
    shutil.copy(view_path(tmp_path, 0), view_path(tmp_path, 1))
    with pytest.raises(CacheError, match="holds view 0"):
        Cache.open(tmp_path)


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no such folder"):
        Cache.open(tmp_path / "none")
    with pytest.raises(CacheError, match="no view"):
        Cache.open(tmp_path)
    with CacheWriter(tmp_path, KEY, EXCLUDED) as writer, writer.view(0):
        pass
    with pytest.raises(CacheError, match="1 unfinished"):
        Cache.open(tmp_path)


def test_a_partial_file_killed_early_starts_over(tmp_path: Path) -> None:
    build(tmp_path / "a", [0])
    for leftover in (b"", b"UDKD", bytes(ViewHeader(key=KEY, view=0, num_rows=ROWS).num_bytes)):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "view-0000.udkd.partial").write_bytes(leftover)
        build(tmp_path / "b", [0])
        assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_resume_redoes_damaged_blocks_only(tmp_path: Path) -> None:
    build(tmp_path / "a", [0])
    folder = tmp_path / "b"
    with CacheWriter(folder, KEY, EXCLUDED) as writer, writer.view(0) as view:
        for block in (1, 3, 4):
            view.write(block, *synthetic_targets(0, view.ids(block)))
    partial = folder / "view-0000.udkd.partial"
    data = bytearray(partial.read_bytes())
    data[ViewHeader(key=KEY, view=0, num_rows=ROWS).data_start + 3 * 8 * CLASSES * 2] ^= 1
    partial.write_bytes(data)
    with CacheWriter(folder, KEY, EXCLUDED) as writer, writer.view(0) as view:
        assert view.unfinished == [0, 2, 3, 5]
    build(folder, [0])
    assert contents(folder) == contents(tmp_path / "a")


def test_values_that_are_not_finite_are_refused_with_their_id(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, KEY, EXCLUDED) as writer, writer.view(0) as view:
        logits, entropy = synthetic_targets(0, view.ids(1))
        logits[2, 3] = np.nan
        with pytest.raises(CacheError, match=f"id {view.ids(1)[2]} "):
            view.write(1, logits, entropy)
        assert 1 in view.unfinished


def test_full_disk_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(CacheError, match="No space left on device"):
        build(tmp_path, [0])
    assert contents(tmp_path) == {}


def test_full_disk_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "a", [0])
    real, written = os.pwrite, 0

    def runs_full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal written
        if written > 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += len(data)
        return real(descriptor, data, offset)

    folder = tmp_path / "b"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", runs_full)
        with pytest.raises(CacheError, match="No space left on device"):
            build(folder, [0])
    assert list(contents(folder)) == ["view-0000.udkd.partial"]
    build(folder, [0])
    assert contents(folder) == contents(tmp_path / "a")


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    with (
        CacheWriter(tmp_path, KEY, EXCLUDED),
        pytest.raises(BusyError, match=str(os.getpid())),
        CacheWriter(tmp_path, KEY, EXCLUDED),
    ):
        pass
    build(tmp_path, [0])


def test_the_lock_is_released_when_opening_fails(tmp_path: Path) -> None:
    build(tmp_path, [0])
    with pytest.raises(MismatchError), CacheWriter(tmp_path, dataclasses.replace(KEY, seed=1), EXCLUDED):
        pass
    build(tmp_path, [1])


SLOW_BUILD = """
import sys, time
from pathlib import Path
from tests.teacher.synthetic_cache import EXCLUDED, KEY, synthetic_targets
from udkd.teacher.cache.writer import CacheWriter
print("ready", flush=True)
with CacheWriter(Path(sys.argv[1]), KEY, EXCLUDED) as writer:
    for number in sorted({0, 1} - set(writer.finished)):
        with writer.view(number) as view:
            for block in list(view.unfinished):
                time.sleep(0.002)
                view.write(block, *synthetic_targets(number, view.ids(block)))
            view.finish()
"""


@pytest.mark.long
def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    """Kill until a build finishes: byte-identical to one that was never interrupted."""
    build(tmp_path / "complete", [0, 1])
    folder, rng, kills = tmp_path / "killed", random.Random(1), 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_BUILD, str(folder)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert process.stdout is not None
        process.stdout.readline()
        if kills < 3:
            time.sleep(rng.random() * 0.012)
            process.send_signal(signal.SIGKILL)
        kills += process.wait(scaled(60)) == -signal.SIGKILL
        process.stdout.close()
        if process.returncode == 0:
            if kills == 3:
                break
            shutil.rmtree(folder)  # it finished before the signal
            continue
        for path in folder.glob("view-*.udkd"):
            assert path.read_bytes() == view_path(tmp_path / "complete", int(path.stem[-4:])).read_bytes()
    assert process.returncode == 0
    assert kills == 3
    assert contents(folder) == contents(tmp_path / "complete")
