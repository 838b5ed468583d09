"""The preview page: complete, self-contained, escaped; the renderer against a slow twin."""

from __future__ import annotations

import base64
import html.parser
import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle
from lpa.certificate import certify
from lpa.figures import text
from lpa.mesh import Mesh, _rasterise, mesh_of, render, view_of
from lpa.pictures import Plane, colour_of, fill_layer, inner_edge, scale_bar
from lpa.preview import write_preview

VOXEL = (16.0, 16.0, 16.0)


class Page(html.parser.HTMLParser):
    """Collects tags and checks that they are balanced."""

    VOID = frozenset({"meta", "img", "input", "br", "rect", "line"})

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def images(self, **attributes: str) -> list[npt.NDArray[np.uint8]]:
        sources = [
            found["src"] or ""
            for tag, found in self.tags
            if tag == "img" and all(found.get(f"data-{key}") == value for key, value in attributes.items())
        ]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))) for source in sources]


@pytest.fixture(scope="module")
def volume() -> tuple[npt.NDArray[np.uint16], dict[int, Organelle]]:
    """A mitochondrion cut in two, an endosome, an ER tubule, a crumb; not ids 1..N."""
    instances = np.zeros((30, 60, 70), np.uint16)
    instances[8:22, 10:24, 8:40] = 5
    instances[8:22, 10:24, 40:60] = 9
    instances[10:20, 40:52, 10:22] = 300
    instances[14:17, 45:48, 30:70] = 41
    instances[3:5, 3:5, 3:5] = 77
    mito = Organelle.MITO
    return instances, {5: mito, 9: mito, 77: mito, 300: Organelle.ENDO, 41: Organelle.ER}


def test_the_page_is_complete_and_needs_nothing_else(
    volume: tuple[npt.NDArray[np.uint16], dict[int, Organelle]], tmp_path: Path
) -> None:
    instances, organelle_of = volume
    certificate = certify(instances, organelle_of, VOXEL)
    image = np.random.default_rng(0).integers(0, 255, instances.shape).astype(np.uint8)
    path = tmp_path / "new" / "preview.html"
    title = '<script>alert("x")</script> & $title'
    write_preview(path, image, instances, organelle_of, VOXEL, certificate, title=title)
    assert [file.name for file in path.parent.iterdir()] == ["preview.html"]
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    assert title in page.words
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", source)
    # four slices along z, one each along y and x, with a layer for every organelle that they show
    captions = re.findall(r"<figcaption>([zyx]) = (\d+): ([^<]*)</figcaption>", source)
    assert [(axis, int(index)) for axis, index, _ in captions] == [
        ("z", 6),
        ("z", 12),
        ("z", 18),
        ("z", 24),
        ("y", 30),
        ("x", 35),
    ]
    assert [caption for *_, caption in captions] == [
        *("no instance", "2 mito, 1 endo", "2 mito, 1 endo", "no instance", "no instance", "1 mito, 1 er")
    ]
    assert len(page.images(organelle="mito")) == 3
    assert len(page.images(organelle="endo")) == 2
    # the queue: the smaller half as a split, the crumb; each with its reason
    assert re.findall(r'class="chip (\w+)"', source) == ["split", "crumb"]
    assert "touches 5 over" in page.words
    assert "below the smallest mito" in page.words
    assert "No error rate is known" in page.words
    # sizes: three mitochondria in the bars of one histogram
    bars = re.search(r'aria-label="Volumes of mito">(.*?)</svg>', source)
    assert bars
    assert sum(map(int, re.findall(r'class="count"[^>]*>(\d+)<', bars[1]))) == 3
    # shapes: two mitochondria without the crumb, one endosome, one ER
    stages = re.findall(r'class="stage"', source)
    assert len(stages) == 4


def test_without_image_and_certificate(
    volume: tuple[npt.NDArray[np.uint16], dict[int, Organelle]], tmp_path: Path
) -> None:
    instances, organelle_of = volume
    write_preview(tmp_path / "a.html", None, instances, organelle_of, (40.0, 16.0, 16.0))
    write_preview(tmp_path / "b.html", None, instances, organelle_of, (40.0, 16.0, 16.0))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    source = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Queue for the expert" not in source
    assert "There is no image" in source
    assert re.findall(r"<figcaption>([zyx]) =", source) == ["z"] * 4  # anisotropic: only what the microscope saw
    Page(source)


def test_an_instance_has_one_colour_on_all_slices(
    volume: tuple[npt.NDArray[np.uint16], dict[int, Organelle]], tmp_path: Path
) -> None:
    instances, organelle_of = volume
    write_preview(tmp_path / "a.html", None, instances, organelle_of, VOXEL)
    layers = Page((tmp_path / "a.html").read_text(encoding="utf-8")).images(organelle="endo")
    colours = [
        np.unique(layer[(layer[..., 3] > 0) & (layer[..., 3] < 255)], axis=0)[:, :3].tolist() for layer in layers
    ]
    assert colours == [[list(colour_of(4))]] * 2  # the fifth of the ids 5, 9, 41, 77, 300


def test_an_empty_volume_has_a_page(tmp_path: Path) -> None:
    empty = np.zeros((10, 20, 20), np.uint8)
    write_preview(tmp_path / "a.html", None, empty, {}, VOXEL, certify(empty, {}, VOXEL))
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "Nothing is flagged" in page.words


def test_bad_input(volume: tuple[npt.NDArray[np.uint16], dict[int, Organelle]], tmp_path: Path) -> None:
    instances, organelle_of = volume
    path = tmp_path / "a.html"
    path.write_text("earlier")
    with pytest.raises(InputError, match="differ in shape"):
        write_preview(path, np.zeros((1, 2, 3), np.uint8), instances, organelle_of, VOXEL)
    other = certify(np.where(instances == 77, 0, instances), organelle_of, VOXEL)
    with pytest.raises(InputError, match="certificate belongs to other instances"):
        write_preview(path, None, instances, organelle_of, VOXEL, other)
    with pytest.raises(InputError, match="no organelle"):
        write_preview(path, None, instances, {5: Organelle.MITO}, VOXEL)
    assert path.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_text_is_escaped() -> None:
    assert text("<a href='x'>\x00&\"") == "&lt;a href=&#x27;x&#x27;&gt; &amp;&quot;"


# renderer


def slow_raster(triangles: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Depth at every sample: each triangle, each sample, one after the other."""
    depth = np.full((height, width), np.inf)
    for a, b, c in triangles:
        matrix = np.array([[a[0], b[0], c[0]], [a[1], b[1], c[1]], [1, 1, 1]])
        if abs(np.linalg.det(matrix)) < 1e-9:
            continue
        for y, x in np.ndindex(height, width):
            weight = np.linalg.solve(matrix, [x + 0.5, y + 0.5, 1])
            if (weight >= 0).all():
                depth[y, x] = min(depth[y, x], weight @ [a[2], b[2], c[2]])
    return depth


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.5, 6.0, 25.0]))
def test_the_renderer_equals_the_slow_one(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    triangles = rng.uniform(-2, 14, (6, 1, 4)) + rng.uniform(-size, size, (6, 3, 4))
    depth, shade = _rasterise(triangles, 9, 12)
    np.testing.assert_allclose(depth, slow_raster(triangles, 9, 12), rtol=1e-6, atol=1e-9)
    assert (np.isfinite(depth) | (shade == 0)).all()


def ball(radius: int) -> npt.NDArray[np.bool_]:
    size = 2 * radius + 3
    return np.asarray(sum((axis - radius - 1) ** 2 for axis in np.indices((size,) * 3)) <= radius**2, np.bool_)


def test_the_mesh_of_a_ball_has_its_volume_and_outward_normals() -> None:
    mesh = mesh_of(ball(10), VOXEL)
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    volume = abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)
    assert volume == pytest.approx(4 / 3 * np.pi * (10 * 16) ** 3, rel=0.05)
    outwards = mesh.vertices - mesh.vertices.mean(axis=0)
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    assert (np.einsum("ij,ij->i", mesh.normals, outwards) > 0.9).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 12, 12), (1, 1, 20)])
def test_thin_instances_do_not_vanish(shape: tuple[int, int, int]) -> None:
    mesh = mesh_of(np.ones(shape, bool), (40.0, 8.0, 8.0))
    picture, _ = render(mesh, (200, 100, 50), (40, 60))
    assert (picture[..., 3] > 128).sum() > 30


def test_large_instances_are_averaged_down() -> None:
    assert len(mesh_of(np.ones((4, 900, 900), bool), VOXEL).faces) < 400_000
    spacing = np.ptp(mesh_of(np.ones((4, 900, 30), bool), VOXEL).vertices, axis=0)
    assert spacing == pytest.approx([64, 14400, 480], abs=150)


def test_a_picture_is_lit_from_above_left_and_says_its_scale() -> None:
    view = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])  # right = x, down = y, away = z
    picture, pixel_nm = render(mesh_of(ball(12), VOXEL), (90, 160, 220), (100, 100), view)
    covered = picture[..., 3] > 200
    rows, columns = np.nonzero(covered)
    assert np.ptp(columns) * pixel_nm == pytest.approx(24 * 16, rel=0.08)
    bright = picture[..., :3].sum(axis=2)
    assert bright[30, 30] > bright[70, 70]
    assert (rows.mean(), columns.mean()) == pytest.approx((49.5, 49.5), abs=1.5)
    assert (picture[0, 0] == 0).all()


def test_views_are_rotations_not_mirror_images() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        points = rng.normal(size=(50, 3)) * rng.uniform(0.2, 3, 3)
        view = view_of(Mesh(points, np.zeros((0, 3), np.int64), points))
        np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-9)
        # right, down, away = x, y, z is no mirror image, and has this determinant in the order (z, y, x)
        assert np.linalg.det(view) == pytest.approx(np.linalg.det([[0, 0, 1], [0, 1, 0], [1, 0, 0]]))


# pictures


def test_colours_differ_between_neighbours_in_number() -> None:
    colours = np.array([colour_of(number) for number in range(200)], float)
    assert len(np.unique(colours, axis=0)) == 200
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 60


def test_layers_leave_the_background_and_other_ids_out() -> None:
    labels = np.zeros((6, 8), np.uint64)
    labels[1:5, 1:5], labels[1:5, 5:7] = 2**40, 3
    layer = fill_layer(labels, {2**40: (200, 100, 50)})
    assert (layer[labels != 2**40] == 0).all()
    assert (layer[2:4, 2:4] == (200, 100, 50, 125)).all()
    assert (layer[1, 1] == (144, 72, 36, 255)).all()
    assert inner_edge(labels)[2].tolist() == [False, True, False, False, True, True, True, False]


def test_planes_and_scale_bars() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    plane = Plane.of(1, 2, (40.0, 8.0, 4.0))
    assert plane.pixel_nm == (40.0, 4.0)
    assert plane.cut(volume, (slice(0, 2), slice(1, 3))).tolist() == volume[0:2, 2, 1:3].tolist()
    assert scale_bar(4096.0) == ("1 µm", pytest.approx(1000 / 4096))
    assert scale_bar(900.0) == ("200 nm", pytest.approx(200 / 900))
