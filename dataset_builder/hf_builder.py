"""The same rows as a ``datasets`` builder, for users who build from raw data inside their own pipeline.

>>> from dataset_builder.hf_builder import EmOrganelleWild
>>> builder = EmOrganelleWild(config_name="wild", sources=["lucchipp"], raw="raw")
>>> builder.download_and_prepare()
>>> train = builder.as_dataset(split="train")
>>> sorted(set(train["source"]))
['lucchipp']

``datasets`` keeps what it has prepared; where raw files have changed since (names, sizes, times), it prepares anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets

from dataset_builder.blueprint import Limits
from dataset_builder.build import rows
from dataset_builder.card import DESCRIPTION
from dataset_builder.jobs import Job
from dataset_builder.raw_files import files_fingerprint, raw_paths
from dataset_builder.records import features
from dataset_builder.split_file import read_split_file
from dataset_builder.splits import PARTS, Axes, Part, SplitPolicy
from em_bench_eval import __version__
from em_bench_eval.errors import InputError
from em_bench_eval.schema import FOLDS


@dataclass
class EmOrganelleWildConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """Which sources to read, where their raw data is, and how they are divided; as in ``em-bench build --help``.

    ``splits`` is a ``splits.json`` that is followed exactly; the other rules of the division are then left alone.
    """

    sources: Sequence[str] = ("phantom",)
    raw: str | None = None
    options: dict[str, dict[str, str]] = field(default_factory=dict)  # source -> its options
    splits: str | None = None
    axes: Axes | None = None
    gap_nm: float | None = None
    held_out: Sequence[str] = ()  # specimen groups
    max_side: int = Limits.max_side  # pixels; a multiple of 64
    min_size_nm3: float = Limits.min_size_nm3

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """Name the cache of this configuration after its settings and the raw files that it reads."""
        state = files_fingerprint(path for job in self.jobs() for path in raw_paths(job))
        if self.splits is not None:
            state += files_fingerprint([Path(self.splits)])
        # a cache of an earlier version may hold other rows
        known = {**config_kwargs, "raw_files": state, "em_bench": __version__}
        return str(super().create_config_id(known, custom_features))

    def jobs(self) -> list[Job]:
        """Return the sources; ``InputError`` for one that is not there."""
        raw = None if self.raw is None else Path(self.raw)
        return [Job.of(name, raw, self.options.get(name, {})) for name in self.sources]

    def policy(self) -> SplitPolicy:
        """Return how volumes are divided; ``InputError`` where ``splits`` and a rule contradict each other."""
        rules = {"axes": self.axes, "gap_nm": self.gap_nm, "held_out": frozenset(self.held_out) or None}
        given = {name: value for name, value in rules.items() if value is not None}
        if self.splits is None:
            return replace(SplitPolicy(), **given)  # type: ignore[arg-type]
        if given:
            raise InputError(f"splits and {', '.join(given)} contradict each other", expected="splits alone, or rules")
        return read_split_file(Path(self.splits))


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
        jobs = self.config.jobs()
        how = {"policy": self.config.policy(), "limits": Limits(self.config.max_side, self.config.min_size_nm3)}
        return [datasets.SplitGenerator(name=fold, gen_kwargs={"jobs": jobs, "fold": fold, **how}) for fold in FOLDS]

    def _generate_examples(
        self, jobs: list[Job], fold: str, policy: SplitPolicy, limits: Limits
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        parts: tuple[Part, ...] = PARTS if self.config.name == "wild" else ("homogeneous",)
        yield from enumerate(row for _, row in rows(jobs, policy, limits, parts) if row["fold"] == fold)
