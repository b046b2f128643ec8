"""The written formats, read by the programs they are made for and compared with the bytes of the shards."""

import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.data_prep.helpers import converted, encoded, photo, picture, small_set, write_tree
from tests.timeouts import scaled
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.formats import derive_formats
from udkd.data_prep.formats.tfrecord import example
from udkd.data_prep.verify import verify
from udkd.utils.progress import Silent

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    """Grey, fixed and excluded images; several shards, one of them without usable images."""
    root = tmp_path_factory.mktemp("formats")
    files = small_set(train=7, val=3) | {
        "train/n01440764/grey.JPEG": encoded(picture("g", mode="L")),
        "train/n01440764/png.JPEG": encoded(picture("p"), "PNG"),
        "train/n01443537/n01443537_1.JPEG": b"",
        "train/n01443537/long.JPEG": photo("long", 300, 400, quality=100),  # a length of three varint bytes
        **{f"train/n01440764/a{n}.JPEG": b"x" for n in range(4)},
    }
    return converted(
        write_tree(root / "t", files), root / "d", shard_samples=4, on_bad="skip", side=512, formats=("dali",), workers=2
    )


def test_tfrecord_indices_match_the_script_of_dali(folder: DatasetFolder, tmp_path: Path) -> None:
    paths = sorted(folder.path.rglob("*.tfrecord"))
    assert len(paths) == len(list(folder.path.rglob("samples-*.tar"))) == 7  # train 5 of 6, val 2
    script = BIN / "tfrecord2idx"
    if not script.exists():
        pytest.skip("DALI is not installed")
    for path in paths:
        subprocess.run([sys.executable, script, path, tmp_path / "idx"], check=True, timeout=scaled(60))
        assert (tmp_path / "idx").read_bytes() == path.with_name(path.name + ".idx").read_bytes()


def test_tfrecord_checksums_match_tensorboard(folder: DatasetFolder) -> None:
    stub = pytest.importorskip("tensorboard.compat.tensorflow_stub.pywrap_tensorflow")
    split = folder.split("train")
    records = []
    for path in sorted(split.path.glob("*.tfrecord")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            head, record, end = data[:12], data[12 : 12 + length], data[12 + length : 16 + length]
            assert stub.masked_crc32c(head[:8]) == struct.unpack("<I", head[8:])[0]
            assert stub.masked_crc32c(record) == struct.unpack("<I", end)[0]
            records.append(record)
            data = data[16 + length :]
    assert len(records) == len(split.ids)


def test_records_are_tf_train_examples() -> None:
    """Parsed by Google's protobuf from the definition of the message (tensorflow/core/example)."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        found = file.message_type.add(name=name)
        for field, number, label, kind in fields:
            numeric = {"bytes": 12, "int64": 3, "string": 9}.get(kind)
            added = found.field.add(name=field, number=number, label=label, type=numeric or 11)
            if numeric is None:
                added.type_name = f".t.{kind}"

    message("BytesList", ("value", 1, 3, "bytes"))
    message("Int64List", ("value", 1, 3, "int64"))
    message("Feature", ("bytes_list", 1, 1, "BytesList"), ("int64_list", 3, 1, "Int64List"))
    message("Entry", ("key", 1, 1, "string"), ("value", 2, 1, "Feature"))
    message("Features", ("feature", 1, 3, "Entry"))
    message("Example", ("features", 1, 1, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))
    for label, sample_id, jpeg in ((0, 0, b""), (127, 128, b"x" * 127), (999, 1_300_000, bytes(70_000))):
        found = kind.FromString(example(jpeg, label, sample_id))
        values = {entry.key: entry.value for entry in found.features.feature}
        assert values["image/encoded"].bytes_list.value == [jpeg]
        assert values["image/class/label"].int64_list.value == [label]
        assert values["image/id"].int64_list.value == [sample_id]
        assert len(values) == 3
        assert found.SerializeToString() == example(jpeg, label, sample_id)


def run_pipeline(pipeline: object, count: int) -> list[tuple[np.ndarray, ...]]:
    pipeline.build()  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [tuple(np.array(out.at(0)) for out in pipeline.run()) for _ in range(count)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("split_name", ["train", "val"])
def test_dali_reads_the_tfrecords(folder: DatasetFolder, split_name: str) -> None:
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def, tfrecord

    split = folder.split(split_name)
    paths = [str(path) for path in sorted(split.path.glob("*.tfrecord"))]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> tuple[object, ...]:
        found = fn.readers.tfrecord(
            path=paths,
            index_path=[f"{path}.idx" for path in paths],
            features={
                "image/encoded": tfrecord.FixedLenFeature((), tfrecord.string, ""),
                "image/class/label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
                "image/id": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
            },
        )
        jpeg = found["image/encoded"]
        pixels = fn.decoders.image(jpeg, device="cpu", adjust_orientation=False)
        return jpeg, pixels, found["image/class/label"], found["image/id"]

    for n, (jpeg, pixels, label, sample_id) in zip(split.ids, run_pipeline(pipeline(), len(split.ids)), strict=True):
        assert (int(sample_id.item()), int(label.item())) == (n, split.labels[n])
        assert jpeg.tobytes() == split.read(n)
        assert np.array_equal(pixels, split.pixels(n)[: split.sizes[n, 2], : split.sizes[n, 3]])


def test_shard_indices_are_those_of_wds2idx(folder: DatasetFolder, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    for path in sorted(folder.path.rglob("*.tar")):
        with wds2idx.IndexCreator(str(path), str(tmp_path / "idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "idx").read_bytes() == path.with_suffix(".idx").read_bytes()


def test_dali_reads_the_shards(folder: DatasetFolder) -> None:
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    split = folder.split("train")
    paths = [str(path) for path in sorted(split.path.glob("*.tar"))]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> tuple[object, ...]:
        indices = [path.replace(".tar", ".idx") for path in paths]
        return tuple(fn.readers.webdataset(paths=paths, index_paths=indices, ext=["jpg", "cls"]))

    for n, (jpeg, label) in zip(split.ids, run_pipeline(pipeline(), len(split.ids)), strict=True):
        assert int(label.tobytes()) == split.labels[n]
        assert jpeg.tobytes() == split.read(n)


def test_verify_finds_problems_of_derived_files(folder: DatasetFolder) -> None:
    """Damaged, swapped between splits, truncated, missing and orphaned files."""
    assert verify(folder.path, Silent()) == []
    train, val = folder.split("train").path, folder.split("val").path
    path = train / "samples-00001.tfrecord"
    intact = path.read_bytes()
    for at in (0, 9, 100, len(intact) - 1):
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 16]) + intact[at + 1 :])
        assert verify(folder.path, Silent()) == [
            f"{path} does not match its checksum in tfrecord.json; expected it to; "
            "write it again with udkd data derive --formats dali"
        ]
    path.unlink()
    assert "has 0 bytes" in verify(folder.path, Silent())[0]
    path.write_bytes(intact)
    for name in ("tfrecord.json", "samples-00001.tfrecord", "samples-00001.tfrecord.idx"):
        swap(train / name, val / name)
    assert any("split is 'val'; expected 'train'" in line for line in verify(folder.path, Silent()))
    for name in ("tfrecord.json", "samples-00001.tfrecord", "samples-00001.tfrecord.idx"):
        swap(train / name, val / name)
    (train / "tfrecord.json").unlink()
    assert "samples-00001.tfrecord has no tfrecord.json" in verify(folder.path, Silent())[0]
    assert folder.formats == ("shards",)
    derive_formats(folder, ["dali"], workers=1, observer=Silent())
    assert verify(folder.path, Silent()) == []


def swap(first: Path, second: Path) -> None:
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
