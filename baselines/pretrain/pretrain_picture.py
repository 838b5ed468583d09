"""What a pre-training has learnt, to look at: ``reconstruction.png`` in its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from baselines.preprocess import normalisation
from em_bench_eval.whole_file import write_whole

PICTURE = "reconstruction.png"
ROWS, GAP, TITLE = 6, 6, 18  # crops; pixels


def write_picture(folder: Path, inputs: Tensor, targets: Tensor, restored: Tensor, scale: str, about: str) -> Path:
    """Write input, target, restoration and its error of the first crops, (N, 1, H, W) each, side by side.

    Gray as in the image before normalisation; the error is black at 0 and white at 1/4 of the whole range. The title of
    a row is the mean squared error, as trained, of the restoration and of leaving the input as it is.
    """
    from PIL import Image, ImageDraw

    tensors = [tensor[:ROWS, 0].float().numpy() for tensor in (inputs, targets, restored)]
    span = normalisation(scale)
    gray = [(tensor - span.low) / (span.high - span.low) for tensor in tensors]
    gray.append(4 * np.abs(gray[2] - gray[1]))
    rows, height, width = tensors[0].shape
    canvas = Image.new("L", (4 * (width + GAP) + GAP, TITLE + rows * (height + GAP + TITLE)), 255)
    draw = ImageDraw.Draw(canvas)
    titles = ("input", "target", f"restored ({about})", "error x 4")
    for column, (title, planes) in enumerate(zip(titles, gray, strict=True)):
        left = GAP + column * (width + GAP)
        draw.text((left, 3), title, fill=0)
        for row in range(rows):
            canvas.paste(Image.fromarray(_bytes(planes[row])), (left, TITLE + row * (height + GAP + TITLE)))
    for row in range(rows):
        before, after = (float(np.square(tensors[which][row] - tensors[1][row]).mean()) for which in (0, 2))
        text = f"mean squared error {after:.3f}; of the input {before:.3f}"
        draw.text((GAP, TITLE + row * (height + GAP + TITLE) + height + 2), text, fill=0)
    write_whole(folder / PICTURE, canvas.save)
    return folder / PICTURE


def _bytes(plane: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    scaled: npt.NDArray[np.uint8] = np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8)
    return scaled
