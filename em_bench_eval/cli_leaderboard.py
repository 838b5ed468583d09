"""``em-bench leaderboard``: for maintainers. Score what was submitted, and make the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError, did_you_mean
from em_bench_eval.hub_push import check_repo_id, token_of

if TYPE_CHECKING:
    from em_bench_eval.leaderboard.pulls import Submissions

USAGE = """usage: em-bench leaderboard WHAT [options]

Score submissions against the reference labels, and make the leaderboard's page.

what:
  update   score every open pull request: verdict, scores, comment, merge, results, page
  rebuild  make the page again from the results that there are
  add      score a folder here, without the Hub

examples:
  em-bench leaderboard update --submissions my-lab/em-organelle-submissions \\
      --reference my-lab/em-organelle-wild-labels --out site --publish-to my-lab/em-organelle-leaderboard
  em-bench leaderboard rebuild --submissions my-lab/em-organelle-submissions --out site
  em-bench leaderboard add predictions/unet --reference em-organelle-wild --results board --out site

em-bench leaderboard WHAT --help says more; docs/leaderboard.md describes how to set one up.
"""


def leaderboard(argv: Sequence[str]) -> int:
    """Run ``em-bench leaderboard``."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        if not arguments:
            return 0
        raise SystemExit(0)
    if arguments[0] not in COMMANDS:
        hint = did_you_mean(arguments[0], COMMANDS)
        print(f"em-bench leaderboard: unknown {arguments[0]!r}; {hint}\n\n{USAGE}", file=sys.stderr)
        return 2
    return COMMANDS[arguments[0]](arguments[1:])


def _parser(what: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"em-bench leaderboard {what}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_site(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("leaderboard-site"), metavar="SITE", help="folder of the page")
    add("--dataset", default="", metavar="ORG/NAME", help="the public dataset, which the page links to")


def _add_hub(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--publish-to", "--space", metavar="ORG/NAME", help="static Space that gets the page")
    add("--token-file", type=Path, metavar="FILE", help="a file with one line, the access token")
    add("--work", type=Path, metavar="FOLDER", help="for downloads and caches (default: SITE.work)")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--reference", required=True, metavar="DATASET", help="dataset with the labels: ORG/NAME or a folder")
    add("--workers", type=int, default=1, metavar="N", help="processes that score one submission (default: 1)")
    add("--max-minutes", type=float, default=240.0, metavar="M", help="for one submission (default: 240)")
    add("--show-reference", action="store_true", help="draw reference labels on the page: only if they are public")
    add("--no-pictures", action="store_true", help="draw no images of best and worst cases")


def update(argv: Sequence[str]) -> int:
    """Run ``em-bench leaderboard update``; exit status 1 if something failed that is no fault of a submission."""
    parser = _parser(
        "update",
        "Score every open pull request against the reference labels, comment, merge, record, and make the page.\n"
        "Safe to interrupt and to run again; does nothing where nothing is new.",
        "em-bench leaderboard update --submissions my-lab/em-organelle-submissions \\\n"
        "      --reference my-lab/em-organelle-wild-labels --out site --publish-to my-lab/em-organelle-leaderboard",
    )
    add = parser.add_argument
    add("--submissions", required=True, metavar="ORG/NAME", help="the repository that takes submissions")
    _add_scoring(parser)
    _add_site(parser)
    _add_hub(parser)
    add("--once", type=int, metavar="PR", help="only this pull request, also if it was refused before")
    add("--close-refused", action="store_true", help="close pull requests that cannot be scored")
    add("--max-gigabytes", type=float, default=20.0, metavar="G", help="downloaded of one submission (default: 20)")
    add("--max-files", type=int, default=50_000, metavar="N", help="of one submission (default: 50000)")
    add("--dry-run", action="store_true", help="score, and write the page here, but change nothing on the Hub")
    arguments = parser.parse_args(argv)
    from em_bench_eval.leaderboard.fetching import Limits
    from em_bench_eval.leaderboard.update import Options, Update

    hub = _hub(arguments)
    options = Options(
        limits=Limits(arguments.max_files, int(arguments.max_gigabytes * 2**30)),
        close_refused=arguments.close_refused,
        dry_run=arguments.dry_run,
        once=arguments.once,
    )
    with _alone(arguments), _advised(arguments):
        _check_shown(hub, arguments)
        run = Update(hub, _judge(arguments), _work(arguments), options)
        results = run.run()
        if arguments.dry_run:
            _make_site(hub, arguments, lambda: results)
        else:
            _make_site(hub, arguments, None)
    print(f"{len(results)} results; {len(run.report.failed)} things to look at")
    return 1 if run.report.failed else 0


def rebuild(argv: Sequence[str]) -> int:
    """Run ``em-bench leaderboard rebuild``."""
    parser = _parser(
        "rebuild",
        "Make the page again from the results that there are: of a submissions repository, or of a local folder.",
        "em-bench leaderboard rebuild --submissions my-lab/em-organelle-submissions --out site",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--submissions", metavar="ORG/NAME", help="the repository with the results")
    source.add_argument("--results", type=Path, metavar="FOLDER", help="a folder that `leaderboard add` wrote")
    _add_site(parser)
    _add_hub(parser)
    arguments = parser.parse_args(argv)
    from em_bench_eval.leaderboard.site_update import STATE

    arguments.dry_run = False
    with _alone(arguments), _advised(arguments):
        (arguments.out / STATE).unlink(missing_ok=True)
        if arguments.submissions is not None:
            _make_site(_hub(arguments), arguments, None)
        else:
            _local_site(arguments)
    return 0


def add(argv: Sequence[str]) -> int:
    """Run ``em-bench leaderboard add``."""
    parser = _parser(
        "add",
        "Score a submission that lies here, without the Hub: the same verdict, scores and page.",
        "em-bench leaderboard add predictions/unet --reference em-organelle-wild --results board --out site",
    )
    parser.add_argument("submission", type=Path, metavar="FOLDER", help="a folder with submission.yaml and predictions")
    _add_scoring(parser)
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER", help="keeps results and pictures")
    _add_site(parser)
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for caches (default: SITE.work)")
    arguments = parser.parse_args(argv)
    from em_bench_eval.leaderboard.hub_results import PICTURES
    from em_bench_eval.leaderboard.judge import pack_pictures
    from em_bench_eval.leaderboard.results import read_folder, write_file, write_folder

    if not arguments.submission.is_dir():
        raise InputError(f"there is no submission {arguments.submission}", expected="a folder with submission.yaml")
    with _alone(arguments):
        judged = _judge(arguments)(arguments.submission)
        if judged.result is None:
            print("" if judged.refused is None else judged.refused.to_text())
            return 2
        results = read_folder(arguments.results)
        results.put(judged.result)
        own = judged.result["submission"]["hash"]
        if judged.pictures is not None:
            write_file(arguments.results / PICTURES / f"{own}.json.gz", pack_pictures(judged.pictures))
        write_folder(arguments.results, results)
        _local_site(arguments)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"update": update, "rebuild": rebuild, "add": add}


def _hub(arguments: argparse.Namespace) -> Submissions:
    from em_bench_eval.hub_faults import api_for
    from em_bench_eval.leaderboard.pulls import Submissions

    check_repo_id("--submissions", arguments.submissions, "my-lab/em-organelle-submissions")
    if arguments.publish_to is not None:
        check_repo_id("--publish-to", arguments.publish_to, "my-lab/em-organelle-leaderboard")
    arguments.token = token_of(arguments)
    return Submissions(api_for(arguments.token), arguments.submissions)


def _judge(arguments: argparse.Namespace) -> Any:
    from em_bench_eval.leaderboard.judge import Judge

    return Judge(
        arguments.reference,
        _work(arguments),
        workers=arguments.workers,
        minutes=arguments.max_minutes,
        pictures=not arguments.no_pictures,
        show_reference=arguments.show_reference,
        progress=sys.stderr.isatty(),
    )


def _check_shown(hub: Submissions, arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` if labels of a private dataset were to be drawn on a page."""
    if not arguments.show_reference or Path(arguments.reference).is_dir():
        return
    found = hub.patiently(
        "looking at the reference", lambda: hub.api.repo_info(arguments.reference, repo_type="dataset")
    )
    if found.private:
        raise InputError(
            "--show-reference would show labels that are private",
            found=f"{arguments.reference} is a private repository",
            remedy="leave --show-reference away",
        )


def _make_site(hub: Submissions, arguments: argparse.Namespace, read: Callable[[], Any] | None) -> None:
    from em_bench_eval.leaderboard.hub_results import read_results
    from em_bench_eval.leaderboard.site_update import remake

    def newest() -> Any:
        return read_results(hub, hub.head())

    space = None if arguments.dry_run else arguments.publish_to
    cache = _work(arguments) / "pictures"
    url = remake(hub, hub.api, read or newest, arguments.out, arguments.dataset, cache, space)
    print(f"page: {arguments.out / 'index.html'}" + (f", published: {url}" if url else ""))


def _local_site(arguments: argparse.Namespace) -> None:
    from em_bench_eval.leaderboard.hub_results import PICTURES
    from em_bench_eval.leaderboard.judge import unpack_pictures
    from em_bench_eval.leaderboard.results import read_folder
    from em_bench_eval.leaderboard.site_update import write_site

    def pictures() -> dict[str, Any]:
        found = (arguments.results / PICTURES).glob("*.json.gz")
        return {path.name.partition(".")[0]: unpack_pictures(path.read_bytes()) for path in sorted(found)}

    print(f"page: {write_site(read_folder(arguments.results), arguments.out, arguments.dataset, pictures)}")


def _work(arguments: argparse.Namespace) -> Path:
    return Path(arguments.work or arguments.out.with_name(f"{arguments.out.name}.work"))


def _advised(arguments: argparse.Namespace) -> Any:
    from em_bench_eval.hub_push import advised

    return advised("updating the leaderboard", getattr(arguments, "token", None))


def _alone(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    work = _work(arguments)
    work.mkdir(parents=True, exist_ok=True)
    return alone(work / "lock", f"using {work}", "wait for it, or name another --work and --out")
