"""Skeletons: the mask's topology, never empty, lines in tubes of any diameter, the same with and without numba."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import euler_number

from em_bench_eval import components, simple_points, squared_distance, thinning, thinning_compiled
from em_bench_eval.simple_points import CURVE, FIXED, SIMPLE, SURFACE, TIP, classify
from em_bench_eval.thinning import skeletonise
from em_bench_eval.touching import contacts, without_contacts

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]

SHAPES = st.one_of(st.tuples(*[st.integers(1, 12)] * 2), st.tuples(*[st.integers(1, 7)] * 3))
VOXEL_SIZES = st.sampled_from([(8.0, 8.0, 8.0), (30.0, 8.0, 8.0), (12.5, 5.0, 5.5), (4.0, 20.0, 9.0)])
needs_numba = pytest.mark.skipif(thinning_compiled.kernels() is None, reason="numba does not work here")


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Random voxels, more or less dense; with few voxels missing there are cavities and tunnels."""
    shape = draw(SHAPES)
    density = draw(st.sampled_from([0.2, 0.5, 0.8, 0.95]))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(shape) < density


@st.composite
def label_maps(draw: st.DrawFn) -> Labels:
    shape = draw(SHAPES)
    return draw(hnp.arrays(np.int64, shape, elements=st.sampled_from([0, 0, 1, 1, 2, 5, 70_000])))


@pytest.fixture(params=["numpy", pytest.param("numba", marks=needs_numba)])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on both implementations."""
    if request.param == "numpy":
        monkeypatch.setattr(thinning, "kernels", lambda: None)
    return str(request.param)


def thin(mask: npt.NDArray[np.generic], voxel_size_nm: tuple[float, ...] = (8.0, 8.0, 8.0)) -> Mask:
    """The skeleton as a mask."""
    skeleton = np.zeros(mask.size, bool)
    skeleton[skeletonise(mask, voxel_size_nm[-mask.ndim :]).voxels] = True
    return skeleton.reshape(mask.shape)


def n_components(mask: Mask) -> int:
    return int(ndimage.label(mask, np.ones((3,) * mask.ndim))[1])


def n_cavities(mask: Mask) -> int:
    """Pieces of background, the outside included: face neighbours only."""
    return int(ndimage.label(~np.pad(mask, 1))[1])


# ---------------------------------------------------------------------------------------------------- simple points


def slow_kind(code: int) -> int:
    """The definition, with connected components of a small array."""
    foreground = np.array([(code >> bit) & 1 for bit in range(27)], bool).reshape(3, 3, 3)
    background = ~foreground
    background[1, 1, 1] = False
    background[::2, ::2, ::2] = False  # the 18 nearest neighbours only
    objects = ndimage.label(foreground, np.ones((3, 3, 3)))[1]
    pieces, _ = ndimage.label(background)
    faces = [pieces[at] for at in ((0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2))]
    holes = len(set(faces) - {0})
    if objects == 0 or (objects == 1 and holes == 0):
        return FIXED
    if objects > 1:
        return CURVE
    if holes > 1:
        return SURFACE
    return TIP if foreground.sum() == 1 else SIMPLE


def random_codes(n: int) -> npt.NDArray[np.uint32]:
    rng = np.random.default_rng(3)
    bits = rng.random((n, 27)) < rng.uniform(0, 1, (n, 1))
    bits[:, simple_points.CENTRE] = False
    return (bits @ (1 << np.arange(27))).astype(np.uint32)


def test_classify_is_the_definition() -> None:
    codes = random_codes(4000)
    found = classify(codes)
    assert found.tolist() == [slow_kind(int(code)) for code in codes]
    assert set(found.tolist()) == {FIXED, SIMPLE, TIP, CURVE, SURFACE}


def test_classify_in_the_plane_is_8_4() -> None:
    """All 256 neighbourhoods of a pixel: simple if one 8-connected object and one 4-connected hole that touches it."""
    codes, expected = [], []
    for number in range(256):
        square = np.array([(number >> bit) & 1 for bit in range(9) if bit != 8], bool)
        plane = np.insert(square, 4, False).reshape(3, 3)
        background = ~plane
        background[1, 1] = False
        pieces, _ = ndimage.label(background)
        holes = {int(pieces[at]) for at in ((0, 1), (2, 1), (1, 0), (1, 2))} - {0}
        objects = ndimage.label(plane, np.ones((3, 3)))[1]
        codes.append(int(plane.reshape(-1) @ (1 << np.arange(9))) << 9)
        expected.append(objects == 1 and len(holes) == 1)
    kinds = classify(np.array(codes, np.uint32))
    assert [kind in (SIMPLE, TIP) for kind in kinds.tolist()] == expected


# -------------------------------------------------------------------------------------------------- squared distance


@given(masks(), VOXEL_SIZES)
@settings(max_examples=60, deadline=None)
def test_squared_distance_is_exact(mask: Mask, voxel_size_nm: tuple[float, ...]) -> None:
    volume = np.pad(mask if mask.ndim == 3 else mask[None], 1)
    steps, step_nm = squared_distance.voxel_steps(voxel_size_nm)
    found = squared_distance.squared_distance(volume, steps)
    expected = ndimage.distance_transform_edt(volume, sampling=steps) ** 2
    assert np.array_equal(found, np.round(expected).astype(np.int64))
    assert np.allclose(np.array(steps) * step_nm, voxel_size_nm, rtol=1 / 64)


def test_squared_distance_beyond_16_bits() -> None:
    mask = np.zeros((1, 403, 403), bool)
    mask[:, 1:-1, 1:-1] = True
    found = squared_distance.squared_distance(mask, (1, 1, 1))
    assert found.dtype == np.uint32
    assert int(found.max()) == 201**2


# ------------------------------------------------------------------------------------------------- all random masks


@given(masks(), VOXEL_SIZES)
@settings(max_examples=150, deadline=None)
def test_topology_is_kept(mask: Mask, voxel_size_nm: tuple[float, ...]) -> None:
    skeleton = thin(mask, voxel_size_nm)
    assert not (skeleton & ~mask).any()
    assert n_components(skeleton) == n_components(mask)
    numbers, n = ndimage.label(mask, np.ones((3,) * mask.ndim))
    assert len(np.unique(numbers[skeleton])) == n  # every one of them still has a voxel
    assert n_cavities(skeleton) == n_cavities(mask)
    assert euler_number(skeleton, mask.ndim) == euler_number(mask, mask.ndim)


@needs_numba
@given(masks(), VOXEL_SIZES)
@settings(max_examples=100, deadline=None)
def test_numba_and_numpy_agree(mask: Mask, voxel_size_nm: tuple[float, ...]) -> None:
    compiled = skeletonise(mask, voxel_size_nm[-mask.ndim :])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thinning, "kernels", lambda: None)
        plain = skeletonise(mask, voxel_size_nm[-mask.ndim :])
    assert np.array_equal(compiled.voxels, plain.voxels)
    assert np.array_equal(compiled.radius_nm, plain.radius_nm)


@given(masks(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3), VOXEL_SIZES)
@settings(max_examples=60, deadline=None)
def test_margins_change_nothing(mask: Mask, margin: list[tuple[int, int]], voxel_size_nm: tuple[float, ...]) -> None:
    around = margin[-mask.ndim :]
    padded = thin(np.pad(mask, around), voxel_size_nm)
    assert np.array_equal(padded, np.pad(thin(mask, voxel_size_nm), around))


@given(masks(), VOXEL_SIZES, st.sampled_from([0.5, 3.0]))
@settings(max_examples=30, deadline=None)
def test_unit_of_length_changes_nothing(mask: Mask, voxel_size_nm: tuple[float, ...], factor: float) -> None:
    scaled = tuple(edge * factor for edge in voxel_size_nm)
    assert np.array_equal(thin(mask, voxel_size_nm), thin(mask, scaled))


# ------------------------------------------------------------------------------------------------------ label maps


@given(label_maps())
@settings(max_examples=80, deadline=None)
def test_every_instance_is_thinned_as_if_alone(labels: Labels) -> None:
    """But for the parity of its place: a lone instance is put where it was, by keeping the corners of the map."""
    skeleton = skeletonise(labels, (8.0,) * labels.ndim)
    kept = np.zeros(labels.size, bool)
    kept[skeleton.voxels] = True
    kept = kept.reshape(labels.shape)
    for id_ in np.unique(labels[labels > 0]):
        mask = labels == id_
        assert n_components(kept & mask) == n_components(mask)
        assert euler_number(kept & mask, mask.ndim) == euler_number(mask, mask.ndim)
    renamed = np.where(labels > 0, 71_000 - labels, 0)
    assert np.array_equal(skeletonise(renamed, (8.0,) * labels.ndim).voxels, skeleton.voxels)


@given(label_maps())
@settings(max_examples=80, deadline=None)
def test_masks_without_contacts(labels: Labels) -> None:
    slow = set()
    padded = np.pad(labels, 1)
    for offset in np.ndindex((3,) * labels.ndim):
        other = padded[tuple(slice(o, o + n) for o, n in zip(offset, labels.shape, strict=True))]
        touch = (labels > 0) & (other > labels)
        slow |= set(zip(labels[touch].tolist(), other[touch].tolist(), strict=True))
    assert {tuple(pair) for pair in contacts(labels).tolist()} == slow
    parts = list(without_contacts(labels))
    assert np.array_equal(np.sum(parts, axis=0), labels > 0)
    for part in parts:
        assert len(contacts(np.where(part, labels, 0))) == 0
        for id_ in np.unique(labels[labels > 0]):
            assert part[labels == id_].all() or not part[labels == id_].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.uint64])
def test_ids_of_any_type(dtype: type) -> None:
    labels = np.zeros((6, 12, 20), dtype)
    labels[1:5, 1:5, 1:19] = 1
    labels[1:5, 5:9, 1:19] = np.iinfo(dtype).max
    assert contacts(labels).tolist() == [[1, int(np.iinfo(dtype).max)]]
    skeleton = np.zeros(labels.size, bool)
    skeleton[skeletonise(labels, (8.0, 8.0, 8.0)).voxels] = True
    for id_ in (1, np.iinfo(dtype).max):
        assert n_components(skeleton.reshape(labels.shape) & (labels == id_)) == 1
    assert skeleton.sum() == 2 * 16  # two lines, and not one in the middle of both


# ----------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("diameter", range(1, 11))
def test_square_tube_becomes_a_line(diameter: int, axis: int, path: str) -> None:
    """Odd or even: one voxel thick, and as long as the tube but for its radius at each end."""
    shape = [diameter, diameter]
    shape.insert(axis, 40)
    skeleton = thin(np.ones(shape, bool))
    across = skeleton.any(axis=axis)
    assert across.sum() == 1
    length = int(skeleton.any(axis=tuple(other for other in range(3) if other != axis)).sum())
    assert length == skeleton.sum()
    assert 40 - diameter <= length <= 40


@pytest.mark.parametrize("diameter", range(1, 13))
def test_round_tube_becomes_a_line(diameter: int) -> None:
    y, x = np.mgrid[:diameter, :diameter] - (diameter - 1) / 2
    tube = np.repeat(((y**2 + x**2) <= (diameter / 2) ** 2)[None], 40, axis=0)
    skeleton = thin(tube)
    assert 40 - diameter <= skeleton.any(axis=(1, 2)).sum() <= 40
    assert skeleton.sum() <= 1.1 * 40


@pytest.mark.parametrize("radius_nm", [12.0, 20.0, 40.0])
@pytest.mark.parametrize("voxel_size_nm", [(8.0, 8.0, 8.0), (30.0, 8.0, 8.0)])
def test_oblique_tube_becomes_a_line(voxel_size_nm: tuple[float, ...], radius_nm: float) -> None:
    tube = capsule((24, 60, 60), (4, 8, 10), (20, 50, 44), radius_nm, voxel_size_nm)
    skeleton = thin(tube, voxel_size_nm)
    places = np.argwhere(skeleton) * voxel_size_nm
    length = float(np.linalg.norm(np.ptp(places, axis=0)))
    true_length = float(np.linalg.norm(np.array([16, 42, 34]) * voxel_size_nm))
    assert true_length - 2 * radius_nm <= length <= true_length + 2 * radius_nm + 60
    assert skeleton.sum() <= 1.5 * 42  # 42 voxels is the shortest path of neighbours


def capsule(
    shape: tuple[int, ...], start: tuple[int, ...], end: tuple[int, ...], radius_nm: float, edge: tuple[float, ...]
) -> Mask:
    """Everything within ``radius_nm`` of a segment between two voxels."""
    places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1) * np.array(edge)
    a, b = np.array(start) * edge, np.array(end) * edge
    along = np.clip((places - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return np.asarray(((places - a - along[..., None] * (b - a)) ** 2).sum(-1) <= radius_nm**2)


@pytest.mark.parametrize("thickness", range(1, 9))
def test_sheet_becomes_a_surface(thickness: int, path: str) -> None:
    """A medial surface of one voxel, as wide as the sheet but for about its half thickness at each rim."""
    skeleton = thin(np.ones((thickness, 30, 30), bool))
    assert skeleton.any(axis=(1, 2)).sum() == 1
    surface = skeleton.any(axis=0)
    rim = thickness // 2 + 1
    inner = surface[rim + 1 : -rim - 1, rim + 1 : -rim - 1]
    assert inner.mean() > 0.9  # corners are rounded off
    assert surface.sum() < 30 * 30


@pytest.mark.parametrize("diameter", range(1, 20))
def test_ball_becomes_a_point(diameter: int) -> None:
    places = np.indices((diameter,) * 3) - (diameter - 1) / 2
    ball = (places**2).sum(0) <= (diameter / 2) ** 2
    assert 1 <= thin(ball).sum() <= (5 if diameter == 3 else 2)  # the ball of 19 voxels is a cross: it keeps one


@pytest.mark.parametrize("edge", [2, 4, 6, 8, 13])
def test_cube_becomes_a_point(edge: int) -> None:
    assert 1 <= thin(np.ones((edge,) * 3, bool)).sum() <= 2


@pytest.mark.parametrize("radius", [1.5, 2.0, 3.0, 3.5])
def test_ring_stays_a_ring(radius: float, path: str) -> None:
    z, y, x = np.indices((13, 37, 37)) - np.array([6, 18, 18]).reshape(3, 1, 1, 1)
    ring = (np.sqrt(y**2 + x**2) - 12) ** 2 + z**2 <= radius**2
    skeleton = thin(ring)
    assert euler_number(skeleton, 3) == 0
    assert skeleton.sum() == pytest.approx(2 * np.pi * 12, rel=0.25)


def test_hollow_ball_stays_closed() -> None:
    distance = np.sqrt(((np.indices((25,) * 3) - 12) ** 2).sum(0))
    shell = (distance <= 11) & (distance >= 7)
    skeleton = thin(shell)
    assert n_cavities(skeleton) == 2
    assert skeleton.sum() < 0.4 * shell.sum()


def test_image_of_a_branching_network() -> None:
    """A cross of two bars: four arms that meet, one pixel wide."""
    cross = np.zeros((61, 61), bool)
    cross[28:33, 3:58] = cross[3:58, 28:33] = True
    skeleton = thin(cross)
    assert skeleton.sum() == pytest.approx(2 * 51, abs=6)
    neighbours = ndimage.convolve(skeleton.astype(int), np.ones((3, 3), int), mode="constant") - 1
    assert (skeleton & (neighbours == 1)).sum() == 4


@pytest.mark.parametrize("radius", [4, 6])
def test_rough_surface_gives_few_spurs(radius: int) -> None:
    """Boundary noise of about one voxel, correlated as a network's output is: at most half as much skeleton again."""
    mask = capsule((24, 30, 80), (12, 15, 12), (12, 15, 68), radius, (1.0, 1.0, 1.0))
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(mask.shape), 1.5)
    depth = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    rough = depth + field / field.std() > 0
    pieces, _ = ndimage.label(rough, np.ones((3, 3, 3)))
    rough = pieces == np.bincount(pieces.reshape(-1))[1:].argmax() + 1
    assert (rough != mask).sum() > 0.1 * mask.sum()
    assert thin(rough).sum() <= 1.5 * thin(mask).sum()


def test_radius_is_the_distance_to_the_background() -> None:
    tube = capsule((30, 30, 60), (15, 15, 15), (15, 15, 45), 10.0, (1.0, 1.0, 1.0))
    skeleton = skeletonise(tube, (8.0, 8.0, 8.0))
    expected = ndimage.distance_transform_edt(tube).reshape(-1)[skeleton.voxels] * 8
    assert np.all((expected - 2.0 <= skeleton.radius_nm) & (skeleton.radius_nm <= expected))


def test_speckle_is_kept_voxel_by_voxel() -> None:
    """Isolated voxels are their own skeletons; 30,000 of them take no loop over components."""
    mask = np.zeros((90, 90, 90), bool)
    mask[::3, ::3, ::3] = True
    assert np.array_equal(thin(mask), mask)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0, 3), (3, 3), (2, 2, 2)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    skeleton = skeletonise(np.zeros(shape, np.int32), (8.0,) * len(shape))
    assert len(skeleton.voxels) == len(skeleton.radius_nm) == 0


def test_images_and_flat_volumes_differ() -> None:
    """A volume of one slice is a sheet, and keeps its surface; an image is cut through a body, and gets a line."""
    bar = np.ones((9, 40), bool)
    assert thin(bar).sum() < 40
    assert thin(bar[None]).sum() > 200


@needs_numba
@given(masks(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_component_sizes_with_and_without_numba(mask: Mask, hide: bool) -> None:
    ignore = np.random.default_rng(1).random(mask.shape) < 0.4 if hide else None
    compiled = components.component_sizes(mask, ignore)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "kernels", lambda: None)
        assert np.array_equal(components.component_sizes(mask, ignore), compiled)
