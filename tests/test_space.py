"""The Space of the metric: what its page computes and draws; the page itself where Gradio is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import em_bench_eval
from em_bench_eval import score
from em_bench_eval.demo import compare_files, example_files, read_image, shown_metrics
from em_bench_eval.errors import InputError

FOLDER = Path(em_bench_eval.metric_path())


def test_the_example_shows_every_case(tmp_path: Path) -> None:
    reference, prediction, _ = example_files(tmp_path)
    compared = compare_files(reference, prediction, None, "mito", 8.0)
    assert compared.scores["mito/n_reference"] == 5
    assert compared.scores["mito/n_prediction"] == 5
    assert compared.scores["mito/n_hits"] == 2
    direct = score(
        {"mito": read_image(prediction)}, {"mito": read_image(reference)}, voxel_size_nm=(8, 8), annotated=["mito"]
    )
    assert compared.scores == {key: value for key, value in direct.items() if key.startswith("mito/")}
    for picture in (compared.reference_picture, compared.prediction_picture):
        assert picture.ndim == 3
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4
    assert (compared.reference_picture != compared.prediction_picture).any()
    table = {key: text for key, text, _ in shown_metrics(compared.scores)}
    assert table["mito/n_reference"] == "5"
    assert float(table["mito/pq"]) == pytest.approx(direct["mito/pq"], abs=1e-4)


def test_files_that_are_no_label_images(tmp_path: Path) -> None:
    reference, prediction, _ = example_files(tmp_path)
    colour, floats, pickled, text = (tmp_path / name for name in ("c.png", "f.npy", "p.npy", "t.png"))
    Image.new("RGB", (200, 160)).save(colour)
    np.save(floats, np.zeros((160, 200), np.float32))
    np.save(pickled, np.array([{"a": 1}], dtype=object))
    text.write_text("no image")
    other = tmp_path / "small.npy"
    np.save(other, np.zeros((3, 3), np.uint8))
    cases = ((colour, "no label image"), (floats, "not a label map"), (pickled, "cannot be read"))
    for path, message in (*cases, (text, "cannot be read"), (other, "same shape")):
        with pytest.raises(InputError, match=message):
            compare_files(reference, str(path), None, "mito", 8.0)
    with pytest.raises(InputError, match="image and reference"):
        compare_files(reference, prediction, str(other), "mito", 8.0)


def test_ids_of_any_size_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "big.npy"
    labels = np.zeros((32, 32), np.uint64)
    labels[4:12, 4:12], labels[20:28, 20:28] = 2**63, 7
    np.save(path, labels)
    assert compare_files(str(path), str(path), None, "er", 4.0, "slice").scores["er/pq"] == 1.0


def test_the_page_builds_from_a_copied_folder(tmp_path: Path) -> None:
    """As on the Hub: the folder has another name, and nothing of ours is installed."""
    pytest.importorskip("gradio", reason="Gradio is not installed")
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); from pathlib import Path; import app; "
    code += f"app.build(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=tmp_path)
