"""What a source is: a declaration, and a function that finds its volumes in a raw folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

from em_bench_eval import registry
from em_bench_eval.errors import InputError, did_you_mean
from em_bench_eval.schema import SourceInfo, Volume

PACKAGE = "dataset_builder.sources"


@dataclass(frozen=True)
class Download:
    """One file that ``em-bench fetch`` gets, into the folder ``RAW/<name of the source>``."""

    urls: tuple[str, ...]  # mirrors, tried in turn; http:// only where sha256 vouches for the content
    file: str  # its path below that folder, or the name of the archive
    sha256: str | None = None  # as published or as others have measured it; None: recorded at the first download
    size_bytes: int | None = None  # as stated somewhere, perhaps rounded; None: nobody states it. For quotes only
    unpack: bool = False  # a ZIP file, unpacked into the folder and then removed
    into: str = ""  # where below the folder it is unpacked
    strip: str = ""  # the top folder inside the archive that is dropped


@dataclass(frozen=True)
class Option:
    """One thing that a user may say about a source: ``--option SOURCE.NAME=VALUE``."""

    default: str  # "": nothing
    about: str  # one line: what it means and which values it takes


@dataclass(frozen=True)
class Source:
    """One file of ``dataset_builder/sources`` defines one of these as ``SOURCE``.

    ``volumes(raw, options)`` yields lazy volumes; ``raw`` is the folder found by ``find`` (``None`` for a source that
    needs no download) and ``options`` holds every key of ``settings``, as strings, with the user's values.

    ``extras`` names the published classes that are none of the five organelles. They are no part of ``semantic`` or
    ``instances``; a volume that has them holds them in ``Volume.extras``, and its provenance says under
    ``extra:<class>`` where in the raw data they are.
    """

    info: SourceInfo
    volumes: Callable[[Path | None, Mapping[str, str]], Iterable[Volume]]
    folders: tuple[str, ...] = ()  # names that the download may have below --raw; empty: needs no raw data
    layout: str = ""  # the published layout, drawn, for the error message and `em-bench sources NAME`
    settings: Mapping[str, Option] = field(default_factory=dict)  # option -> its default and meaning
    downloads: tuple[Download, ...] = ()  # what em-bench fetch gets; empty: by hand, or nothing to get
    extras: Mapping[str, str] = field(default_factory=dict)  # other published class -> what it is
    # a source whose name, licence and annotation depend on its options: returns the source that they declare
    declare: Callable[[Mapping[str, str]], Source] | None = None
    remote: bool = False  # reads its server itself; --raw may hold a local copy that is read instead

    @property
    def options(self) -> dict[str, str]:
        """The default of every option."""
        return {name: option.default for name, option in self.settings.items()}

    def options_text(self) -> str:
        """Say what every option means, one a line; an empty text where there are none."""
        width = max(map(len, self.settings), default=0)
        return "\n".join(
            f"  {name:<{width}}  {option.about} (default: {option.default or 'none'})"
            for name, option in self.settings.items()
        )

    @property
    def download_bytes(self) -> int | None:
        """Size of all downloads together; ``None`` if it is not known of one of them."""
        sizes = [download.size_bytes for download in self.downloads]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def how_to_get(self) -> str:
        """Say how a user comes by the raw data."""
        if self.downloads:
            return f"em-bench fetch {self.info.name} --raw DIR, or download it from {self.info.url}"
        return f"download it from {self.info.url}"

    def find(self, raw: Path | None) -> Path | None:
        """Return this source's folder: ``raw/<one of folders>``, or ``raw`` itself if it is named so."""
        if not self.folders or (self.remote and raw is None):
            return None
        if raw is None:
            raise InputError(
                f"source {self.info.name} needs its raw data",
                expected=f"--raw DIR, with one of these folders in DIR: {', '.join(self.folders)}",
                remedy=self.how_to_get(),
            )
        for candidate in [raw / folder for folder in self.folders] + [raw] * (raw.name in self.folders):
            if candidate.is_dir():
                return candidate
        if self.remote:
            return None
        inside = sorted(path.name for path in raw.iterdir())[:8] if raw.is_dir() else "no such folder"
        raise InputError(
            f"no raw data of source {self.info.name} in {raw}",
            found=inside,
            expected=f"a folder named {' or '.join(self.folders)}, laid out as\n{self.layout}",
            remedy=f"{self.how_to_get()}; then name the folder that holds it with --raw",
        )

    def resolve_options(self, given: Mapping[str, str]) -> dict[str, str]:
        """Fill in the defaults; an unknown option is an ``InputError``."""
        for name in given:
            if name not in self.settings:
                raise InputError(
                    f"unknown option of source {self.info.name} {name!r}",
                    expected=f"one of\n{indent(self.options_text(), '  ')}"
                    if self.settings
                    else "none: this source has no options",
                    remedy=f"{did_you_mean(name, self.settings)}em-bench sources {self.info.name} describes the source",
                )
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
