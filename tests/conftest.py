"""What every test may rely on: no network, one thread, a small built dataset, and the real data where it is."""

from __future__ import annotations

import os

# before any Hugging Face or torch import: these are read when the libraries are imported
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
)

from pathlib import Path

import hypothesis
import pytest

# tests judge results, not seconds: a busy machine must not fail them
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the caches of datasets and evaluate inside the test run."""
    home = tmp_path_factory.mktemp("hf_home")
    os.environ["HF_HOME"] = str(home)
    import datasets
    import evaluate

    datasets.config.HF_DATASETS_CACHE = home / "datasets"
    evaluate.config.HF_METRICS_CACHE = home / "metrics"
    evaluate.config.HF_MODULES_CACHE = home / "modules"


@pytest.fixture(scope="session")
def project() -> Path:
    """The repository root."""
    return PROJECT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real EM data that lies beside the project; the test is skipped where it does not."""
    folder = Path(os.environ.get("EM_BENCH_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not (folder / "README.md").is_file():
        pytest.skip(f"no real data in {folder} (set EM_BENCH_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny raw copies of every real source, in its published layout."""
    import fake

    folder = tmp_path_factory.mktemp("raw")
    for write in fake.WRITERS.values():
        write(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset folder named em-organelle-wild, built by the builder from ``tiny_raw``."""
    from dataset_builder.build import Job, build
    from dataset_builder.splits import SplitPolicy

    out = tmp_path_factory.mktemp("built") / "em-organelle-wild"
    build([Job.of(name, tiny_raw, {}) for name in ("lucchipp", "vnc_sstem", "hela_sbfsem")], out, SplitPolicy())
    return out
