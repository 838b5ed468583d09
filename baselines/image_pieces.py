"""A split's predictions, image by image, so that an interrupted prediction goes on where it stopped.

::

    OUT/.partial-<digest of everything that decides the result>/
        000012/predictions.parquet, prediction.json      one finished image; complete once the second file is there
    OUT/predictions.parquet, prediction.json              all of them, once all are there
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_bench_eval.rows import (
    PREDICTION_INFO_FILE,
    PREDICTIONS_FILE,
    read_prediction_info,
    row_id,
    write_predictions,
)
from em_bench_eval.schema import Prediction


class Pieces:
    """The finished images of one prediction; safe for several threads, each with its own images."""

    def __init__(self, out: str | os.PathLike[str], info: Mapping[str, object]) -> None:
        self.out, self.info = Path(out), dict(info)
        self.folder = self.out / f".partial-{_digest(json.dumps(self.info, sort_keys=True).encode())[:16]}"

    def has(self, index: int, row: Mapping[str, Any]) -> bool:
        """True if the image of row ``index`` is finished, and still the same image."""
        try:
            return read_prediction_info(self._piece(index)) == {**_about(row), "images": 1}
        except ValueError:  # InputError: not there
            return False

    def write(self, index: int, row: Mapping[str, Any], prediction: Prediction) -> None:
        """Keep a finished image; it is there completely or not at all."""
        write_predictions(self._piece(index), [prediction], _about(row))

    def assemble(self, count: int) -> int:
        """Write what ``rows.write_predictions`` would have written of all images, in their order; return ``count``."""
        import pyarrow.parquet as pq

        if not count:
            return write_predictions(self.out, [], self.info)
        schema = pq.read_schema(self._piece(0) / PREDICTIONS_FILE)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=self.out) as partial:
            with pq.ParquetWriter(Path(partial) / PREDICTIONS_FILE, schema, compression="zstd") as writer:
                for index in range(count):
                    writer.write_table(pq.read_table(self._piece(index) / PREDICTIONS_FILE, schema=schema))
            text = json.dumps({**self.info, "images": count}, indent=2) + "\n"
            (Path(partial) / PREDICTION_INFO_FILE).write_text(text)
            for name in (PREDICTIONS_FILE, PREDICTION_INFO_FILE):
                os.replace(Path(partial) / name, self.out / name)
        self.clear()
        return count

    def clear(self) -> None:
        """Delete the pieces of this and of abandoned predictions in the same folder."""
        for folder in self.out.glob(".partial-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _piece(self, index: int) -> Path:
        return self.folder / f"{index:06d}"


def _about(row: Mapping[str, Any]) -> dict[str, object]:
    image = row["image"]
    data = image["bytes"] if isinstance(image, Mapping) and image.get("bytes") is not None else repr(image).encode()
    return {"record_id": row_id(row), "image_sha256": _digest(data)}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
