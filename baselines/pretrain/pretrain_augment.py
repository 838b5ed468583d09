"""RETINA's two sets of augmentations: the first for input and target alike, the second for the input alone.

Written from the parameters of RETINA's published code, without its library. Differences, none of which a network could
tell: flip, rotation and crop are one interpolation instead of two, and gray values are not rounded in between. Values
are gray 0..255 until the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from baselines.preprocess import Normalisation, normalisation
from em_bench_eval.errors import unknown_name

Gray = npt.NDArray[np.float32]  # (y, x), 0..255
PROBABILITY = 0.5  # of each augmentation but the crop
MAX_ROTATION_DEG = 90.0
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (0.5, 1.5)  # of the image's area; width / height
BRIGHTNESS, CONTRAST = 0.3, 0.3
NOISE_VARIANCE = (400.0, 1200.0)
BLUR_KERNELS = (3, 5, 7)
HOLES, HOLE_EDGE = (1, 32), 16  # the code names no smallest hole, so all are of the largest size


@dataclass(frozen=True)
class View:
    """Where a view of an image comes from: mirrored, turned about the centre, then cut out (pixels)."""

    flip_y: bool
    flip_x: bool
    angle_deg: float
    top: float
    left: float
    height: float
    width: float


def draw_view(shape: tuple[int, int], generator: np.random.Generator) -> View:
    """Draw the first set for a ``(y, x)`` image: flips, a rotation within 90 degrees, and a crop."""
    flip_x, flip_y, turn = (bool(generator.random() < PROBABILITY) for _ in range(3))
    angle = float(generator.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG)) if turn else 0.0
    return View(flip_y, flip_x, angle, *_draw_box(shape, generator))


def _draw_box(shape: tuple[int, int], generator: np.random.Generator) -> tuple[float, float, float, float]:
    """Top, left, height and width of a box of random area and shape inside the image; after ten misses the largest."""
    rows, columns = shape
    for _ in range(10):
        area = generator.uniform(*CROP_SCALE) * rows * columns
        ratio = math.exp(generator.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height <= rows and 0 < width <= columns:
            top, left = generator.integers(rows - height + 1), generator.integers(columns - width + 1)
            return float(top), float(left), height, width
    ratio = min(max(columns / rows, CROP_RATIO[0]), CROP_RATIO[1])
    height, width = min(rows, round(columns / ratio)), min(columns, round(rows * ratio))
    return float((rows - height) // 2), float((columns - width) // 2), height, width


def seen_through(image: Gray, view: View, edge: int) -> Gray:
    """Resample a ``(y, x)`` image to the ``edge`` x ``edge`` pixels of a view, linearly, reflected at the borders."""
    rows, columns = image.shape
    centre = np.array([(rows - 1) / 2, (columns - 1) / 2])
    angle = math.radians(view.angle_deg)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    mirror = np.diag([-1.0 if view.flip_y else 1.0, -1.0 if view.flip_x else 1.0])
    step = np.diag([view.height / edge, view.width / edge])
    corner = np.array([view.top, view.left]) + (step.diagonal() - 1) / 2  # centre of the first pixel
    matrix = mirror @ turn @ step
    offset = mirror @ turn @ (corner - centre) + centre
    seen: Gray = ndimage.affine_transform(
        image, matrix, offset, output_shape=(edge, edge), output=np.float32, order=1, mode="mirror"
    )
    return seen


def brightness_and_contrast(image: Gray, generator: np.random.Generator) -> Gray:
    """Multiply by 0.7 to 1.3 and add up to 30 % of white, or of black."""
    contrast, brightness = generator.uniform(-CONTRAST, CONTRAST), generator.uniform(-BRIGHTNESS, BRIGHTNESS)
    return np.clip(image * np.float32(1 + contrast) + np.float32(255 * brightness), 0, 255)


def noise(image: Gray, generator: np.random.Generator) -> Gray:
    """Add independent normal noise."""
    sigma = np.float32(math.sqrt(generator.uniform(*NOISE_VARIANCE)))
    return np.clip(image + sigma * generator.standard_normal(image.shape, dtype=np.float32), 0, 255)


def blur(image: Gray, generator: np.random.Generator) -> Gray:
    """Blur by a Gaussian kernel of 3, 5 or 7 pixels, its sigma the one that OpenCV takes for that size."""
    size = int(generator.choice(BLUR_KERNELS))
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    blurred: Gray = ndimage.gaussian_filter(image, sigma, mode="mirror", radius=size // 2)
    return blurred


def holes(image: Gray, generator: np.random.Generator) -> Gray:
    """Blacken up to 32 squares of 16 x 16 pixels, which may overlap."""
    image = image.copy()
    rows, columns = image.shape
    for _ in range(int(generator.integers(HOLES[0], HOLES[1] + 1))):
        top, left = (int(generator.integers(max(size - HOLE_EDGE, 0) + 1)) for size in (rows, columns))
        image[top : top + HOLE_EDGE, left : left + HOLE_EDGE] = 0
    return image


SECOND_SET: tuple[Callable[[Gray, np.random.Generator], Gray], ...] = (brightness_and_contrast, noise, blur, holes)


def spoilt(image: Gray, generator: np.random.Generator) -> Gray:
    """Apply each augmentation of the second set with probability one half, in their order."""
    for augmentation in SECOND_SET:
        if generator.random() < PROBABILITY:
            image = augmentation(image, generator)
    return image


@dataclass(frozen=True)
class GrayScale:
    """How whole images become gray 0..255 to be augmented, and those what a network sees, for one normalisation."""

    to_gray: Callable[[Gray], Gray]
    to_network: Callable[[Gray], Gray]


def gray_scale(name: str) -> GrayScale:
    """Scale of a key of ``NORMALISATIONS``.

    Where the normalisation looks at the image, as percentiles do, it is applied to the whole image first: a spoilt crop
    has other percentiles than its target.
    """
    if name not in GRAY_SCALES:
        raise unknown_name("normalisation for pre-training", name, GRAY_SCALES)
    return GRAY_SCALES[name](normalisation(name))


def _pointwise(normalised: Normalisation) -> GrayScale:
    return GrayScale(lambda image: image, normalised.of)


def _of_whole_image(normalised: Normalisation) -> GrayScale:
    span = np.float32((normalised.high - normalised.low) / 255)
    low = np.float32(normalised.low)
    return GrayScale(lambda image: (normalised.of(image) - low) / span, lambda image: image * span + low)


GRAY_SCALES: dict[str, Callable[[Normalisation], GrayScale]] = {
    "cem500k": _pointwise,
    "percentile-1-99": _of_whole_image,
}
