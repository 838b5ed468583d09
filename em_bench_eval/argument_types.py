"""Types of command-line arguments, for ``add_argument(type=...)``; argparse adds the option's name to what they say."""

from __future__ import annotations

from argparse import ArgumentTypeError


def positive_float(text: str) -> float:
    """Read a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text} is not a positive number")
    return value


def positive_int(text: str) -> int:
    """Read a whole number above 0."""
    value = int(text)
    if value <= 0:
        raise ArgumentTypeError(f"{text} is not a positive number")
    return value


def whole_number(text: str) -> int:
    """Read a whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise ArgumentTypeError(f"{text} is below 0")
    return value


def share(text: str) -> float:
    """Read a number of 0 or more and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def voxel_size_nm(text: str) -> tuple[float, ...]:
    """Read the edges of a voxel in nm, ``"Z,Y,X"``."""
    try:
        sizes = tuple(map(float, text.split(",")))
    except ValueError:
        sizes = ()
    if len(sizes) != 3 or not all(0 < size < float("inf") for size in sizes):
        raise ArgumentTypeError(f"{text} is not three positive numbers Z,Y,X in nm")
    return sizes
