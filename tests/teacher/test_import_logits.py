"""Imported logits against NumPy, and files that other readers write and read."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

import udkd
from tests.teacher.cache_fixtures import CLASSES, CPU, EXCLUDED, SAMPLES, recipe, run, views_of
from tests.teacher.synthetic_cache import KEY
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.teacher.cache.export_logits import export_cache
from udkd.teacher.cache.import_logits import CLAIMED, import_cache
from udkd.teacher.cache.key import CacheKey
from udkd.teacher.cache.reader import Cache, find_damaged_blocks
from udkd.teacher.cache.verify import WEIGHT_BOUND
from udkd.teacher.cache.writer import ViewWriter
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.sources import open_targets
from udkd.utils.errors import CacheError, ConfigError, DataError, MismatchError, RunError, UserError

C = len(CLASSES)
KEPT = np.array(sorted(set(range(SAMPLES)) - EXCLUDED))
LOGITS = np.random.default_rng(0).normal(size=(SAMPLES, C)) * 5 + np.arange(SAMPLES)[:, None]
NAMES = [f"/somewhere/train/c/{n}.jpg" for n in range(SAMPLES)]


class Notes:
    """Keeps the notes that an observer gets."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, task: str, total: int, unit: str) -> None: ...
    def advance(self, count: int, **fields: float | str) -> None: ...
    def finish(self) -> None: ...
    def note(self, line: str) -> None:
        self.lines.append(line)


def load(folder: Path, dataset: DatasetFolder, logits: Path, recipe: Recipe | None = None, **options: object) -> Cache:
    options = {"recipe": recipe or globals()["recipe"]()} | options
    return import_cache(folder, dataset=dataset, logits=logits, **options).cache  # type: ignore[arg-type]


def npy(path: Path, logits: np.ndarray = LOGITS, dtype: str = "float32") -> Path:
    np.save(path, logits.astype(dtype))
    return path


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def check(cache: Cache, logits: np.ndarray = LOGITS, dtype: str = "float32", rtol: float = 0) -> None:
    """Stored logits and entropies against NumPy in float64. rtol: relative, of logits that passed through a logarithm."""
    stored, entropy = cache.targets(0)
    values = logits.astype(dtype)[KEPT].astype(np.float32)
    centred = (values - values.max(1, keepdims=True)).astype(np.float16)
    if rtol:
        np.testing.assert_allclose(stored[KEPT].astype(np.float64), centred.astype(np.float64), rtol=rtol, atol=1e-6)
    else:
        np.testing.assert_array_equal(stored[KEPT], centred)
    p = np.exp(values.astype(np.float64) - values.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(entropy[KEPT], -(p * np.log(p)).sum(1), atol=1e-5)
    assert np.isnan(entropy[sorted(EXCLUDED)]).all()
    assert not find_damaged_blocks(cache)


def test_an_array_in_id_order(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    for name, dtype in (("float16", "float16"), ("float32", "float32"), ("float64", "float64"), ("big", ">f4")):
        logits = LOGITS % 8 if name == "float16" else LOGITS
        notes = Notes()
        cache = load(tmp_path / name, cache_dataset, npy(tmp_path / f"{name}.npy", logits, dtype), observer=notes)
        check(cache, logits, dtype)
        assert [line.partition(":")[0] for line in notes.lines] == ["rows", "classes"]
        assert "this data's order, n00, n01, n02, …" in notes.lines[1]
    assert cache.key.teacher == "big.npy"
    assert cache.key.claimed == CLAIMED
    np.save(tmp_path / "fortran.npy", np.asfortranarray(LOGITS.astype("float32")))
    check(load(tmp_path / "fortran", cache_dataset, tmp_path / "fortran.npy"))


def test_rows_of_kept_samples_alone_and_nan_for_excluded_ones(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    notes = Notes()
    check(load(tmp_path / "a", cache_dataset, npy(tmp_path / "kept.npy", LOGITS[KEPT]), observer=notes))
    assert "65 training samples that are not excluded" in notes.lines[0]
    logits = LOGITS.copy()
    logits[sorted(EXCLUDED)] = np.nan
    check(load(tmp_path / "b", cache_dataset, npy(tmp_path / "all.npy", logits)))
    check(load(tmp_path / "c", cache_dataset, tmp_path / "all.npy", names=lines(tmp_path / "names", NAMES)))


def _parquet(file: Path, /, **columns: object) -> Path:
    pq.write_table(pa.table(columns), file, row_group_size=17)
    return file


def _formats(folder: Path, order: np.ndarray) -> dict[str, tuple[Path, dict[str, object]]]:
    """The same rows in another order, with keys, in every format."""
    logits, names = LOGITS[order].astype(np.float32), [NAMES[n] for n in order]
    tensors = {"x": torch.from_numpy(logits), "ids": torch.from_numpy(order), "other": torch.zeros(3)}
    save_file(tensors, folder / "a.safetensors")
    save_file({"logits": tensors["x"], "ids": tensors["ids"].int(), "z": tensors["x"] * 2}, folder / "b.safetensors")
    rows, fixed = list(logits), pa.FixedSizeListArray.from_arrays(logits.ravel(), C)
    large, categories = pa.array(rows, pa.large_list(pa.float32())), pa.array(names).dictionary_encode()
    separate = {"extra": logits[:, 1]} | {entry.wnid: logits[:, n] for n, entry in reversed(list(enumerate(CLASSES)))}
    return {
        "npy": (npy(folder / "a.npy", logits), {"names": lines(folder / "names.txt", names)}),
        "safetensors": (folder / "a.safetensors", {}),
        "safetensors, one named": (folder / "b.safetensors", {}),
        "parquet, path": (_parquet(folder / "a.parquet", path=names, logits=rows), {}),
        "parquet, file_name": (_parquet(folder / "b.parquet", logits=fixed, file_name=categories), {}),
        "parquet, id": (_parquet(folder / "c.parquet", id=order.astype(np.int32), logits=large), {}),
        "parquet, columns": (_parquet(folder / "d.parquet", id=order, path=names, label=logits[:, 0], **separate), {}),
    }


def test_every_format_with_keys(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    order = np.random.default_rng(1).permutation(SAMPLES)
    for name, (path, options) in _formats(tmp_path, order).items():
        cache = load(tmp_path / name, cache_dataset, path, **options)
        check(cache)
    kept = order[~np.isin(order, list(EXCLUDED))]  # excluded samples need no row
    for name, (path, options) in _formats(tmp_path, kept).items():
        check(load(tmp_path / f"{name}, kept", cache_dataset, path, **options))


def test_bfloat16(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    logits = torch.from_numpy(LOGITS).bfloat16()
    save_file({"logits": logits}, tmp_path / "a.safetensors")
    check(load(tmp_path / "cache", cache_dataset, tmp_path / "a.safetensors"), logits.float().numpy())


def test_rows_of_other_images_are_left_out_and_counted(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    notes, more = Notes(), [*NAMES, "val/c/1000.jpg", "val/d/1.jpg"]
    logits = np.concatenate([LOGITS, np.full((2, C), np.nan)])
    options = {"names": lines(tmp_path / "names", more), "observer": notes}
    check(load(tmp_path / "cache", cache_dataset, npy(tmp_path / "a.npy", logits), **options))
    assert "2 of 85 rows name no training image and are left out: val/c/1000.jpg, val/d/1.jpg" in notes.lines


def test_columns_by_class_name(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    order = np.random.default_rng(2).permutation(C + 3)
    wide = np.concatenate([LOGITS, np.full((SAMPLES, 3), np.inf)], axis=1)[:, order]
    wnids = [*(entry.wnid for entry in CLASSES), "n97", "n98", "n98"]
    readable = [*(entry.name for entry in CLASSES), "x", "y", "n00"]
    path = npy(tmp_path / "wide.npy", wide)
    for names in (wnids, readable):
        listed = lines(tmp_path / names[-2], [names[n] for n in order])
        check(load(tmp_path / f"cache-{names[-2]}", cache_dataset, path, class_names=listed))
    with pytest.raises(DataError, match=r"has 10 columns and this data 7 classes; .* --class-names FILE"):
        load(tmp_path / "none", cache_dataset, path)
    with pytest.raises(DataError, match=r"names 3 classes and .* has 10 columns"):
        load(tmp_path / "none", cache_dataset, path, class_names=lines(tmp_path / "few", wnids[:3]))
    with pytest.raises(DataError, match=r"does not name 1 of 7 classes: n06 \(class 6\)"):
        load(tmp_path / "none", cache_dataset, path, class_names=lines(tmp_path / "lacks", ["-", *wnids[:6], *wnids[7:]]))
    with pytest.raises(DataError, match="n03 twice"):
        load(tmp_path / "none", cache_dataset, path, class_names=lines(tmp_path / "twice", [*wnids[:7], "n03", "a", "b"]))
    with pytest.raises(DataError, match=r"imagenet1k names 1,000 classes"):
        load(tmp_path / "none", cache_dataset, path, class_names=Path("imagenet1k"))
    assert not (tmp_path / "none").exists()


def test_probabilities(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    p = np.exp(LOGITS - LOGITS.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    for dtype, rtol in (("float64", 1e-3), ("float32", 1e-3)):
        cache = load(tmp_path / dtype, cache_dataset, npy(tmp_path / f"{dtype}.npy", p, dtype), probabilities=True)
        check(cache, np.log(p), "float64", rtol)
    with pytest.raises(DataError, match="which are probabilities; expected logits; give --probabilities"):
        load(tmp_path / "none", cache_dataset, tmp_path / "float32.npy")
    for bad, text in (
        (p * 1.01, r"id 1 .* \(sum 1\.01\)"),
        (p - 0.2, "id 1 has a negative number"),
        (p * np.nan, "id 1 is not"),
    ):
        with pytest.raises(DataError, match=text):
            load(tmp_path / "none", cache_dataset, npy(tmp_path / "bad.npy", bad), probabilities=True)
    one_hot = np.eye(C)[np.arange(SAMPLES) % C]  # a 0 is below half of the smallest positive float32
    cache = load(tmp_path / "hot", cache_dataset, npy(tmp_path / "hot.npy", one_hot, "float64"), probabilities=True)
    stored = cache.targets(0)[0][KEPT].astype(np.float64)
    np.testing.assert_allclose(np.sort(stored, 1)[:, :-1], np.log(2.0**-149), rtol=1e-3)
    half = load(tmp_path / "half", cache_dataset, npy(tmp_path / "half.npy", one_hot, "float16"), probabilities=True)
    np.testing.assert_allclose(np.sort(half.targets(0)[0][KEPT].astype(np.float64), 1)[:, :-1], np.log(2.0**-24), rtol=1e-3)


def _bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    logits = LOGITS.astype(np.float32)
    nan, far = logits.copy(), LOGITS.copy()
    nan[[9, 50], 3] = np.nan
    far[2] = 1e300
    rows = list(logits)
    save_file({"a": torch.zeros(SAMPLES, C), "b": torch.zeros(SAMPLES, C)}, folder / "two.safetensors")
    save_file({"logits": torch.zeros(SAMPLES, C), "ids": torch.zeros(3).long()}, folder / "ids.safetensors")
    np.save(folder / "object.npy", np.array([{}], object), allow_pickle=True)
    (folder / "text.npy").write_text("1,2,3")
    (folder / "cut.npy").write_bytes((npy(folder / "whole.npy")).read_bytes()[:-9])
    (folder / "cut.safetensors").write_bytes((folder / "two.safetensors").read_bytes()[:-9])
    (folder / "text.parquet").write_text("1,2,3")
    (folder / "a.csv").write_text("1,2,3")
    ids = np.arange(SAMPLES)
    twice, beyond = np.where(ids == 7, 8, ids), np.where(ids == 7, SAMPLES, ids)
    wrong, ragged = np.roll(ids, 1), [row[: C - (n == 40)] for n, row in enumerate(rows)]
    none = [None if n == 3 else row for n, row in enumerate(rows)]

    def table(name: str, /, **columns: object) -> Path:
        return _parquet(folder / f"{name}.parquet", **columns)

    return {
        "missing": (folder / "no.npy", r"no\.npy does not exist"),
        "folder": (folder / "x" / "no.npy", "does not exist"),
        "suffix": (folder / "a.csv", "another suffix; expected .npy, .safetensors, .parquet"),
        "integers": (npy(folder / "int.npy", LOGITS, "int64"), "holds int64, 83 x 7; expected float16, float32 or float64"),
        "dimensions": (npy(folder / "3d.npy", LOGITS[None]), "holds float32, 1 x 83 x 7"),
        "objects": (folder / "object.npy", "cannot be read"),
        "text": (folder / "text.npy", "cannot be read"),
        "cut": (folder / "cut.npy", "cannot be read"),
        "cut safetensors": (folder / "cut.safetensors", "cannot be read"),
        "text parquet": (folder / "text.parquet", "cannot be read"),
        "too few": (npy(folder / "few.npy", LOGITS[:70]), "has 70 rows; expected 83, .* or 65 without the excluded ones"),
        "nan": (npy(folder / "nan.npy", nan), "the row of id 9 is not finite"),
        "far": (npy(folder / "far.npy", far, "float64"), "the row of id 2 is not finite"),
        "two tensors": (folder / "two.safetensors", r"holds a torch.float32 \(83, 7\), .*; expected a tensor named logits"),
        "ids": (folder / "ids.safetensors", r"ids are torch.int64 \(3,\)"),
        "twice": (table("twice", id=twice, logits=rows), r"has 1 rows too many, of c/8\.jpg"),
        "beyond": (table("beyond", id=beyond, logits=rows), "ids from 0 to 83; expected 0 to 82"),
        "contradiction": (table("wrong", id=wrong, path=NAMES, logits=rows), "row 0 has id 82 and the name .*, which is id 0"),
        "two names": (table("names", path=NAMES, file_name=NAMES, logits=rows), "columns path and file_name"),
        "no row": (table("lacks", path=NAMES[:-1], logits=rows[:-1]), r"no row for 1 of 65 training images: c/82\.jpg"),
        "ragged": (table("ragged", id=ids, logits=ragged), "different lengths|has 6 logits"),
        "none": (table("none", id=ids, logits=none), "rows without a number"),
        "strings": (table("strings", id=ids, logits=NAMES), "the column logits holds string; expected lists of floats"),
        "no floats": (table("ints", id=ids, a=ids), "columns id, a; expected logits"),
        "id text": (table("idtext", id=NAMES, logits=rows), "the column id holds string"),
        "empty": (table("empty", id=ids[:0], logits=pa.array([], pa.list_(pa.float32()))), "has no rows"),
    }


def test_bad_files_leave_nothing(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    for name, (path, text) in _bad_files(tmp_path).items():
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=text) as caught:
            load(tmp_path / "cache", cache_dataset, path)
        assert "\n" not in str(caught.value), name
        assert sorted(tmp_path.rglob("*")) == before, name


def test_keys_given_twice_or_of_another_length(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    save_file({"logits": torch.zeros(SAMPLES, C), "ids": torch.arange(SAMPLES)}, tmp_path / "a.safetensors")
    names = lines(tmp_path / "names", NAMES)
    with pytest.raises(DataError, match="has its own keys and --names names others"):
        load(tmp_path / "cache", cache_dataset, tmp_path / "a.safetensors", names=names)
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match=r"has 0 names and .* 83 rows"):
        load(tmp_path / "cache", cache_dataset, npy(tmp_path / "a.npy"), names=tmp_path / "empty")
    with pytest.raises(DataError, match=r"has 82 names and .* 83 rows"):
        load(tmp_path / "cache", cache_dataset, npy(tmp_path / "a.npy"), names=lines(tmp_path / "short", NAMES[1:]))
    with pytest.raises(DataError, match=r"nowhere cannot be read \(No such file"):
        load(tmp_path / "cache", cache_dataset, tmp_path / "a.npy", names=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"teacher\.estimator is mc_dropout and imported logits"):
        load(tmp_path / "cache", cache_dataset, tmp_path / "a.npy", recipe("eval", estimator="mc_dropout"))
    with pytest.raises(ConfigError, match=r"teacher\.top_k is 7 of 7 classes"):
        load(tmp_path / "cache", cache_dataset, tmp_path / "a.npy", recipe("eval", top_k=7))
    with pytest.raises(ConfigError, match="the teacher's name is"):
        load(tmp_path / "cache", cache_dataset, tmp_path / "a.npy", teacher="\x1b[31m")


def test_a_file_of_names_may_begin_with_a_byte_order_mark(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    names = tmp_path / "names.txt"
    first = [f"c/{n}.jpg" for n in KEPT]  # after folders, the mark would do no harm
    names.write_text("\n".join(first), encoding="utf-8-sig", newline="\r\n")
    check(load(tmp_path / "cache", cache_dataset, npy(tmp_path / "a.npy", LOGITS[KEPT]), names=names))


def test_a_cache_is_not_written_into_a_dataset_folder(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    before = sorted(cache_dataset.path.iterdir())
    with pytest.raises(RunError, match=r"holds a dataset \(dataset.json\); expected a new folder for the teacher cache"):
        load(cache_dataset.path, cache_dataset, npy(tmp_path / "a.npy"))
    assert sorted(cache_dataset.path.iterdir()) == before


def test_a_killed_import_resumes_to_the_same_bytes(
    tmp_path: Path, cache_dataset: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udkd.teacher.cache.import_logits.BLOCK_ROWS", 16)
    logits, write, written = npy(tmp_path / "a.npy"), ViewWriter.write, []
    load(tmp_path / "whole", cache_dataset, logits)

    def killed(self: ViewWriter, block: int, *arrays: np.ndarray) -> None:
        written.append(block)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(self, block, *arrays)

    with monkeypatch.context() as patched:
        patched.setattr(ViewWriter, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path / "cache", cache_dataset, logits)
    with pytest.raises(MismatchError, match="import into another folder"):  # the same file, read in another way
        load(tmp_path / "cache", cache_dataset, logits, names=lines(tmp_path / "names", NAMES))
    built = import_cache(tmp_path / "cache", dataset=cache_dataset, logits=logits, recipe=recipe())
    assert built.num_images == len(KEPT) - sum(n not in EXCLUDED for n in range(32))
    assert views_of(tmp_path / "cache") == views_of(tmp_path / "whole")
    assert import_cache(tmp_path / "cache", dataset=cache_dataset, logits=logits, recipe=recipe()).num_images == 0


def test_training_compares_what_is_known_and_says_what_is_not(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder
) -> None:
    cache, notes = load(tmp_path / "cache", cache_dataset, npy(tmp_path / "a.npy"), teacher="CLIP"), Notes()
    other = Recipe.from_dict({"views": {"size_px": 24}, "evaluation": {"resize_px": 24}}, "test")

    def open_with(rules: Recipe, dataset: DatasetFolder = cache_dataset) -> dict[str, object]:
        folder = {"cache": cache.folder, "teachers": (), "observer": notes}
        return open_targets(rules, dataset, "libjpeg, of some kind", CPU, **folder)[1]  # type: ignore[arg-type]

    provenance = open_with(other)
    (note,) = notes.lines
    assert note.startswith("the cache was imported from CLIP: its augment_version, ")
    assert all(name in note for name in ("views", "normalisation", "precision", "pixel_class"))
    assert json.loads(json.dumps(provenance))["cache_key"]["claimed"] == list(CLAIMED)
    with pytest.raises(
        MismatchError, match=r"the cache holds one evaluation view; give --set teacher\.views=eval to"
    ) as caught:
        open_with(Recipe.from_dict(other.to_dict() | {"teacher": {"views": 2}}, "test"))
    assert "size_px" not in str(caught.value)
    with pytest.raises(MismatchError, match="estimator"):
        open_with(recipe("eval", estimator="mc_dropout"))
    with pytest.raises(MismatchError, match="dataset_digest"):
        open_with(other, dataclasses.replace(cache_dataset, digest="0" * 64))

    loader = udkd.Loader(cache_dataset.train, batch_size=8, device="cpu", seed=0)
    augment = udkd.Augment(udkd.ViewSpec(size_px=24), cache_dataset.train, seed=0, device="cpu")
    with pytest.warns(UserWarning, match="imported from CLIP: its"):
        teacher = udkd.CachedTeacher(cache.folder, loader, augment)
    batch = next(iter(loader.epoch(0)))
    np.testing.assert_array_equal(teacher(batch, 3).logits, cache.targets(0)[0][batch.ids])
    loader.close()

    with pytest.raises(MismatchError, match="it was imported, and a build computes other targets: build into another folder"):
        run(cache.folder, cache_dataset, cache_teacher)
    with pytest.raises(MismatchError, match="import into another folder"):
        load(run(tmp_path / "built", cache_dataset, cache_teacher).folder, cache_dataset, tmp_path / "a.npy")


def test_keys_without_claims_keep_their_text() -> None:
    assert "claimed" not in KEY.to_json()
    assert CacheKey.from_json(KEY.to_json()) == KEY
    key = dataclasses.replace(KEY, claimed=CLAIMED)
    assert CacheKey.from_json(key.to_json()) == key
    assert {"views", "pixel_class", "normalisation", "precision", "device", "threads", "teacher_batch"} <= set(CLAIMED)
    assert not {"dataset_digest", "split", "num_classes", "policy", "storage", "teacher_sha256"} & set(CLAIMED)
    for claimed in (("nothing",), ("views", "device"), ("views", "views")):
        with pytest.raises(CacheError, match="cache key: claimed is"):
            CacheKey.from_json(dataclasses.replace(KEY, claimed=claimed).to_json())


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder
) -> Callable[..., Cache]:
    """Caches of a network, by their storage."""
    folder, threads = tmp_path_factory.mktemp("built"), torch.get_num_threads()
    caches = {
        name: run(folder / name, cache_dataset, cache_teacher, **options)
        for name, options in (("half", {}), ("top", {"top_k": 3}), ("single", {"logits_dtype": "float32"}))
    }
    torch.set_num_threads(threads)
    return caches.__getitem__


@pytest.mark.parametrize("storage", ["half", "single", "top"])
def test_exports_in_other_readers(
    tmp_path: Path, cache_dataset: DatasetFolder, built: Callable[..., Cache], storage: str
) -> None:
    cache = built(storage)
    dense, entropy = np.asarray(cache.view_file(0).dense_logits(KEPT)), cache.targets(0)[1][KEPT]
    assert dense.dtype == (np.float16 if storage == "half" else np.float32)
    weights = 1 - entropy.astype(np.float64) / np.log(C)
    for suffix in ("npy", "safetensors", "parquet"):
        assert export_cache(cache, tmp_path / f"a.{suffix}", dataset=cache_dataset) == len(KEPT)
    array = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert array.shape == (SAMPLES, C)
    np.testing.assert_array_equal(array[KEPT], dense)
    assert array.dtype == dense.dtype
    assert np.isnan(array[sorted(EXCLUDED)]).all()

    tensors = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tensors["logits"], dense)
    assert tensors["logits"].dtype == dense.dtype
    np.testing.assert_array_equal(tensors["ids"], KEPT)
    np.testing.assert_array_equal(tensors["labels"], KEPT % C)
    np.testing.assert_array_equal(tensors["entropy"], entropy)
    np.testing.assert_allclose(tensors["weights"], weights, atol=1e-6)

    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["id", "file_name", "label", "weight", "entropy", "logits"]
    np.testing.assert_array_equal(np.array(table["logits"].to_pylist(), np.float32), dense.astype(np.float32))
    assert table["id"].to_pylist() == KEPT.tolist()
    assert table["label"].to_pylist() == (KEPT % C).tolist()
    assert table["file_name"].to_pylist() == [f"c/{n}.jpg" for n in KEPT]
    np.testing.assert_allclose(table["weight"].to_numpy(), weights, atol=1e-6)


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "parquet"])
def test_exported_and_imported_logits_are_the_same_bits(
    tmp_path: Path, cache_dataset: DatasetFolder, built: Callable[..., Cache], suffix: str
) -> None:
    for storage, options in (("half", {}), ("single", {"logits_dtype": "float32"})):
        cache = built(storage)
        path = tmp_path / f"{storage}.{suffix}"
        export_cache(cache, path, dataset=cache_dataset if suffix == "parquet" else None)
        again = load(tmp_path / storage, cache_dataset, path, recipe("eval", **options))
        assert cache.targets(0)[0].tobytes() == again.targets(0)[0].tobytes()
        # The entropy is now that of the rounded logits.
        difference = np.abs(again.targets(0)[1] - cache.targets(0)[1])[KEPT].max() / np.log(C)
        assert difference <= (WEIGHT_BOUND if storage == "half" else 1e-6)
        assert difference > 0 or storage == "single"


def test_bad_exports_leave_nothing(
    tmp_path: Path, cache_dataset: DatasetFolder, built: Callable[..., Cache], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = built("half")
    for path, options, text in (
        ("a.csv", {}, "another suffix; expected .npy, .safetensors, .parquet"),
        ("a.npy", {"view": 1}, "lacks views 1"),
        ("a.parquet", {"dataset": dataclasses.replace(cache_dataset, digest="0" * 64)}, "dataset_digest"),
    ):
        with pytest.raises(UserError, match=text):
            export_cache(cache, tmp_path / path, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.npy").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists; expected a new file"):
        export_cache(cache, tmp_path / "a.npy")
    damaged = tmp_path_factory.mktemp("damaged")
    for name, content in views_of(cache.folder).items():
        changed = bytearray(content)
        changed[cache.view_file(0).header.data_start + 2 * C * 70] ^= 1
        (damaged / name).write_bytes(changed)
    for suffix in ("npy", "safetensors", "parquet"):
        with pytest.raises(CacheError, match="does not match its checksum"):
            export_cache(Cache.open(damaged), tmp_path / f"b.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
