"""Perceptual hashes: images that look alike get hashes that differ in few bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from em_bench_eval.align import resize_image

SIDE = 64  # the image is averaged to this many pixels a side
KEPT = 16  # lowest frequencies kept per axis: 256 bits
MAX_DIFFERENT_BITS = 15  # of 256; unrelated images differ in about half
BANDS = MAX_DIFFERENT_BITS + 1


def perceptual_hash(image: npt.NDArray[np.uint8]) -> int | None:
    """Hash a ``(y, x)`` image to 256 bits: signs of its low cosine frequencies. ``None`` for a blank image."""
    small = resize_image(image, (SIDE, SIDE))
    if float(small.std()) < 1.0:
        return None
    low = dctn(small, norm="ortho")[:KEPT, :KEPT].ravel()
    low[0] = 0.0  # brightness says nothing
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def near_pairs(hashes: Sequence[int]) -> list[tuple[int, int]]:
    """Find all pairs (i < j) that differ in at most ``MAX_DIFFERENT_BITS`` bits.

    Two such hashes agree in at least one of ``BANDS`` bands (pigeonhole), so only hashes that share a band are
    compared: no quadratic search.
    """
    width = 256 // BANDS
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, value in enumerate(hashes):
        for band in range(BANDS):
            buckets[band, (value >> (band * width)) & ((1 << width) - 1)].append(index)
    candidates = {
        (members[i], members[j])
        for members in buckets.values()
        for i in range(len(members))
        for j in range(i + 1, len(members))
    }
    return sorted(pair for pair in candidates if (hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= MAX_DIFFERENT_BITS)
