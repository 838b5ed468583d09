"""What a source is: a declaration, and a function that finds its volumes in a raw folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from em_bench_eval import registry
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import SourceInfo, Volume

PACKAGE = "dataset_builder.sources"


@dataclass(frozen=True)
class Source:
    """One file of ``dataset_builder/sources`` defines one of these as ``SOURCE``.

    ``volumes(raw, options)`` yields lazy volumes; ``raw`` is the folder found by ``find`` (``None`` for a source that
    needs no download) and ``options`` holds every key of ``options``, as strings, with the user's values.
    """

    info: SourceInfo
    volumes: Callable[[Path | None, Mapping[str, str]], Iterable[Volume]]
    folders: tuple[str, ...] = ()  # names that the download may have below --raw; empty: needs no raw data
    layout: str = ""  # the published layout, drawn, for the error message and `em-bench sources NAME`
    options: Mapping[str, str] = field(default_factory=dict)  # option -> default

    def find(self, raw: Path | None) -> Path | None:
        """Return this source's folder: ``raw/<one of folders>``, or ``raw`` itself if it is named so."""
        if not self.folders:
            return None
        if raw is None:
            raise InputError(
                f"source {self.info.name} needs its raw data",
                expected=f"--raw DIR, with one of these folders in DIR: {', '.join(self.folders)}",
                remedy=f"download it from {self.info.url}",
            )
        for candidate in [raw / folder for folder in self.folders] + [raw] * (raw.name in self.folders):
            if candidate.is_dir():
                return candidate
        inside = sorted(path.name for path in raw.iterdir())[:8] if raw.is_dir() else "no such folder"
        raise InputError(
            f"no raw data of source {self.info.name} in {raw}",
            found=inside,
            expected=f"a folder named {' or '.join(self.folders)}, laid out as\n{self.layout}",
            remedy=f"download it from {self.info.url} and name the folder that holds it with --raw",
        )

    def resolve_options(self, given: Mapping[str, str]) -> dict[str, str]:
        """Fill in the defaults; an unknown option is an ``InputError``."""
        for name in given:
            if name not in self.options:
                raise unknown_name(f"option of source {self.info.name}", name, self.options or ("(it has none)",))
        return {**self.options, **given}


def source_names() -> list[str]:
    """Names of all sources, without importing them."""
    return registry.names(PACKAGE)


def load_source(name: str) -> Source:
    """Import one source; a misspelt name answers "did you mean ..."."""
    source = registry.load(PACKAGE, name, "source").SOURCE
    if not isinstance(source, Source):
        raise TypeError(f"{PACKAGE}.{name}.SOURCE is {type(source).__name__}, expected Source")
    return source
