"""Dataset rows at the aligned pixel size, kept in memory as far as they fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from baselines.model import DEFAULT_CONFIG, BaselineConfig
from baselines.preprocess import AlignedImage, align_row
from em_bench_eval.rows import decode_row


class AlignedRows(Sized):
    """Rows as a network with ``config`` sees them, aligned when first needed; the least recently used go first.

    One pixel at 8 nm takes 6 bytes, so 2 GiB hold 1300 images of 512 x 512. Each data-loading worker has its own cache.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], config: BaselineConfig = DEFAULT_CONFIG, cache_bytes: int = 2 << 30
    ) -> None:
        self.rows = rows
        self.config = config
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, AlignedImage] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> AlignedImage:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        aligned = align_row(decode_row(self.rows[index]), self.config.pixel_size_nm, self.config.normalisation)
        self._cache[index] = aligned
        self._held += aligned.nbytes
        while self._held > self.cache_bytes and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return aligned
