"""``em-bench push leaderboard``: the Space with the page, and the dataset repository that takes submissions.

Both are skeletons that ``em-bench leaderboard update`` fills. Pushing again renews cards and workflow, and touches
neither submissions nor results, nor a page that is there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from em_bench_eval.errors import InputError
from em_bench_eval.hub_push import TOKEN_HELP, add_options, check_repo_id, check_tag, send, show_files, tell, token_of
from em_bench_eval.hub_upload import Repository
from em_bench_eval.leaderboard.hub_texts import PLACEHOLDER, SPACE_CARD, submission_texts

INDEX = "index.html"
PAGE_ENDINGS = (".html", ".css", ".js", ".json", ".png", ".jpg", ".svg", ".parquet", ".txt")
EXAMPLES = f"""examples:
  em-bench push leaderboard --to my-lab/em-organelle-leaderboard --submissions my-lab/em-organelle-submissions \\
      --dataset my-lab/em-organelle-wild --labels my-lab/em-organelle-wild-labels --dry-run
  em-bench push leaderboard --to my-lab/em-organelle-leaderboard --submissions my-lab/em-organelle-submissions \\
      --dataset my-lab/em-organelle-wild --page site --public

{TOKEN_HELP}"""


def names_of(space: str, submissions: str, dataset: str, labels: str | None) -> dict[str, str]:
    """Return what the texts name: the repositories, and the command that updates the leaderboard."""
    reference = labels or dataset
    return {
        "space": space,
        "submissions": submissions,
        "dataset": dataset,
        "private": ", which are private" if labels else "",
        "reads": f", and can read {labels}" if labels else "",
        "update": f"em-bench leaderboard update --submissions {submissions} --reference {reference} "
        f"--dataset {dataset} --out site --publish-to {space}",
    }


def write_space(out: Path, names: Mapping[str, str], page: Path | None = None) -> dict[str, Path]:
    """Write the card, and the first page unless ``page`` is a folder with one; path in the repository -> local file.

    Raises:
        InputError: ``page`` is no folder with an ``index.html``, or holds files that belong to no page.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(SPACE_CARD.substitute(names), encoding="utf-8")
    files = {"README.md": out / "README.md"}
    if page is None:
        (out / INDEX).write_text(PLACEHOLDER.substitute(names), encoding="utf-8")
        return {**files, INDEX: out / INDEX}
    if not (page / INDEX).is_file():
        raise InputError(f"{page} is no page", found=f"no {INDEX}", expected="a folder with index.html")
    found = {path.relative_to(page).as_posix(): path for path in sorted(page.rglob("*")) if path.is_file()}
    strange = [
        name
        for name, path in found.items()
        if not name.endswith(PAGE_ENDINGS) or path.is_symlink() or any(part[0] == "." for part in name.split("/"))
    ]
    if strange:
        raise InputError(
            f"{page} holds files that belong to no page",
            found=", ".join(strange[:5]),
            expected=f"files that end in {', '.join(PAGE_ENDINGS)}",
            remedy="name the folder that em-bench leaderboard wrote, and nothing else",
        )
    return {**found, **files}


def write_submissions(out: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Write the skeleton of the submissions repository; path in the repository -> local file."""
    files = {}
    for name, text in submission_texts(names).items():
        files[name] = out / name
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(text, encoding="utf-8")
    return files


def push_leaderboard(argv: Sequence[str]) -> int:
    """Run ``em-bench push leaderboard``."""
    parser = argparse.ArgumentParser(
        prog="em-bench push leaderboard",
        description="Set up the leaderboard: a static Space with the page, and a dataset repository for submissions.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--to", required=True, metavar="ORG/NAME", help="the Space with the page, made if not there")
    add("--submissions", required=True, metavar="ORG/NAME", help="the dataset repository that takes submissions")
    add("--dataset", required=True, metavar="ORG/NAME", help="the benchmark's dataset repository")
    add("--labels", metavar="ORG/NAME", help="the private repository with the test labels, if they are private")
    add("--page", type=Path, metavar="FOLDER", help="a page, as em-bench leaderboard writes (default: keep)")
    add_options(parser)
    arguments = parser.parse_args(argv)
    named = {option: getattr(arguments, option) for option in ("to", "submissions", "dataset", "labels")}
    for option, name in named.items():
        if name is not None:
            check_repo_id(f"--{option}", name, "my-lab/em-organelle-leaderboard")
    if named["submissions"] in (named["dataset"], named["labels"]):
        raise InputError("submissions need a repository of their own", found=named["submissions"])
    tag = check_tag(arguments.revision_tag)
    names = names_of(arguments.to, arguments.submissions, arguments.dataset, arguments.labels)
    with tempfile.TemporaryDirectory() as folder:
        space = Repository(arguments.to, "space", public=arguments.public, space_sdk="static")
        submissions = Repository(arguments.submissions, "dataset", public=arguments.public)
        page = write_space(Path(folder) / "space", names, arguments.page)
        skeleton = write_submissions(Path(folder) / "submissions", names)
        show_files(space, page)
        show_files(submissions, skeleton)
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return 0
        token = token_of(arguments)
        initial = () if arguments.page else (INDEX,)
        # submissions first: the page links to them
        tell(send(skeleton, submissions, "submissions", tag, token, delete_others=False))
        tell(send(page, space, "leaderboard", tag, token, delete_others=False, initial=initial))
    print(f"submit: em-bench submit PREDICTIONS --to {arguments.submissions}")
    return 0
