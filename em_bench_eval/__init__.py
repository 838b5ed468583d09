"""Instance scoring for organelles in electron microscopy, and the core types that every folder shares.

``em_bench_eval.score`` is the one-call interface; ``em_bench_eval.Evaluation`` accumulates counts over many images,
volumes or processes; ``em_bench_eval.metric_path()`` is what ``evaluate.load`` takes from any working directory.
Importing this package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from em_bench_eval.scoring import Evaluation as Evaluation
    from em_bench_eval.scoring import score as score
    from em_bench_eval.settings import Settings as Settings

_LAZY = {"score", "Evaluation", "Settings"}

__all__ = ["Evaluation", "Settings", "__version__", "metric_path", "score"]


def metric_path() -> str:
    """Return the folder to hand to ``evaluate.load``: works from any directory, offline, installed or not."""
    from pathlib import Path

    return str(Path(__file__).resolve().parent)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from em_bench_eval import scoring

        return getattr(scoring, name)
    raise AttributeError(f"module 'em_bench_eval' has no attribute {name!r}")
