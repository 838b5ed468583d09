"""Meshes of instances and pictures of them, without a display: marching cubes, then a small software renderer.

``render`` is an orthographic z-buffer in numpy: triangles are taken together by the size of their box on the screen,
and every pixel of such a box is tested for all of them at once. Shading is Lambert's; a pixel is the mean of
``SUPERSAMPLING`` x ``SUPERSAMPLING`` samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

SUPERSAMPLING = 2
LONGEST_EDGE = 144  # samples of the longest side of an instance; larger ones are averaged down first
LIGHT = np.array([-0.45, -0.62, -0.65]) / np.linalg.norm([0.45, 0.62, 0.65])  # towards it: left, up, to the viewer
AMBIENT = 0.34


@dataclass(frozen=True)
class Mesh:
    """A closed surface in nm."""

    vertices: npt.NDArray[np.float64]  # (n, 3) z, y, x
    faces: npt.NDArray[np.int64]  # (m, 3) indices of vertices
    normals: npt.NDArray[np.float64]  # (n, 3) unit vectors, outwards


def mesh_of(mask: npt.NDArray[np.bool_], voxel_nm: tuple[float, float, float]) -> Mesh:
    """Return the smoothed surface of a non-empty ``(z, y, x)`` mask; the border of the array counts as surface."""
    from skimage.measure import marching_cubes

    longest = max(size * edge for size, edge in zip(mask.shape, voxel_nm, strict=True))
    step = [max(1, round(longest / LONGEST_EDGE / edge)) for edge in voxel_nm]
    field = _averaged(mask, step)
    spacing = tuple(edge * factor for edge, factor in zip(voxel_nm, step, strict=True))
    field = np.pad(field, 3)
    # half a voxel of smoothing removes the staircase; what is thinner than that is kept by the second term
    sigma = [0.9 * min(spacing) / edge for edge in spacing]
    field = np.maximum(ndimage.gaussian_filter(field, sigma), 0.56 * (field >= min(0.3, float(field.max()))))
    vertices, faces, _, _ = marching_cubes(field, level=0.5, spacing=spacing)
    gradient = [
        ndimage.gaussian_filter(field, [1.2 * s + 0.3 for s in sigma], order=np.eye(3, dtype=int)[k]) for k in range(3)
    ]
    places = (vertices / spacing).T
    normals = -np.stack(
        [ndimage.map_coordinates(g, places, order=1) / edge for g, edge in zip(gradient, spacing, strict=True)], axis=1
    )
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(vertices.astype(np.float64), faces.astype(np.int64), normals.astype(np.float64))


def view_of(mesh: Mesh) -> npt.NDArray[np.float64]:
    """Choose a view: rows are the directions right, down and away, ``(z, y, x)``; the longest axis lies across.

    It runs from lower left to upper right; the picture is then tilted by 25 degrees so that depth shows.
    """
    _, axes = np.linalg.eigh(np.cov(mesh.vertices.T))
    axes = axes[:, ::-1].T * np.sign(axes[:, ::-1].T.sum(axis=1, keepdims=True) + 1e-9)
    long, middle = axes[0], axes[1]
    away = -np.cross(long, middle)  # (z, y, x) order reverses the cross product: without the sign, a mirror image
    turn, tilt = np.deg2rad(-20), np.deg2rad(25)
    right = np.cos(turn) * long - np.sin(turn) * middle
    down = np.sin(turn) * long + np.cos(turn) * middle
    down, away = np.cos(tilt) * down - np.sin(tilt) * away, np.sin(tilt) * down + np.cos(tilt) * away
    return np.stack([right, down, away])


def render(
    mesh: Mesh, colour: tuple[int, int, int], shape: tuple[int, int] = (200, 260), view: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[np.uint8], float]:
    """Draw a mesh.

    Args:
        mesh: what to draw; it is scaled to fill the picture.
        colour: red, green, blue.
        shape: ``(y, x)`` pixels of the picture.
        view: rows right, down, away as ``(z, y, x)`` unit vectors; ``None``: ``view_of(mesh)``.

    Returns:
        RGBA ``(y, x, 4)`` with a transparent background, and the nm that a pixel covers.
    """
    directions = view_of(mesh) if view is None else np.asarray(view, np.float64)
    height, width = (size * SUPERSAMPLING for size in shape)
    seen = mesh.vertices @ directions.T  # right, down, away
    low, high = seen.min(axis=0), seen.max(axis=0)
    scale = 0.94 * min(width / max(high[0] - low[0], 1e-9), height / max(high[1] - low[1], 1e-9))
    middle = (low + high) / 2
    x = (seen[:, 0] - middle[0]) * scale + width / 2
    y = (seen[:, 1] - middle[1]) * scale + height / 2
    depth = (seen[:, 2] - low[2]) / max(high[2] - low[2], 1e-9)
    lambert = np.clip((mesh.normals @ directions.T) @ LIGHT, 0, 1)
    shade = AMBIENT + (1 - AMBIENT) * lambert
    nearest, brightness = _rasterise(np.stack([x, y, depth, shade], axis=1)[mesh.faces], height, width)

    covered = np.isfinite(nearest)
    dimmed = np.where(covered, brightness * (1.06 - 0.3 * np.where(covered, nearest, 0)), 0)  # what is far is darker
    base = np.array(colour, np.float64)
    shine = np.clip((dimmed - 0.9) / 0.16, 0, 1)[..., np.newaxis] ** 2 * 0.35
    rgb = base * np.clip(dimmed, 0, 1)[..., np.newaxis]
    rgb = rgb + (255 - rgb) * shine
    samples = np.concatenate([rgb * covered[..., np.newaxis], covered[..., np.newaxis] * 255.0], axis=2)
    blocks = samples.reshape(shape[0], SUPERSAMPLING, shape[1], SUPERSAMPLING, 4).mean(axis=(1, 3))
    alpha = blocks[..., 3:]
    blocks[..., :3] = np.where(alpha > 0, blocks[..., :3] * 255 / np.maximum(alpha, 1e-9), 0)
    return np.asarray(np.clip(np.rint(blocks), 0, 255), np.uint8), SUPERSAMPLING / scale


def _rasterise(
    triangles: npt.NDArray[np.float64], height: int, width: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Depth (inf: nothing there) and shade of the nearest triangle at every sample.

    ``triangles`` is ``(m, corner, (x, y, depth, shade))``; a sample sits at the centre of its pixel.
    """
    nearest = np.full(height * width, np.inf)
    brightness = np.zeros(height * width)
    ax, ay, bx, by, cx, cy = (triangles[:, corner, axis] for corner in range(3) for axis in range(2))
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    left = np.ceil(triangles[:, :, 0].min(axis=1) - 0.5).astype(np.int64)
    top = np.ceil(triangles[:, :, 1].min(axis=1) - 0.5).astype(np.int64)
    across = np.floor(triangles[:, :, 0].max(axis=1) - 0.5).astype(np.int64) - left + 1
    along = np.floor(triangles[:, :, 1].max(axis=1) - 0.5).astype(np.int64) - top + 1
    usable = (np.abs(area) > 1e-12) & (across > 0) & (along > 0)
    size = np.where(usable, np.maximum(across, along), 0)
    start = 1
    while start <= size.max(initial=0):
        stop = start + max(1, start // 2)
        chosen = np.flatnonzero((size >= start) & (size < stop))
        start, window = stop, stop - 1
        for row, column in np.ndindex(window, window):
            inside = chosen[(row < along[chosen]) & (column < across[chosen])]
            px, py = left[inside] + column, top[inside] + row
            dx, dy = px + 0.5, py + 0.5
            b = ((dx - ax[inside]) * (cy[inside] - ay[inside]) - (dy - ay[inside]) * (cx[inside] - ax[inside])) / area[
                inside
            ]
            c = ((bx[inside] - ax[inside]) * (dy - ay[inside]) - (by[inside] - ay[inside]) * (dx - ax[inside])) / area[
                inside
            ]
            hit = (b >= 0) & (c >= 0) & (b + c <= 1) & (px >= 0) & (px < width) & (py >= 0) & (py < height)
            if not hit.any():
                continue
            weight = np.stack([1 - b - c, b, c], axis=1)[hit]
            corners = triangles[inside[hit]]
            depth, shade = (np.einsum("ij,ij->i", weight, corners[:, :, k]) for k in (2, 3))
            pixel = py[hit] * width + px[hit]
            order = np.argsort(-depth, kind="stable")  # the nearest is written last
            pixel, depth, shade = pixel[order], depth[order], shade[order]
            closer = depth < nearest[pixel]
            pixel, depth, shade = pixel[closer], depth[closer], shade[closer]
            nearest[pixel] = depth
            brightness[pixel] = shade
    return nearest.reshape(height, width), brightness.reshape(height, width)


def _averaged(mask: npt.NDArray[np.bool_], step: list[int]) -> npt.NDArray[np.float32]:
    """Mean over blocks of ``step`` voxels; the last block of an axis is filled up with background."""
    padded = np.pad(mask, [(0, -size % factor) for size, factor in zip(mask.shape, step, strict=True)])
    split = [n for size, factor in zip(padded.shape, step, strict=True) for n in (size // factor, factor)]
    return np.asarray(padded.reshape(split).mean(axis=(1, 3, 5), dtype=np.float32), np.float32)
