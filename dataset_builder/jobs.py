"""The sources that a dataset is built from, with their raw data and options; what can be checked before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_builder.not_finite import ignore_not_finite
from dataset_builder.siblings import with_siblings
from dataset_builder.source import Source, load_source
from dataset_builder.spec import load_spec
from dataset_builder.splits import SplitPolicy
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Volume


@dataclass(frozen=True)
class Job:
    """One source to build from: where its raw data is, and its options."""

    source: Source
    raw: Path | None
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, raw: Path | None, options: Mapping[str, str]) -> Job:
        """Find the raw folder and check the options, so that faults show before any work."""
        source = load_source(name)
        resolved = source.resolve_options(options)
        if source.declare is not None:
            source = source.declare(resolved)
            resolved = dict(source.options)
        found = source.find(raw)
        return cls(source, None if found is None else found.absolute(), resolved)

    def volumes(self) -> Iterator[Volume]:
        """Yield the volumes of this source."""
        volumes = map(ignore_not_finite, self.source.volumes(self.raw, self.options))
        # opening the volumes of a spec may read their labels: all at once only where they must know of each other
        divided = self.spec is not None and any(volume.fold for volume in load_spec(self.spec).volumes)
        yield from with_siblings(volumes) if divided else volumes

    @property
    def spec(self) -> Path | None:
        """The spec that declares the source, if one does."""
        return Path(self.options["spec"]) if "spec" in self.options else None

    def specimens(self) -> Iterator[str]:
        """Yield the specimen group of every volume; a spec says it before its files are read."""
        declared = self.volumes() if self.spec is None else load_spec(self.spec).volumes
        yield from (volume.specimen for volume in declared)

    def as_json(self) -> dict[str, object]:
        """Return what decides which volumes this is."""
        return {
            "source": self.source.info.name,
            "raw": None if self.raw is None else str(self.raw),
            "options": dict(self.options),
        }


def check_jobs(jobs: Sequence[Job]) -> None:
    """Raise ``InputError`` if two sources have one name, as two specs may."""
    first: dict[str, Job] = {}
    for job in jobs:
        name = job.source.info.name
        if name in first:
            raise InputError(
                f"two sources are called {name}",
                found=" and ".join(str(one.spec or "a source of em-bench") for one in (first[name], job)),
                expected="a name for each source: it stands in every row",
                remedy="change source: name: in one of the specs, or list all volumes in one spec",
            )
        first[name] = job


def check_held_out(jobs: Sequence[Job], policy: SplitPolicy) -> None:
    """Raise ``InputError`` if no volume is of a held-out specimen group."""
    generated_last = sorted(jobs, key=lambda job: not job.source.folders and job.spec is None)
    policy.check_held_out(specimen for job in generated_last for specimen in job.specimens())
