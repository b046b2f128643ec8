"""The dataset folder: what `udkd-prep` writes once and everything else reads.

FOLDER/dataset.json                        written last; nothing is valid without it
FOLDER/<split>/manifest.parquet            one row per sample, in id order (ids are 0 … N-1)
FOLDER/<split>/samples-%05d.tar + .idx     WebDataset shards (`%09d.jpg`, `%09d.cls`) with DALI's index: the truth
FOLDER/<split>/canvas.npy + .json + .crc32.npy    the resident format, derived: uint8 [N, S, S, 3]
FOLDER/<split>/samples.beton + beton.json          FFCV's own format, derived
FOLDER/<split>/samples-%05d.tfrecord + .idx, tfrecord.json    TFRecord with the index that DALI's tfrecord2idx writes, derived
"""

from udkd.formats.dataset.canvas import CanvasWriter, canvas_bytes, decode_canvas, lay, stored_image
from udkd.formats.dataset.derived import DERIVED, FileSum, damage, derived_files, discard, is_derived, seal, sealed, unfinished
from udkd.formats.dataset.folder import DatasetFolder, Split
from udkd.formats.dataset.header import ClassName, Encoder, Fit, Header, SplitHeader, read_header
from udkd.formats.dataset.manifest import Columns, ColumnsBuilder, Row, columns_of, read_manifest, write_manifest
from udkd.formats.dataset.shard import ShardPacker, ShardWriter, read_sample, shard_name

__all__ = [
    "DERIVED",
    "CanvasWriter",
    "ClassName",
    "Columns",
    "ColumnsBuilder",
    "DatasetFolder",
    "Encoder",
    "FileSum",
    "Fit",
    "Header",
    "Row",
    "ShardPacker",
    "ShardWriter",
    "Split",
    "SplitHeader",
    "canvas_bytes",
    "columns_of",
    "damage",
    "decode_canvas",
    "derived_files",
    "discard",
    "is_derived",
    "lay",
    "read_header",
    "read_manifest",
    "read_sample",
    "seal",
    "sealed",
    "shard_name",
    "stored_image",
    "unfinished",
    "write_manifest",
]
