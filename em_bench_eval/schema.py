"""Core types: the vocabulary that every folder shares.

Arrays are ordered ``(z, y, x)`` for volumes and ``(y, x)`` for images; physical sizes are nanometres and floats.
Nothing here imports anything but numpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Fold = Literal["train", "validation", "test"]
Domain = Literal["in", "out"]
Axis = Literal["z", "y", "x"]
AnnotationType = Literal["manual", "manual+lpa", "refined", "refined+lpa", "model", "model+lpa", "synthetic"]

FOLDS: tuple[Fold, ...] = ("train", "validation", "test")
DOMAINS: tuple[Domain, ...] = ("in", "out")
EXTRA_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # of a structure outside the five: it names a folder
TARGET_PIXEL_SIZE_NM = 8.0  # Scale Alignment (paper, section 4.1)


class Organelle(str, Enum):
    """The five organelles of the benchmark; ``label_id`` is the value in a semantic map."""

    MITO = "mito"
    NUCLEUS = "nucleus"
    ER = "er"
    ENDO = "endo"
    GOLGI = "golgi"

    @property
    def label_id(self) -> int:
        """Value of this organelle in a semantic label map, 1 to 5 (0 is background)."""
        return list(Organelle).index(self) + 1

    @property
    def is_network(self) -> bool:
        """True for organelles that form one connected network per cell and are never split (er, golgi)."""
        return self in (Organelle.ER, Organelle.GOLGI)

    def __str__(self) -> str:
        return self.value


ORGANELLES: tuple[str, ...] = tuple(organelle.value for organelle in Organelle)


@dataclass(frozen=True)
class VoxelSize:
    """Edge lengths of a voxel in nm, ``(z, y, x)``; never integers, because 3.24 nm is a common size."""

    z: float
    y: float
    x: float

    def __post_init__(self) -> None:
        for axis in ("z", "y", "x"):
            value = float(getattr(self, axis))
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"voxel size along {axis} must be a positive number of nm, found {value}")
            object.__setattr__(self, axis, value)

    def __iter__(self) -> Iterator[float]:
        return iter((self.z, self.y, self.x))

    @property
    def is_isotropic(self) -> bool:
        """True if the edges differ by at most 10 %."""
        return max(self) / min(self) <= 1.1


class Array3D(Protocol):
    """A lazily read ``(z, y, x)`` array: numpy, zarr, tensorstore and image stacks all qualify."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size as ``(z, y, x)``."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Read a slice ``[z]`` or a box ``[z0:z1, y0:y1, x0:x1]``."""
        ...


@dataclass(frozen=True)
class SourceInfo:
    """What is known about a source before any of its files is read.

    ``annotated`` says which of the five organelles are labelled and how; all others are unknown there: they are
    excluded from losses and metrics and never counted as background.
    """

    name: str
    title: str
    citation: str  # BibTeX
    licence: str  # SPDX identifier, or "none stated"
    url: str  # where to download it; empty for a source that needs no download
    redistributable: bool
    modality: str  # "FIB-SEM", "SBF-SEM", "ssTEM", ...
    annotated: Mapping[Organelle, AnnotationType]
    voxel_size: VoxelSize | None = None  # None: differs by volume
    notes: str = ""


@dataclass(frozen=True, order=True)
class Span:
    """The slices of a volume along z of its frame."""

    start_nm: float  # lower face of the first slice
    slice_nm: float
    slices: int


@dataclass(frozen=True)
class PublishedBox:
    """Where in a frame a volume lies that is validation or test as a whole, because its source publishes it so."""

    fold: Fold
    low_nm: tuple[float, float, float]  # (z, y, x)
    high_nm: tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """Coordinates that volumes share, such as those of one imaged data set that they are crops of.

    Such volumes may touch, overlap or contain each other, so their folds are cut at common z positions. A name means
    the same coordinates in whatever volume it is given.
    """

    name: str
    spans: tuple[Span, ...]  # of all volumes that are cut together, in nm along z
    published: tuple[PublishedBox, ...] = ()  # from which the others keep the gap


@dataclass(frozen=True)
class Volume:
    """One acquisition: a lazy image, its labels, its voxel size and where it comes from.

    Either ``instances`` (with ``organelle_of``) or ``semantic`` is given; semantic labels become instances by ``lpa``.
    ``extras`` holds what else is labelled: published beside the five organelles, never trained on, counted or scored.
    """

    volume_id: str  # unique in the dataset; letters, digits, "-", "_" and "."
    image: Array3D  # (z, y, x) uint8
    voxel_size: VoxelSize
    source: str
    specimen: str  # specimen group: sources that image the same specimen share it
    cell_type: str
    modality: str
    annotated: Mapping[Organelle, AnnotationType]
    semantic: Array3D | None = None  # (z, y, x) uint8, values Organelle.label_id
    instances: Array3D | None = None  # (z, y, x) unsigned integers, 0 = background
    organelle_of: Mapping[int, Organelle] = field(default_factory=dict)  # instance id -> organelle
    ignore: Array3D | None = None  # (z, y, x) bool, True = nobody annotated this voxel
    domain: Domain = "in"
    published_fold: Fold | None = None  # the source's own division, where it has one
    validation_published: bool = False  # the source publishes validation volumes: this one is not cut for validation
    provenance: Mapping[str, str] = field(default_factory=dict)
    has_image: bool = True  # False: only labels are published; ``image`` is a constant that nobody should learn from
    extras: Mapping[str, Array3D] = field(default_factory=dict)  # (z, y, x) masks (bool) or unsigned ids, 0 = not it
    frame: Frame | None = None  # where the volume lies, if it is known and other volumes may show the same place
    origin_nm: tuple[float, float, float] | None = None  # (z, y, x) in the frame: lower corner of the first voxel

    def __post_init__(self) -> None:
        if (self.semantic is None) == (self.instances is None):
            raise ValueError(f"{self.volume_id}: give either semantic or instances, not both and not none")
        for name in ("semantic", "instances", "ignore"):
            array = getattr(self, name)
            if array is not None and tuple(array.shape) != tuple(self.image.shape):
                raise ValueError(f"{self.volume_id}: {name} is {array.shape}, the image is {self.image.shape}")
        for name, array in self.extras.items():
            if not re.fullmatch(EXTRA_NAME, name):
                raise ValueError(f"{self.volume_id}: an extra is called {name!r}, which is no name of a folder")
            if tuple(array.shape) != tuple(self.image.shape) or np.dtype(array.dtype).kind not in "bu":
                found = f"{array.dtype} {tuple(array.shape)}"
                raise ValueError(f"{self.volume_id}: extra {name} is {found}, not a mask or ids of the image's shape")
        if (self.frame is None) != (self.origin_nm is None):
            raise ValueError(f"{self.volume_id}: give frame and origin_nm, or neither")
        whole = self.published_fold in ("validation", "test")
        if self.frame is not None and not whole and self.span not in self.frame.spans:
            raise ValueError(f"{self.volume_id}: {self.span} is none of the spans of frame {self.frame.name}")

    @property
    def span(self) -> Span | None:
        """The slices of the volume in its frame."""
        if self.origin_nm is None:
            return None
        return Span(float(self.origin_nm[0]), self.voxel_size.z, int(self.image.shape[0]))


@dataclass(frozen=True)
class Prediction:
    """Predicted instances of one image or volume, addressed by ``record_id``."""

    record_id: str
    instances: npt.NDArray[np.uint32]  # (y, x) or (z, y, x), 0 = background
    organelle_of: Mapping[int, Organelle]
    confidence_of: Mapping[int, float] = field(default_factory=dict)  # 0..1


def record_id(volume_id: str, axis: str, slice_index: int, offset: Sequence[int] = (0, 0)) -> str:
    """Name a row: ``record_id("lucchipp-train", "z", 7) == "lucchipp-train/z/00007"``.

    A tile that does not begin at its slice's first pixel says where: ``"cell/z/00007@2048,0"``.
    """
    tile = f"@{int(offset[0])},{int(offset[1])}" if any(offset) else ""
    return f"{volume_id}/{axis}/{slice_index:05d}{tile}"


def parse_record_id(name: str) -> tuple[str, str, int, tuple[int, int]]:
    """Return ``(volume_id, axis, slice, offset)`` of a row's name; raises ``ValueError`` if it is none."""
    volume_id, axis, place = name.rsplit("/", 2)
    slice_index, _, tile = place.partition("@")
    y, x = tile.split(",") if tile else ("0", "0")
    return volume_id, axis, int(slice_index), (int(y), int(x))
