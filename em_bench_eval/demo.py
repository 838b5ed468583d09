"""What the Space shows: two label images compared, as pictures and as numbers; and an example to begin with."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.comparison import compare
from em_bench_eval.errors import InputError
from em_bench_eval.label_maps import as_labels, organelle_name
from em_bench_eval.metric import Value
from em_bench_eval.metrics import METRICS
from em_bench_eval.pictures import draw
from em_bench_eval.rows import LabelledImage
from em_bench_eval.schema import Organelle, Prediction
from em_bench_eval.scoring import score
from em_bench_eval.settings import Settings

SHOWN = ("dice__instance", "iou__instance", "pq", "rq", "sq", "ap50", "ap", "voi__union", "semantic_dice")
COUNTS = ("n_reference", "n_prediction", "n_matched", "n_hits")
LEGEND = """A matched pair has one colour on both sides. White dashes: matched, but IoU of 0.5 or less. Faint, with red
and white dashes: missed by the prediction. Striped: predicted, but not in the reference."""
GRAY = 235  # of the ground, where there is no EM image


@dataclass(frozen=True)
class Compared:
    """Two pictures, RGB ``(y, x, 3)``, and the scores of one organelle."""

    reference_picture: npt.NDArray[np.uint8]
    prediction_picture: npt.NDArray[np.uint8]
    scores: dict[str, Value]


def compare_files(
    reference: str, prediction: str, image: str | None, organelle: str, pixel_nm: float, reference_ids: str = "volume"
) -> Compared:
    """Score a predicted label image against a reference and draw both; ``pixel_nm`` is the edge of a pixel.

    Raises ``InputError`` for files that are no label images, or differ in shape.
    """
    name = Organelle(organelle_name(organelle))
    settings = Settings(reference_ids=reference_ids)  # type: ignore[arg-type]  # Settings checks it
    labels = [
        as_labels(side, read_image(path)) for side, path in (("reference", reference), ("prediction", prediction))
    ]
    ground = np.full(labels[0].shape, GRAY, np.uint8) if image is None else _as_gray(read_image(image))
    if ground.shape != labels[0].shape:
        raise InputError("image and reference differ in shape", found=f"{ground.shape} and {labels[0].shape}")
    size = (float(pixel_nm), float(pixel_nm))
    values = score({name: labels[1]}, {name: labels[0]}, voxel_size_nm=size, annotated=[name], settings=settings)
    compact = [np.unique(side, return_inverse=True) for side in labels]
    sides = [_positions(ids, inverse, labels[0].shape) for ids, inverse in compact]
    row = LabelledImage(
        "image", ground, sides[0].astype(np.uint16), _all(sides[0], name), frozenset([name]),
        np.zeros(ground.shape, bool), size, "", "", "in", "test",
    )  # fmt: skip
    predicted = Prediction("image", sides[1].astype(np.uint32), _all(sides[1], name))
    both = compare(row, predicted, settings)
    picture = draw(ground, row.ignore, size, both.reference, both.prediction)
    layers = (picture.reference_png, picture.prediction_png)
    shown = [_flatten(picture.image_png, list(of.values())) for of in layers]
    mine = {key: value for key, value in values.items() if key.startswith(f"{name}/")}
    return Compared(shown[0], shown[1], mine)


def read_image(path: str) -> npt.NDArray[Any]:
    """Read a PNG, TIFF or ``.npy`` file as an array ``(y, x)``; never unpickles anything."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.lower().endswith(".npy"):
            array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                array = np.asarray(image)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{Path(path).name} cannot be read", found=str(error), expected="a PNG, TIFF or .npy file"
        ) from error
    if array.ndim != 2:
        raise InputError(
            f"{Path(path).name} is no label image",
            found=f"shape {array.shape}" + (", colour" if array.ndim == 3 else ""),
            expected="one whole number for each pixel, (y, x)",
            remedy="export ids as a gray 16-bit PNG or TIFF, not as colours",
        )
    return array


def shown_metrics(scores: Mapping[str, Value]) -> list[list[Any]]:
    """Return rows of key, value and definition: the main keys and the counts."""
    rows = []
    for key, value in scores.items():
        name = key.partition("/")[2]
        if name in (*SHOWN, *COUNTS):
            text = "undefined" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
            rows.append([key, text, METRICS[name].definition])
    return rows


def example_files(folder: Path) -> list[str]:
    """Write a reference and a prediction with one of each case: found, merged, split, missed, invented."""
    from PIL import Image

    reference, prediction = np.zeros((2, 160, 200), np.uint16)
    y, x = np.indices(reference.shape)

    def disc(side: npt.NDArray[np.uint16], id_: int, centre: tuple[int, int], radius: int) -> None:
        side[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = id_

    for id_, centre, radius in ((1, (40, 40), 22), (2, (40, 100), 18), (3, (40, 136), 18), (4, (110, 50), 26)):
        disc(reference, id_, centre, radius)
    disc(reference, 5, (110, 120), 16)
    disc(prediction, 1, (41, 42), 22)  # found
    disc(prediction, 2, (40, 100), 19)
    disc(prediction, 2, (40, 136), 17)  # merges two
    disc(prediction, 3, (110, 50), 26)
    prediction[(prediction == 3) & (x > 52)] = 4  # splits one
    disc(prediction, 6, (120, 170), 14)  # invented; 5 of the reference is missed
    paths = [folder / "reference.png", folder / "prediction.png"]
    for path, labels in zip(paths, (reference, prediction), strict=True):
        Image.fromarray(labels).save(path)
    return [*map(str, paths), None]  # type: ignore[list-item]  # no EM image


def _positions(ids: npt.NDArray[Any], inverse: npt.NDArray[np.intp], shape: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Renumber ids 1..N, 0 stays background."""
    positions = inverse.reshape(shape) + (0 if ids.size and ids[0] == 0 else 1)
    if positions.max(initial=0) > 65535:
        raise InputError("too many instances to draw", found=len(ids), expected="at most 65535 in an image")
    return positions


def _all(labels: npt.NDArray[Any], organelle: Organelle) -> dict[int, Organelle]:
    return dict.fromkeys(range(1, int(labels.max(initial=0)) + 1), organelle)


def _as_gray(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    return np.asarray(np.rint((image - low) / max(high - low, 1e-9) * 255), np.uint8)


def _flatten(image_png: bytes, layers: list[bytes]) -> npt.NDArray[np.uint8]:
    from PIL import Image

    canvas = Image.open(io.BytesIO(image_png)).convert("RGBA")
    for layer in layers:
        canvas = Image.alpha_composite(canvas, Image.open(io.BytesIO(layer)).convert("RGBA"))
    return np.asarray(canvas.convert("RGB"))
