"""``em-bench submit``: predictions to the leaderboard, as a pull request."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.cli_validate import check_folder
from em_bench_eval.hub_push import check_repo_id, size_text, token_of

if TYPE_CHECKING:
    from em_bench_eval.leaderboard.verdict import Verdict

DESCRIPTION = """Send predictions to a leaderboard: judged here first, as the leaderboard will, then sent as a pull
request that its maintainers score. Without a submission.yaml a draft of one is written for you to complete.

The same command continues an upload that was cut off, and sends corrections to the same pull request.
"""
EPILOG = """examples:
  em-bench submit predictions/unet --to my-lab/em-organelle-submissions --dataset my-lab/em-organelle-wild --dry-run
      the verdict, the files and their sizes; sends nothing
  em-bench submit predictions/unet --to my-lab/em-organelle-submissions --dataset my-lab/em-organelle-wild
      prints the address of the pull request, where the scores will appear as a comment

What you send becomes public with the repository. The token is that of `hf auth login` or HF_TOKEN, or the line in
--token-file; it is never printed or stored. docs/submissions.md describes the forms of predictions.
"""


def submit(argv: Sequence[str]) -> int:
    """Run ``em-bench submit``; exit status 2 if the submission would not be accepted."""
    parser = argparse.ArgumentParser(
        prog="em-bench submit",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("submission", type=Path, metavar="SUBMISSION", help="folder that em-bench predict wrote, or another form")
    add("--to", required=True, metavar="ORG/NAME", help="the repository that takes submissions")
    add("--dataset", metavar="DATASET", help="what was predicted: dataset folder, or ORG/NAME on the Hub; recommended")
    add("--name", metavar="TEAM/NAME", help="folder of the submission (default: from team and model)")
    add("--dry-run", action="store_true", help="judge, list files and sizes, and send nothing")
    add("--token-file", type=Path, metavar="FILE", help="a file with one line, the access token")
    arguments = parser.parse_args(argv)
    check_repo_id("--to", arguments.to, "my-lab/em-organelle-submissions")
    check_folder(arguments.submission)
    from em_bench_eval.leaderboard.manifest import MANIFEST_FILE

    if not (arguments.submission / MANIFEST_FILE).exists():
        return _draft(arguments)
    verdict = _judge(arguments)
    print(verdict.to_text())
    if not verdict.ok:
        print("\nnothing was sent", file=sys.stderr)
        return 2
    return _send(arguments, verdict)


def _draft(arguments: argparse.Namespace) -> int:
    from em_bench_eval.cli_validate import validate

    dataset = ["--dataset", arguments.dataset] if arguments.dataset else []
    validate([str(arguments.submission), "--draft", *dataset])
    print("complete it, then run the same command again; nothing was sent", file=sys.stderr)
    return 2


def _judge(arguments: argparse.Namespace) -> Verdict:
    from em_bench_eval.leaderboard.guarded import check_guarded
    from em_bench_eval.leaderboard.items import expected_items
    from em_bench_eval.leaderboard.manifest import read_manifest
    from em_bench_eval.leaderboard.verdict import Faults

    stated: dict[str, Any] = read_manifest(arguments.submission, Faults())[1]
    expected = None
    if arguments.dataset is not None:
        expected = expected_items(arguments.dataset, stated.get("config") or "wild", stated.get("split") or "test")
    return check_guarded(arguments.submission, expected, progress=sys.stderr.isatty())


def _send(arguments: argparse.Namespace, verdict: Verdict) -> int:
    from em_bench_eval.hub_faults import api_for
    from em_bench_eval.hub_push import advised
    from em_bench_eval.hub_upload import hashed
    from em_bench_eval.leaderboard.sending import folder_of
    from em_bench_eval.leaderboard.sending import submit as send
    from em_bench_eval.leaderboard.submission import own_files

    folder = folder_of(verdict.facts["team"], verdict.facts["model"], arguments.name)
    files = {name: arguments.submission / name for name in own_files(arguments.submission)}
    sizes = [path.stat().st_size for path in files.values()]
    print(f"\n{arguments.submission} -> {arguments.to}, {folder}: {len(files)} files, {size_text(sum(sizes))}")
    for name in list(files)[:20]:
        print(f"  {size_text(files[name].stat().st_size):>8}  {name}")
    if len(files) > 20:
        print(f"            ... and {len(files) - 20} more")
    if arguments.dry_run:
        print("dry run: nothing was sent")
        return 0
    token = token_of(arguments)
    with advised(f"submitting to {arguments.to}", token):
        sent = send(api_for(token), arguments.to, folder, hashed(files))
    if sent.number is None:
        print(f"nothing to send: it is merged already\n{sent.url}")
        return 0
    print(
        f"sent now: {sent.sent_files} files, deleted: {sent.deleted_files}; compared: all have the hash of those here"
    )
    print(f"pull request {sent.number}; the scores will be a comment there:\n{sent.url}")
    return 0
