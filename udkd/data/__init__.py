"""Reads dataset folders: stored bytes in, uint8 canvases on the device out. It may import udkd.utils.

`udkd data convert` writes the folder once; every other part of udkd only reads it:

FOLDER/dataset.json                        written last; without it the folder is invalid
FOLDER/<split>/manifest.parquet            one row per sample, in id order (ids are 0 … N-1)
FOLDER/<split>/samples-%05d.tar + .idx     WebDataset shards (`%09d.jpg`, `%09d.cls`) with DALI's index

Formats derived from the shards:

FOLDER/<split>/canvas.npy + .json + .crc32.npy    resident: uint8 [N, S, S, 3]
FOLDER/<split>/samples.beton + beton.json          FFCV's own format
FOLDER/<split>/samples-%05d.tfrecord + .idx, tfrecord.json    TFRecord with the index that DALI's tfrecord2idx writes
"""
