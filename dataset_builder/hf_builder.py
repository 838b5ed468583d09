"""The same rows as a ``datasets`` builder, for users who build from raw data inside their own pipeline.

::

    from dataset_builder.hf_builder import EmOrganelleWild

    builder = EmOrganelleWild("wild", sources=["lucchipp"], raw="raw")
    builder.download_and_prepare()
    train = builder.as_dataset(split="train")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets

from dataset_builder.build import Job, rows
from dataset_builder.card import DESCRIPTION
from dataset_builder.records import features
from dataset_builder.splits import SplitPolicy
from em_bench_eval import __version__
from em_bench_eval.schema import FOLDS


@dataclass
class EmOrganelleWildConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """Which sources to read, and where their raw data is; see ``em-bench sources``."""

    sources: Sequence[str] = ("phantom",)
    raw: str | None = None
    options: dict[str, dict[str, str]] = field(default_factory=dict)  # source -> its options


class EmOrganelleWild(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
    """Configurations ``homogeneous`` and ``wild``, each with train, validation and test."""

    VERSION = datasets.Version(__version__)
    BUILDER_CONFIG_CLASS = EmOrganelleWildConfig
    BUILDER_CONFIGS: ClassVar = [
        EmOrganelleWildConfig(name=name, version=__version__) for name in ("wild", "homogeneous")
    ]
    DEFAULT_CONFIG_NAME = "wild"

    def _info(self) -> Any:
        return datasets.DatasetInfo(description=DESCRIPTION, features=features())

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        raw = None if self.config.raw is None else Path(self.config.raw)
        jobs = [Job.of(name, raw, self.config.options.get(name, {})) for name in self.config.sources]
        return [datasets.SplitGenerator(name=fold, gen_kwargs={"jobs": jobs, "fold": fold}) for fold in FOLDS]

    def _generate_examples(self, jobs: list[Job], fold: str) -> Iterator[tuple[int, dict[str, Any]]]:
        chosen = (
            row for part, row in rows(jobs, SplitPolicy()) if row["fold"] == fold and self.config.name in ("wild", part)
        )
        yield from enumerate(chosen)
