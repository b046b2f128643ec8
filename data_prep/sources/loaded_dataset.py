"""Datasets of Hugging Face's `datasets`, loaded in Python, as a source."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from udkd.data.image_files import BadImage
from udkd.data_prep.sources.fields import DETECT_FIELDS, NO_LABEL, Fields, LabelAgreement
from udkd.data_prep.sources.named_split import LabelFolders, single_split_in
from udkd.data_prep.sources.source import TEST_IMAGES, Entry, Listing, SourceSplit
from udkd.data_prep.sources.tar_members import read_at
from udkd.utils.crc32c import crc32c
from udkd.utils.errors import ConfigError
from udkd.utils.progress import SILENT, Observer

_GOOD, _BAD = "row", "bad"


@dataclass(frozen=True)
class LoadedDataset:
    """Datasets by split (None: without splits). path: a file for the bytes of the images, which the user of this class removes.

    Stored bytes are kept: rows are read as arrow, so that nothing is decoded and transforms do not apply. fields: columns
    chosen by the user.
    """

    path: Path
    datasets: Mapping[SourceSplit | None, Any] = field(default_factory=dict)
    fields: Fields = DETECT_FIELDS
    observer: Observer = SILENT

    def __getstate__(self) -> dict[str, object]:
        """What the workers need to read entries."""
        return {"path": self.path}

    def class_names(self) -> None:
        """No names by label: classes are called by the names of the ClassLabel, or by number."""

    def list(self) -> Listing:
        """All rows, in the order of the datasets. Raises DataError for columns: see Parquet.list."""
        from udkd.data_prep.sources.parquet_rows import (
            BATCH_ROWS,
            choose_columns,
            find_split_column,
            image_bytes,
            iter_rows,
            unread_splits,
        )

        listing, agreement = Listing(sequential=True), LabelAgreement()
        warnings: list[str] = []
        with self.path.open("wb") as images:
            for split, dataset in self.datasets.items():
                where = Path(f"the {split} dataset" if split else "the dataset")
                folders, schema = LabelFolders(where), dataset.features.arrow_schema
                columns = choose_columns(where, schema, self.fields, may_lack_labels=split == "test")
                if split is None and (split_column := find_split_column(schema)):
                    warnings.append(unread_splits(where, split_column))
                self.observer.start(f"read {split or 'dataset'}", len(dataset), "items")
                tables = dataset.select_columns(columns.names).with_format("arrow").iter(batch_size=BATCH_ROWS)
                batches = (batch for table in tables for batch in table.combine_chunks().to_batches())
                for row in iter_rows(batches, columns, schema, where, "", agreement):
                    self.observer.advance(1)
                    if row.label is None:
                        listing.skipped.append(row.name, NO_LABEL if columns.labels else TEST_IMAGES)
                        continue
                    try:
                        key, data = _GOOD, image_bytes(row.image.as_py(), where.parent)
                    except BadImage as error:
                        key, data = _BAD, str(error).encode()
                    checksum = crc32c(data)
                    # As in TorchDataset: the checksum in the name tells rows of other images apart.
                    name = f"{row.index:0{len(str(len(dataset) - 1))}d}-{checksum:08x}"
                    class_name = folders.of_label(row.label, listing)
                    listing.entries.append(Entry(split, class_name, name, key, images.tell(), len(data), checksum))
                    images.write(data)
                self.observer.finish()
        agreement.finish("the dataset")
        return replace(listing, warnings=tuple(warnings))

    def read(self, entry: Entry) -> bytes:
        """The stored bytes of an image. Raises BadImage for a row that names a missing file."""
        data = read_at(self.path, entry.offset, entry.size)
        if entry.key == _BAD:
            raise BadImage(data.decode())
        return data


def loaded_datasets(source: object) -> "Mapping[SourceSplit | None, Any] | None":
    """The datasets by split of a Dataset (split None) or a DatasetDict; None if `source` is neither.

    Raises ConfigError for streamed ones, and for a DatasetDict with other splits than train, validation and test.
    """
    module: Any = sys.modules.get("datasets")  # loaded if the source is one of its objects
    if module is None or not hasattr(module, "IterableDatasetDict"):
        return None
    if isinstance(source, module.IterableDataset | module.IterableDatasetDict):
        raise ConfigError(
            f"the dataset is streamed ({type(source).__name__}); expected one with all rows; load it without streaming=True"
        )
    if isinstance(source, module.Dataset):
        return {None: source}
    if not isinstance(source, module.DatasetDict):
        return None
    datasets: dict[SourceSplit | None, Any] = {}
    for name, dataset in source.items():
        split = single_split_in(str(name))
        if split is None or split in datasets:
            raise ConfigError(
                f"the DatasetDict has the splits {', '.join(map(str, source))}; expected train, validation and test; leave out "
                f"or rename {name!r}"
            )
        datasets[split] = dataset
    return datasets
