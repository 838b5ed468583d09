"""The ``evaluate`` module: any input form, counts only, several processes, and nothing of ours installed."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import em_bench_eval
from em_bench_eval import Evaluation, Settings
from em_bench_eval.rows import encode_png

FOLDER = Path(em_bench_eval.metric_path())
NM = (8.0, 8.0)
ORGANELLE_OF = {1: "mito", 2: "er", 3: "mito"}


def images(count: int, side: int = 40, seed: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=(side, side)), 3) for _ in range(2 * count)]
    return [
        (
            np.digitize(a + 0.3 * b, [0.02, 0.05, 0.08]).astype(np.uint16),
            np.digitize(a, [0.02, 0.05, 0.08]).astype("u2"),
        )
        for a, b in zip(fields[::2], fields[1::2], strict=True)
    ]


def direct(pairs: list[tuple[Any, Any]], settings: Settings | None = None, **context: Any) -> dict[str, Any]:
    evaluation = Evaluation(settings or Settings())
    for prediction, reference in pairs:
        evaluation.add(prediction, reference, voxel_size_nm=NM, **context)
    return evaluation.compute()


@pytest.fixture
def metric(tmp_path: Path) -> Any:
    import evaluate

    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path / "cache"))


def test_loads_by_bare_name_at_the_repository_root(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evaluate

    monkeypatch.chdir(project)
    metric = evaluate.load("em_bench_eval", cache_dir=str(tmp_path))
    labels = np.array([[1, 0], [0, 2]])
    assert metric.compute(predictions=[labels], references=[labels], organelle="er", voxel_size_nm=NM)["er/pq"] == 1.0


FORMS = {
    "mapping of arrays": lambda labels: {"mito": np.where(labels == 2, 0, labels), "er": np.where(labels == 2, 2, 0)},
    "array with organelles": lambda labels: (labels, ORGANELLE_OF),
    "PIL image with organelles": lambda labels: (Image.fromarray(labels), ORGANELLE_OF),
    "PNG bytes with organelles": lambda labels: (encode_png(labels), ORGANELLE_OF),
    "nested lists with organelles": lambda labels: (labels.tolist(), ORGANELLE_OF),
    "row": lambda labels: {
        "instances": Image.fromarray(labels),
        "objects": [{"id": id_, "organelle": organelle} for id_, organelle in ORGANELLE_OF.items()],
    },
    "row with columns of objects": lambda labels: {
        "instances": {"bytes": encode_png(labels), "path": None},
        "objects": {"id": list(ORGANELLE_OF), "organelle": list(ORGANELLE_OF.values())},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_input_form_gives_the_direct_score(form: str, metric: Any) -> None:
    pairs = images(3)
    expected = direct([((p, ORGANELLE_OF), (r, ORGANELLE_OF)) for p, r in pairs])
    convert = FORMS[form]
    predictions, references = [convert(p) for p, _ in pairs], [convert(r) for _, r in pairs]
    assert metric.compute(predictions=predictions, references=references, voxel_size_nm=NM) == expected
    metric.add(prediction=predictions[0], reference=references[0], voxel_size_nm=NM)
    metric.add_batch(predictions=predictions[1:], references=references[1:], voxel_size_nm=NM)
    assert metric.compute() == expected
    assert expected["mito/n_reference"] > 0
    assert expected["er/dice__instance"] > 0


@pytest.mark.parametrize("convert", [np.asarray, Image.fromarray, lambda a: a.tolist()], ids=["numpy", "PIL", "list"])
def test_plain_label_maps_of_one_organelle(convert: Any, metric: Any) -> None:
    pairs = images(2)
    masks = [np.arange(1600).reshape(40, 40) % 7 == 0 for _ in pairs]
    found = metric.compute(
        predictions=[convert(p) for p, _ in pairs],
        references=[convert(r) for _, r in pairs],
        organelle="golgi",
        voxel_size_nm=NM,
        ignore=masks,
    )
    expected = Evaluation()
    for (p, r), mask in zip(pairs, masks, strict=True):
        expected.add({"golgi": p}, {"golgi": r}, voxel_size_nm=NM, annotated=["golgi"], ignore=mask)
    assert found == expected.compute()


def test_dataset_rows_bring_their_own_context(tmp_path: Path, metric: Any) -> None:
    import datasets

    features = datasets.Features(
        {
            "instances": datasets.Image(),
            "objects": datasets.List({"id": datasets.Value("int32"), "organelle": datasets.Value("string")}),
            "annotated": datasets.List(datasets.Value("string")),
            "ignore": datasets.Image(),
            "pixel_size_nm": datasets.List(datasets.Value("float32")),
        }
    )
    pairs, ignore = images(2), np.zeros((40, 40), bool)
    ignore[:, :11] = True
    objects = [{"id": id_, "organelle": organelle} for id_, organelle in ORGANELLE_OF.items()]
    content = [
        {
            "instances": {"bytes": encode_png(labels), "path": None},
            "objects": objects,
            "annotated": ["mito"],
            "ignore": mask if mask is None else {"bytes": encode_png(mask), "path": None},
            "pixel_size_nm": NM,
        }
        for (_, labels), mask in zip(pairs, (ignore, None), strict=True)
    ]
    rows = datasets.Dataset.from_list(content, features=features)
    found = metric.compute(predictions=[(p, ORGANELLE_OF) for p, _ in pairs], references=list(rows))
    expected = Evaluation()
    for (p, r), mask in zip(pairs, (ignore, None), strict=True):
        sides = (p, ORGANELLE_OF), (r, ORGANELLE_OF)
        expected.add(*sides, voxel_size_nm=NM, annotated=["mito"], ignore=mask)
    assert found == expected.compute()
    assert found["er/n_reference"] == 0
    assert found["mito/n_reference"] > 0


def test_volumes(metric: Any) -> None:
    volume = np.stack([labels for _, labels in images(4)])
    found = metric.compute(predictions=[volume], references=[volume], organelle="mito", voxel_size_nm=(20, 8, 8))
    assert found["mito/pq"] == 1.0


def test_settings_are_arguments_of_load(tmp_path: Path) -> None:
    import evaluate

    metric = evaluate.load(str(FOLDER), cache_dir=str(tmp_path), reference_ids="slice", min_size_nm=2000)
    pairs = images(3)
    expected = direct(
        [({"mito": p}, {"mito": r}) for p, r in pairs],
        Settings(reference_ids="slice", min_size_nm=2000),
        annotated=["mito"],
    )
    predictions, references = zip(*pairs, strict=True)
    found = metric.compute(predictions=predictions, references=references, organelle="mito", voxel_size_nm=NM)
    assert found == expected


def test_volumes_by_path(metric: Any, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(3)
    volumes = [rng.integers(0, 4, (6, 20, 24)).astype(np.uint16) for _ in range(2)]
    paths = [tmp_path / f"{k}.tif" for k in range(2)]
    for path, labels in zip(paths, volumes, strict=True):
        tifffile.imwrite(path, labels)
    found = metric.compute(
        predictions=[str(paths[0])], references=[paths[1]], organelle="golgi", voxel_size_nm=(30, 8, 8)
    )
    direct = em_bench_eval.score(
        {"golgi": volumes[0]}, {"golgi": volumes[1]}, voxel_size_nm=(30, 8, 8), annotated=["golgi"]
    )
    assert found == direct
    with pytest.raises(em_bench_eval.errors.InputError.__base__, match="a path meets an array"):
        metric.add(prediction=volumes[0], reference=paths[1], organelle="golgi", voxel_size_nm=(30, 8, 8))


def test_no_label_map_enters_the_cache(tmp_path: Path, metric: Any) -> None:
    pairs = images(8, side=256)
    predictions, references = zip(*pairs, strict=True)
    metric.add_batch(predictions=predictions, references=references, organelle="mito", voxel_size_nm=NM)
    metric.writer.finalize()
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow"))
    assert 0 < size < 131_072 / 2  # the size of half of one of the sixteen label maps; mostly the names of the columns


def test_a_batch_with_a_fault_is_not_counted(metric: Any) -> None:
    labels = np.array([[1, 0], [0, 2]])
    context = {"organelle": "mito", "voxel_size_nm": NM}
    metric.add_batch(predictions=[labels], references=[labels], **context)
    for predictions, references, extra, message in (
        ([labels, labels * 0.5], [labels, labels], {}, "float64"),
        ([labels, labels], [labels], {}, "in pairs"),
        ([labels], [labels], {"threshold": 1}, "does not know threshold"),
        ([labels], [labels], {"organelle": "mitos"}, "did you mean 'mito'"),
        ([labels], [labels], {"organelle": None}, "nothing says of which organelle"),
        ([labels], [labels], {"voxel_size_nm": None}, "voxel_size_nm is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.add_batch(predictions=predictions, references=references, **{**context, **extra})
    assert metric.compute()["mito/n_reference"] == 2


def test_nothing_added_scores_nothing(metric: Any) -> None:
    assert metric.compute() == Evaluation().compute()


SECOND_PROCESS = """
import json, sys
import numpy as np
import evaluate
folder, cache, maps = sys.argv[1:]
pairs = np.load(maps)["pairs"]
for share in (2, 0):
    metric = evaluate.load(folder, cache_dir=cache, num_process=2, process_id=1, experiment_id=f"share{share}")
    for prediction, reference in pairs[:share]:
        metric.add(prediction=prediction, reference=reference, organelle="mito", voxel_size_nm=(8, 8))
    print(json.dumps(metric.compute()))
"""


def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    """This process and another; in the second round the other one has no image at all."""
    import evaluate

    pairs, cache = images(5), str(tmp_path / "cache")
    np.savez(tmp_path / "maps.npz", pairs=np.array(pairs))
    expected = direct([({"mito": p}, {"mito": r}) for p, r in pairs], annotated=["mito"])
    command = [sys.executable, "-c", SECOND_PROCESS, str(FOLDER), cache, str(tmp_path / "maps.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as other:
        for share in (2, 0):
            metric = evaluate.load(
                str(FOLDER), cache_dir=cache, num_process=2, process_id=0, experiment_id=f"share{share}"
            )
            for prediction, reference in pairs[share:]:
                metric.add(prediction=prediction, reference=reference, organelle="mito", voxel_size_nm=NM)
            assert metric.compute() == expected
        output = other.communicate(timeout=120)[0]
    assert other.returncode == 0
    assert [json.loads(line) for line in output.splitlines()] == [None, None]


ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [entry for entry in sys.path if entry and entry != sys.argv[2]]
try:
    import em_bench_eval
except ImportError:
    pass
else:
    raise SystemExit(f"em_bench_eval is still importable from {em_bench_eval.__file__}")
import json
import evaluate
metric = evaluate.load(sys.argv[1])
labels = [[1, 1, 0], [0, 2, 2]]
found = metric.compute(predictions=[labels], references=[labels], organelle="mito", voxel_size_nm=[8, 8])
print(json.dumps([found["mito/pq"], found["mito/n_reference"], sorted(m for m in sys.modules if m.startswith("lpa"))]))
"""


def test_works_where_nothing_of_ours_is_installed(project: Path, tmp_path: Path) -> None:
    """Only the folder is copied, as to a Hub Space; the installed package is hidden from the interpreter."""
    folder = tmp_path / "space" / "em_bench_eval"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder), str(project)],
        capture_output=True,
        text=True,
        cwd=tmp_path / "elsewhere",
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [1.0, 2, []]


def _imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_the_rules_of_travelling_files() -> None:
    """What the import scanner of ``evaluate`` needs: see the docstring of em_bench_eval.py."""
    module = FOLDER / "em_bench_eval.py"
    siblings = set()
    for node in _imports(module):
        line = module.read_text().splitlines()[node.lineno - 1]
        assert "#" not in line, line
        if isinstance(node, ast.Import):
            assert len(node.names) == 1, line
        elif node.level:
            assert (node.level, node.module is not None and "." not in node.module) == (1, True), line
            siblings.add(node.module)
        else:
            assert node.module != "evaluate", line  # its base class would be taken for ours
    for name in siblings:
        for node in _imports(FOLDER / f"{name}.py"):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.module in siblings, f"{name}.py imports .{node.module}, which does not travel"
            else:
                roots = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                third_party = {str(root).split(".")[0] for root in roots} - set(sys.stdlib_module_names)
                assert third_party <= {"numpy", "scipy"}, f"{name}.py imports {third_party} at the top"


def test_requirements_name_what_the_folder_imports() -> None:
    required = {
        re.split(r"[<>=~! ]", line)[0].lower()
        for line in (FOLDER / "requirements.txt").read_text().splitlines()
        if line
    }
    assert required == {"datasets", "evaluate", "numpy", "pillow", "scipy"}


def test_card_is_a_metric_card() -> None:
    import yaml

    front = (FOLDER / "README.md").read_text().split("---\n")[1]
    card = yaml.safe_load(io.StringIO(front))
    assert {"title", "sdk", "sdk_version", "app_file", "tags", "description"} <= set(card)
    assert card["sdk"] == "gradio"
    assert {"evaluate", "metric"} <= set(card["tags"])


def test_card_defines_every_metric() -> None:
    from em_bench_eval.metrics import METRICS

    text = (FOLDER / "README.md").read_text()
    assert [name for name in METRICS if f"`{name}`" not in text] == []


def test_code_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    monkeypatch.chdir(project)
    blocks = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), flags=re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
