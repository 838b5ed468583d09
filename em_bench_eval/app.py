"""The metric's Space: two label images in, the matched instances and every score out.

Run it here with ``python em_bench_eval/app.py`` (needs ``gradio``), or on the Hub as the Space of the metric: there the
folder is the repository, so this file first makes it importable under its name.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def _make_importable() -> None:
    """Let ``import em_bench_eval`` mean this folder, whatever its name is here."""
    path = FOLDER / "__init__.py"
    spec = importlib.util.spec_from_file_location("em_bench_eval", path, submodule_search_locations=[str(FOLDER)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["em_bench_eval"] = package
    spec.loader.exec_module(package)


if not __package__:  # run as a file
    _make_importable()

import numpy as np  # noqa: E402

from em_bench_eval.demo import LEGEND, compare_files, example_files, shown_metrics  # noqa: E402
from em_bench_eval.errors import InputError  # noqa: E402
from em_bench_eval.schema import ORGANELLES  # noqa: E402

INTRODUCTION = """# EM Bench Eval
Instance scores for organelles in electron microscopy. Give two label images of the same shape: every instance has its
own whole number, 0 is background (16-bit PNG, TIFF or `.npy`). Nothing is stored."""


def run(
    reference: str | None, prediction: str | None, image: str | None, organelle: str, pixel_nm: float, slice_ids: bool
) -> tuple[Any, Any, list[list[Any]], dict[str, Any]]:
    """Compare two files; what cannot be used is shown to the user as a message."""
    import gradio

    if not reference or not prediction:
        raise gradio.Error("Give a reference and a predicted label image, or choose the example below.")
    try:
        compared = compare_files(reference, prediction, image, organelle, pixel_nm, "slice" if slice_ids else "volume")
    except InputError as error:
        raise gradio.Error(str(error).replace("\n", "<br>"), duration=None) from error
    return compared.reference_picture, compared.prediction_picture, shown_metrics(compared.scores), compared.scores


def build(folder: Path) -> Any:
    """Lay the page out; the example's files are written to ``folder``."""
    import gradio

    examples = example_files(folder)
    with gradio.Blocks(title="EM Bench Eval") as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            files = [gradio.File(label=label, type="filepath") for label in ("Reference labels", "Predicted labels")]
            files.append(gradio.File(label="EM image (optional)", type="filepath"))
        with gradio.Row():
            organelle = gradio.Dropdown(list(ORGANELLES), value="mito", label="Organelle")
            pixel_nm = gradio.Number(8.0, label="Pixel size, nm", minimum=0.01)
            slice_ids = gradio.Checkbox(False, label="Each connected piece of the reference is an instance")
        button = gradio.Button("Score", variant="primary")
        with gradio.Row():
            pictures = [gradio.Image(label=label, format="png") for label in ("Reference", "Prediction")]
        gradio.Markdown(LEGEND)
        widths = ["20%", "12%", "68%"]
        table = gradio.Dataframe(
            headers=["key", "value", "what it is"], label="Scores", wrap=True, column_widths=widths
        )
        everything = gradio.JSON(label="All keys", open=False)
        inputs = [*files, organelle, pixel_nm, slice_ids]
        button.click(run, inputs, [*pictures, table, everything])
        gradio.Examples([[*examples, "mito", 8.0, False]], inputs)
    return page


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder)).launch(allowed_paths=[folder])
