"""The figures of a dataset folder, as in the paper: composition, instance sizes, example meshes, labelled images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.figures_canvas import Canvas
from dataset_builder.figures_charts import composition, sizes
from dataset_builder.figures_pictures import meshes, overlays
from dataset_builder.figures_summary import Summary, summarise

FOLDER = "figures"


@dataclass(frozen=True)
class Figure:
    """A picture of the card."""

    path: str  # in the dataset folder
    caption: str


@dataclass(frozen=True)
class Kind:
    """One kind of figure; ``draw`` yields its sheets."""

    name: str
    caption: str
    draw: Callable[[Summary], Iterable[Canvas]]
    photographs: bool = False  # JPEG: noise makes PNG ten times as large


KINDS = (
    Kind(
        "composition",
        "Images by source and cell type, and instances in whole volumes; hatched where nobody annotated an organelle.",
        lambda summary: [composition(summary)],
    ),
    Kind(
        "sizes",
        "Sizes of the instances, in whole volumes and as they appear in images; logarithmic axes.",
        lambda summary: [sizes(summary)],
    ),
    Kind(
        "meshes",
        "Instances of small, middle and large volume of every organelle.",
        lambda summary: [meshes(summary)],
    ),
    Kind(
        "overlays",
        "The image of every source that shows most organelles and instances, with its labels.",
        overlays,
        photographs=True,
    ),
)


@dataclass(frozen=True)
class Rendered:
    """What the card needs of the figures: their files, and the counts that they were drawn from."""

    figures: tuple[Figure, ...]
    summary: Summary


def render(folder: str | os.PathLike[str]) -> Rendered:
    """Draw all figures of a dataset folder into its folder ``figures``, replacing what was there.

    Reads ``volumes.parquet``, ``instances.parquet``, the columns of ``data/`` that are no images, one image per source
    and up to three instances per organelle: memory does not grow with rows or instances. The same dataset gives the
    same bytes.

    Raises:
        InputError: not a dataset folder.
    """
    target = Path(folder)
    summary = summarise(target)
    (target / FOLDER).mkdir(exist_ok=True)
    figures = list(_write(summary, target))
    kept = {target / figure.path for figure in figures}
    for path in (target / FOLDER).iterdir():
        if path not in kept and path.name.partition(".")[0].partition("-")[0] in {kind.name for kind in KINDS}:
            path.unlink()
    return Rendered(tuple(figures), summary)


def _write(summary: Summary, target: Path) -> Iterator[Figure]:
    for kind in KINDS:
        ending = "jpg" if kind.photographs else "png"
        for number, canvas in enumerate(kind.draw(summary), start=1):
            name = f"{FOLDER}/{kind.name}{f'-{number}' if kind.photographs else ''}.{ending}"
            temporary = target / f"{name}.tmp"
            temporary.write_bytes(canvas.jpeg() if kind.photographs else canvas.png())
            os.replace(temporary, target / name)
            yield Figure(name, kind.caption)
