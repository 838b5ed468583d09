"""What a block-wise run does, and its work folder: everything that a run after ``kill -9`` needs to go on.

::

    .NAME.partial/              beside the destination NAME
        manifest.json           the plan; a run with other settings refuses to continue it
        lock                    held by the run that is at work
        faces/0-0-1.npz         pass 1, one file a block: faces and components (renamed into place when complete)
        merged.json             the join is complete: names/ is valid; instances per class
        names/0-0-1.npy         the final names of the components of a block
        written.txt             pass 2, one line a finished block
        labels/NAME             the result, renamed to NAME at the end
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError
from em_bench_eval.whole_file import write_whole

Index = tuple[int, int, int]  # of a block in the grid, (z, y, x)
Shape = tuple[int, int, int]  # voxels, (z, y, x)
FORMAT = 1  # of the work folder


@dataclass(frozen=True)
class Plan:
    """The settings of a run; everything here can be written as JSON and sent to another machine."""

    source: str
    shape: Shape
    dtype: str
    destination: str
    block_shape: Shape
    connectivity: int | str | Mapping[str, int]
    relabel: str
    format: int = FORMAT

    @cached_property
    def grid(self) -> Shape:
        """Number of blocks along each axis."""
        z, y, x = (-(-size // edge) for size, edge in zip(self.shape, self.block_shape, strict=True))
        return z, y, x

    def blocks(self) -> list[Index]:
        """All blocks in raster order."""
        depth, height, width = self.grid
        return list(itertools.product(range(depth), range(height), range(width)))

    def box(self, block: Index) -> tuple[slice, slice, slice]:
        """The voxels of a block."""
        z, y, x = (
            slice(i * edge, min((i + 1) * edge, size))
            for i, edge, size in zip(block, self.block_shape, self.shape, strict=True)
        )
        return z, y, x

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """uint32, or uint64 where minimum indices need it."""
        voxels = self.shape[0] * self.shape[1] * self.shape[2]
        return np.dtype(np.uint32 if self.relabel == "compact" or voxels < 2**32 else np.uint64)

    def global_uid(self, block: Index, first: Any) -> Any:
        """Turn linear indices in a block into linear indices + 1 in the volume, uint64; keeps their order."""
        box = self.box(block)
        _, height, width = (side.stop - side.start for side in box)
        z, rest = np.divmod(np.asarray(first, np.uint64), np.uint64(height * width))
        y, x = np.divmod(rest, np.uint64(width))
        row = (z + np.uint64(box[0].start)) * np.uint64(self.shape[1]) + y + np.uint64(box[1].start)
        return row * np.uint64(self.shape[2]) + x + np.uint64(box[2].start + 1)

    @property
    def work(self) -> Path:
        """The work folder."""
        destination = Path(self.destination)
        return destination.with_name(f".{destination.name}.partial")

    @property
    def labels(self) -> Path:
        """Where the result is written until it is complete."""
        return self.work / "labels" / Path(self.destination).name

    def faces_file(self, block: Index) -> Path:
        """What pass 1 keeps of a block."""
        return self.work / "faces" / f"{'-'.join(map(str, block))}.npz"

    def names_file(self, block: Index) -> Path:
        """What the join decided for a block."""
        return self.work / "names" / f"{'-'.join(map(str, block))}.npy"


class Journal:
    """The blocks whose labels are written; a torn last line is a block that is written again."""

    def __init__(self, path: Path):
        self._path = path
        text = path.read_text() if path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            write_whole(path, lambda temporary: temporary.write_text(complete))
        self.done: set[Index] = {(int(z), int(y), int(x)) for z, y, x in map(str.split, complete.splitlines())}

    def add(self, block: Index) -> None:
        """Note that a block is complete on disk."""
        with self._path.open("a") as file:
            file.write(f"{block[0]} {block[1]} {block[2]}\n")


@contextmanager
def work_folder(plan: Plan, overwrite: bool) -> Iterator[None]:
    """Make the work folder, or take up an earlier one, and hold it.

    Raises ``InputError`` if another run is at work there, or an earlier run had other settings; with ``overwrite`` the
    remains of other settings are deleted.
    """
    plan.work.mkdir(parents=True, exist_ok=True)
    with alone(plan.work / "lock", f"writing {plan.destination}"):
        manifest = plan.work / "manifest.json"
        wanted = json.loads(json.dumps(asdict(plan)))
        found = json.loads(manifest.read_text()) if manifest.exists() else None
        if found != wanted:
            if found is not None:
                _refuse_other_settings(plan, found, wanted, overwrite)
            for child in plan.work.iterdir():  # the manifest stays until its remains are gone, and is then replaced
                if child.is_dir():
                    shutil.rmtree(child)
                elif child.name not in ("lock", manifest.name):
                    child.unlink()
            write_whole(manifest, lambda path: path.write_text(json.dumps(wanted, indent=2) + "\n"))
        for folder in ("faces", "names", "labels"):
            (plan.work / folder).mkdir(exist_ok=True)
        yield


def _refuse_other_settings(plan: Plan, found: dict[str, Any], wanted: dict[str, Any], overwrite: bool) -> None:
    if overwrite:
        return
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    raise InputError(
        f"an unfinished run for {plan.destination} had other settings",
        found=", ".join(f"{key} {found.get(key)}" for key in changed),
        expected=", ".join(f"{key} {wanted[key]}" for key in changed),
        remedy=f"repeat its settings to continue it, overwrite it, or delete {plan.work}",
    )


def replace_folder(complete: Path, target: Path) -> None:
    """Give a complete folder the name ``target``; what had that name goes once the new one is there, and not before."""
    old = complete.with_name(complete.name + ".old")
    if target.exists():
        target.rename(old)
    try:
        complete.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
