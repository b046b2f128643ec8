"""The dataset folder and what reads it: stored bytes in, uint8 canvases on the device out. It may import udkd.utils.

`udkd-prep` writes the folder once and everything else reads it:

FOLDER/dataset.json                        written last; nothing is valid without it
FOLDER/<split>/manifest.parquet            one row per sample, in id order (ids are 0 … N-1)
FOLDER/<split>/samples-%05d.tar + .idx     WebDataset shards (`%09d.jpg`, `%09d.cls`) with DALI's index: the original
FOLDER/<split>/canvas.npy + .json + .crc32.npy    the resident format, derived: uint8 [N, S, S, 3]
FOLDER/<split>/samples.beton + beton.json          FFCV's own format, derived
FOLDER/<split>/samples-%05d.tfrecord + .idx, tfrecord.json    TFRecord with the index that DALI's tfrecord2idx writes, derived
"""
