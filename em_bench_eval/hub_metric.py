"""The Space of the metric: exactly the files that ``evaluate.load`` copies and that its page needs."""

from __future__ import annotations

import argparse
import ast
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from em_bench_eval.errors import InputError
from em_bench_eval.hub_push import TOKEN_HELP, add_options, check_repo_id, check_tag, send, show_files, tell, token_of
from em_bench_eval.hub_upload import Repository

FOLDER = Path(__file__).resolve().parent
MODULE = "em_bench_eval"  # evaluate looks for a file of the repository's name
TEXTS = ("README.md", "requirements.txt")
STARTS = (MODULE, "app", "__init__")
OURS = re.compile(r'evaluate\.load\("em_bench_eval"\).*')  # how the card loads it, in a checkout
EXAMPLES = f"""examples:
  em-bench push metric --to my-lab/{MODULE} --dry-run
  em-bench push metric --to my-lab/{MODULE} --revision-tag v1 --public
then, where nothing of this project is installed:
  evaluate.load("my-lab/{MODULE}")

{TOKEN_HELP}"""


def metric_files() -> list[str]:
    """Name the files of the Space: what the module and the page import, at any depth, and their texts."""
    found: set[str] = set()
    todo = list(STARTS)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += siblings(FOLDER / f"{name}.py")
    return sorted([*(f"{name}.py" for name in found), *TEXTS])


def siblings(path: Path) -> list[str]:
    """Return the modules of this folder that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.update(_imported_from(node))
        elif isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[2] for alias in node.names if alias.name.startswith(f"{MODULE}."))
    return sorted(name for name in names if (path.parent / f"{name}.py").is_file())


def _imported_from(node: ast.ImportFrom) -> Iterable[str]:
    module = node.module or ""
    if node.level == 0 and module.split(".")[0] != MODULE:
        return ()
    inside = module if node.level else module.partition(".")[2]
    return [inside.split(".")[0]] if inside else [alias.name for alias in node.names]


def write_metric(out: Path, repo_id: str) -> dict[str, Path]:
    """Gather the Space's files, path in the repository -> local file; the card names the Space and is in ``out``."""
    files = {name: FOLDER / name for name in metric_files()}
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    named, count = OURS.subn(f'evaluate.load("{repo_id}")', card)
    if not count:
        raise InputError("the card of the metric does not say how to load it", expected="README.md as released")
    (out / "README.md").write_text(named, encoding="utf-8")
    return {**files, "README.md": out / "README.md"}


def push_metric(argv: Sequence[str]) -> int:
    """Run ``em-bench push metric``."""
    parser = argparse.ArgumentParser(
        prog="em-bench push metric",
        description="Upload the metric as a Space: evaluate.load reads it from there, and its page scores two images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--to", required=True, metavar=f"ORG/{MODULE}", help="the Space, made if not there")
    add_options(parser)
    arguments = parser.parse_args(argv)
    name = check_repo_id("--to", arguments.to, f"my-lab/{MODULE}")
    if name.split("/")[1] != MODULE:
        raise InputError(
            "evaluate.load finds a metric only in a Space of the metric's name",
            found=name,
            expected=f"{name.split('/')[0]}/{MODULE}",
        )
    tag = check_tag(arguments.revision_tag)
    with tempfile.TemporaryDirectory() as folder:
        files = write_metric(Path(folder), name)
        to = Repository(name, "space", public=arguments.public, space_sdk="gradio")
        show_files(to, files)
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return 0
        tell(send(files, to, "em_bench_eval", tag, token_of(arguments)))
    revision = f', revision="{tag}"' if tag else ""
    print(f'load it: evaluate.load("{name}"{revision})')
    return 0
