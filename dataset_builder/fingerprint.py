"""Perceptual hashes: images that look alike get hashes that differ in few bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from lpa.bits import kernel

SIDE = 64  # the image is averaged to this many pixels a side
KEPT = 16  # lowest frequencies kept per axis: 256 bits
MAX_DIFFERENT_BITS = 15  # of 256; unrelated images differ in about half
BANDS = MAX_DIFFERENT_BITS + 1
WORDS = 4  # of 64 bits, in a hash
PAIRS_AT_A_TIME = 2**20  # compared in one numpy step; bounds memory


def perceptual_hash(image: npt.NDArray[np.uint8]) -> int | None:
    """Hash a ``(y, x)`` image to 256 bits: signs of its low cosine frequencies. ``None`` for a blank image."""
    small = np.empty((SIDE, SIDE), np.uint64)
    _area_sums(np.ascontiguousarray(image), np.empty(image.shape[1], np.uint32), small)
    means = small.astype(np.float64) / image.size
    if float(means.std()) < 1.0:
        return None
    cosines = np.cos(np.pi / SIDE * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5))
    low = (cosines @ means @ cosines.T).ravel()
    low[0] = 0.0  # brightness says nothing
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


@kernel
def _area_sums(image: npt.NDArray[np.uint8], band: npt.NDArray[np.uint32], sums: npt.NDArray[np.uint64]) -> None:
    """Sum an image over ``SIDE`` by ``SIDE`` equal areas, exact: lengths in units of 1 / SIDE of a pixel."""
    height, width = image.shape
    for i in range(SIDE):
        band[:] = 0
        for y in range(height * i // SIDE, (height * (i + 1) + SIDE - 1) // SIDE):
            share = np.uint32(min(SIDE * (y + 1), height * (i + 1)) - max(SIDE * y, height * i))
            for x in range(width):
                band[x] += share * np.uint32(image[y, x])
        for j in range(SIDE):
            total = np.uint64(0)
            for x in range(width * j // SIDE, (width * (j + 1) + SIDE - 1) // SIDE):
                part = np.uint64(min(SIDE * (x + 1), width * (j + 1)) - max(SIDE * x, width * j))
                total += part * np.uint64(band[x])
            sums[i, j] = total


def near_pairs(hashes: Sequence[int], groups: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Find all pairs (i < j) that differ in at most ``MAX_DIFFERENT_BITS`` bits, and in their group if there are any.

    Two such hashes agree in at least one of ``BANDS`` bands (pigeonhole), so only hashes that share a band are
    compared: no quadratic search.
    """
    packed = b"".join(value.to_bytes(8 * WORDS, "little") for value in hashes)
    words = np.frombuffer(packed, "<u8").reshape(len(hashes), WORDS)
    bands = np.frombuffer(packed, "<u2").reshape(len(hashes), BANDS)
    group = None if groups is None else np.asarray(groups)
    found = [np.zeros(0, np.int64)]
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        for first, second in _sharing(bands[order, band]):
            one, other = order[first], order[second]
            if group is not None:
                differs = group[one] != group[other]
                one, other = one[differs], other[differs]
            near = _different_bits(words[one] ^ words[other]) <= MAX_DIFFERENT_BITS
            low, high = np.minimum(one[near], other[near]), np.maximum(one[near], other[near])
            found.append(low * len(hashes) + high)
    pairs = np.unique(np.concatenate(found))
    return [(int(pair) // len(hashes), int(pair) % len(hashes)) for pair in pairs]


def _sharing(keys: npt.NDArray[np.uint16]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield all pairs of places with the same key in sorted ``keys``, about ``PAIRS_AT_A_TIME`` at a time."""
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] + 1))
    sizes = np.diff(starts, append=len(keys))
    # each place pairs with all behind it in its run
    behind = np.repeat(starts + sizes, sizes) - np.arange(len(keys)) - 1
    until = np.cumsum(behind)
    cuts = np.searchsorted(until, np.arange(PAIRS_AT_A_TIME, int(until[-1]) if len(until) else 0, PAIRS_AT_A_TIME))
    for start, stop in zip([0, *cuts + 1], [*cuts + 1, len(keys)], strict=True):
        count = behind[start:stop]
        first = np.repeat(np.arange(start, stop), count)
        step = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
        if len(first):
            yield first, first + 1 + step


def _different_bits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Count the set bits of each row of ``(n, WORDS)`` words."""
    pairs, quads, bytes_, sum_ = (
        np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
    )
    counts = words - ((words >> np.uint64(1)) & pairs)
    counts = (counts & quads) + ((counts >> np.uint64(2)) & quads)
    counts = (counts + (counts >> np.uint64(4))) & bytes_
    return np.asarray(((counts * sum_) >> np.uint64(56)).astype(np.int64).sum(axis=1))
