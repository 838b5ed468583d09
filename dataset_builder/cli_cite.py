"""``em-bench cite``: what to cite for the rows that were used."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError, unknown_name

VOLUMES = "volumes"  # the configuration that lists them
EXAMPLES = """examples:
  em-bench cite em-organelle-wild
      everything: the benchmark, its paper and all sources, as BibTeX
  em-bench cite --config wild --split test --plain em-organelle-wild
      the sources of the test rows, as a numbered list
  em-bench cite --source betaseg --out sources.bib ORG/em-organelle-wild
      one source of a dataset on the Hub; only its columns of text are downloaded
"""


def cite(argv: Sequence[str]) -> int:
    """Print the BibTeX of the sources of a dataset's rows."""
    parser = argparse.ArgumentParser(
        prog="em-bench cite",
        description="Print what to cite for the rows that were used: the benchmark, its paper, and their sources.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder, or <org>/<name> on the Hub")
    parser.add_argument("--config", metavar="C", help="a configuration of the dataset (default: its default one)")
    parser.add_argument("--split", metavar="S", help="a split of it (default: all)")
    parser.add_argument("--source", action="append", default=[], metavar="NAME", help="only these; may be repeated")
    parser.add_argument("--plain", action="store_true", help="a numbered list instead of BibTeX")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a file instead of printing")
    arguments = parser.parse_args(argv)

    from dataset_builder.citation import bibliography, cited, plain_text

    rows = citation_rows(arguments.dataset, arguments.config, arguments.split)
    citations = cited(rows, arguments.source)
    text = (plain_text if arguments.plain else bibliography)(citations.values())
    if arguments.out is None:
        print(text, end="")
    else:
        from em_bench_eval.whole_file import write_whole

        write_whole(arguments.out, lambda path: path.write_text(text, encoding="utf-8"))
    return 0


def citation_rows(dataset: str, config: str | None = None, split: str | None = None) -> Iterator[Mapping[str, Any]]:
    """Yield ``source`` and ``citation`` of the rows of a dataset folder or Hub dataset; no image is read.

    Of a whole dataset, volumes count too: labels without an image are in no row.

    Raises:
        InputError: no such dataset, configuration or split.
    """
    import datasets

    if not Path(dataset).is_dir() and dataset.count("/") != 1:
        raise _no_dataset(dataset, "no such folder")
    if Path(dataset).is_dir() and not (Path(dataset) / "README.md").is_file():
        raise _no_dataset(dataset, "a folder without a card (README.md)")
    try:
        known = datasets.get_dataset_config_names(dataset)
        if config is not None and config not in known:
            raise unknown_name("configuration", config, known)
        files = datasets.load_dataset_builder(dataset, config).config.data_files
        if split is not None and split not in files:
            raise unknown_name("split", split, files)
        chosen = [file for name in (files if split is None else [split]) for file in files[name]]
        if config is None and split is None and VOLUMES in known:
            of_volumes = datasets.load_dataset_builder(dataset, VOLUMES).config.data_files
            chosen += [file for name in of_volumes for file in of_volumes[name]]
    except (FileNotFoundError, ConnectionError) as error:
        raise _no_dataset(dataset, f"no such folder, and not on the Hub: {error}") from error
    for file in chosen:
        yield from _of_file(str(file))


def _of_file(file: str) -> Iterator[Mapping[str, Any]]:
    """Read the two columns of a parquet file, here or on the Hub; each batch gives each of its sources once."""
    import fsspec
    import pyarrow.parquet as pq

    with fsspec.open(file, "rb") as content, pq.ParquetFile(content) as rows:
        for batch in rows.iter_batches(columns=["source", "citation"], use_threads=False):
            found = batch.to_pydict()
            for source, citation in dict(zip(found["source"], found["citation"], strict=True)).items():
                yield {"source": source, "citation": citation}


def _no_dataset(name: str, found: str) -> InputError:
    return InputError(
        f"there is no dataset {name!r}",
        found=found,
        expected="a folder written by em-bench build, or <org>/<name> of a dataset on the Hub",
    )
