"""The reference labels of a split, row by row, straight from the Parquet files.

Not through ``datasets.load_dataset``: its cache knows a dataset by its name and the fingerprint on its card, and could
answer with the rows of a public copy that has no labels. Pictures are not read.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.items import data_files
from em_bench_eval.rows import ID_COLUMNS, LabelledImage, decode_png, decode_row, row_id

NOT_READ = ("image", "citation", "licence")
GROUPS_KEPT = 8  # row groups whose encoded rows are kept: neighbouring rows are asked for one after another


def local_files(dataset: str | os.PathLike[str], config: str, split: str) -> list[str]:
    """Return the paths of a split's Parquet files; those of a Hub dataset are downloaded to the Hub's own cache.

    Raises ``InputError`` if there is no such dataset, configuration or split.
    """
    return [_local(file) for file in data_files(dataset, config, split)]


def _local(file: str) -> str:
    if "://" not in file:
        return file
    from huggingface_hub import HfFileSystem, hf_hub_download

    found = HfFileSystem().resolve_path(file)
    return str(hf_hub_download(found.repo_id, found.path_in_repo, repo_type=found.repo_type, revision=found.revision))


class Reference:
    """Rows of a split by record id."""

    def __init__(self, files: list[str]):
        import pyarrow.parquet as pq

        self._files = [pq.ParquetFile(Path(file), pre_buffer=False) for file in files]
        self._place_of: dict[str, tuple[int, int, int]] = {}  # file, row group, row
        for number, file in enumerate(self._files):
            names = [name for name in ID_COLUMNS if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                for row, ids in enumerate(file.read_row_group(group, columns=names).to_pylist()):
                    self._place_of[row_id(ids)] = (number, group, row)
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def labelled(self, record_id: str) -> LabelledImage:
        """Decode the labels of a row; its ``image`` is only a stand-in. Raises ``InputError`` if it has none."""
        number, group, row = self._place_of[record_id]
        cells = self._group(number, group).slice(row, 1).to_pylist()[0]
        labels = cells["instances"]
        if labels is None or not labels.get("bytes"):
            raise InputError(
                f"the reference has no labels for {record_id}",
                expected="the dataset with the labels of this split",
                remedy="name the private dataset; the public one may lack the labels of its test split",
            )
        instances = decode_png(labels)
        return decode_row({**cells, "instances": instances, "image": instances})

    def _group(self, number: int, group: int) -> Any:
        key = (number, group)
        if key not in self._kept:
            file = self._files[number]
            columns = [name for name in file.schema_arrow.names if name not in NOT_READ]
            self._kept[key] = file.read_row_group(group, columns=columns)
            if len(self._kept) > GROUPS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
