"""What a voxel is to the topology of its 3 x 3 x 3 neighbourhood: 26-connected foreground, 6-connected background.

A neighbourhood is one 27-bit number, its *code*: bit ``9 z + 3 y + x`` (z, y, x in 0..2) is set where the neighbour
is foreground; the bit of the voxel itself (13) is always 0. Deleting one voxel from the foreground leaves the number
of objects, of cavities and of tunnels as it was exactly if the voxel is *simple*: its 26 neighbours hold one
26-connected piece of foreground, and its 18 nearest neighbours one 6-connected piece of background that touches it
(Bertrand & Malandain 1994, doi:10.1016/0167-8655(94)90046-9). The pieces are counted by flood filling all 27 bits at
once. A neighbourhood without foreground above and below is a pixel of an image: then the same two numbers mean
8-connected foreground and 4-connected background.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint32]
Kinds = npt.NDArray[np.uint8]

# The kinds of voxel that thinning tells apart.
FIXED = 0  # deleting it would open a cavity (no background face) or remove a whole object (no neighbour)
SIMPLE = 1  # deleting it changes no topology
TIP = 2  # simple, with one neighbour only: the end of a line
CURVE = 3  # not simple: it holds together two or more pieces of foreground
SURFACE = 4  # not simple: it separates two or more pieces of background

CENTRE = 13
OFFSETS = tuple((z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1))  # of bit 0, 1, ..., 26
TABLE_SIZE = 1 << 26


def _mask(bits: tuple[int, ...]) -> int:
    return sum(1 << bit for bit in bits)


# Bits that can move one step up an axis without leaving the neighbourhood, and those that can move down.
_UP = tuple(_mask(tuple(b for b, o in enumerate(OFFSETS) if o[axis] < 1)) for axis in range(3))
_DOWN = tuple(_mask(tuple(b for b, o in enumerate(OFFSETS) if o[axis] > -1)) for axis in range(3))
_STEP = (9, 3, 1)
Z_UP, Y_UP, X_UP = _UP
Z_DOWN, Y_DOWN, X_DOWN = _DOWN
FACES = _mask(tuple(b for b, o in enumerate(OFFSETS) if sum(map(abs, o)) == 1))
NEAREST_18 = _mask(tuple(b for b, o in enumerate(OFFSETS) if 1 <= sum(map(abs, o)) <= 2))


def pack(codes: Any) -> Any:
    """Drop the voxel's own bit: a code becomes a position in a table of ``TABLE_SIZE`` entries."""
    return (codes & 0x1FFF) | ((codes >> 1) & 0x3FFE000)


def classify(codes: Codes) -> Kinds:
    """Return the kind of each neighbourhood code (uint32, bit 13 clear), as uint8."""
    codes = np.asarray(codes, np.uint32)
    background = ~codes & np.uint32(NEAREST_18)
    open_faces = background & np.uint32(FACES)
    objects = _flood(_lowest_bit(codes), codes, _dilate_26)
    holes = _flood(_lowest_bit(open_faces), background, _dilate_6)
    kinds = np.full(codes.shape, FIXED, np.uint8)
    kinds[(open_faces & ~holes) != 0] = SURFACE
    kinds[(open_faces != 0) & ((open_faces & ~holes) == 0)] = SIMPLE
    kinds[(kinds == SIMPLE) & (codes == _lowest_bit(codes))] = TIP
    kinds[objects != codes] = CURVE
    kinds[codes == 0] = FIXED
    return kinds


def _lowest_bit(words: Codes) -> Codes:
    return words & (~words + np.uint32(1))


def _flood(seed: Codes, inside: Codes, dilate: Any) -> Codes:
    """Grow each seed within its own mask until nothing changes."""
    while True:
        grown = dilate(seed) & inside
        if np.array_equal(grown, seed):
            return seed
        seed = grown


def _dilate_26(words: Codes) -> Codes:
    """Dilate by the whole 3 x 3 x 3 cube: axis by axis, each step on the result of the one before."""
    for step, up, down in zip(_STEP, _UP, _DOWN, strict=True):
        words = words | ((words & np.uint32(up)) << np.uint32(step)) | ((words & np.uint32(down)) >> np.uint32(step))
    return words


def _dilate_6(words: Codes) -> Codes:
    """Dilate by the six face neighbours."""
    grown = words
    for step, up, down in zip(_STEP, _UP, _DOWN, strict=True):
        grown = grown | ((words & np.uint32(up)) << np.uint32(step)) | ((words & np.uint32(down)) >> np.uint32(step))
    return grown
