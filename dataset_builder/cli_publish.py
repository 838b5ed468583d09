"""``em-bench publish``: a dataset folder to the Hugging Face Hub."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.cli import format_bytes
from em_bench_eval.errors import InputError

if TYPE_CHECKING:
    from dataset_builder.publish import Plan

DESCRIPTION = """Upload a dataset folder to the Hugging Face Hub, as a dataset repository that is private unless you say
--public.

Nothing is visible half: the files go to a draft pull request, are compared there with yours by content, and one merge
shows them all; the revision tag comes last. A run that was killed or cut off continues with the same command. Files
that an earlier revision has and this folder has not are deleted from the main branch, not from earlier revisions.

Sources that may not be redistributed are never uploaded: recipes/ then says how users build them. What em-bench build
did not write stays at home.
"""
EXAMPLES = """examples:
  em-bench publish em-organelle-wild --to my-lab/em-organelle-wild --dry-run
      what would be uploaded, what stays at home and why, how many bytes; sends nothing, needs no network
  em-bench publish em-organelle-wild --to my-lab/em-organelle-wild --revision-tag v1
  em-bench publish em-organelle-wild --to my-lab/em-organelle-wild --revision-tag v1 --public
      the same, and visible to everybody once it is complete

The token is that of `hf auth login` or HF_TOKEN, or the line in --token-file; it is never printed or stored.
Then: load_dataset("my-lab/em-organelle-wild", "wild", split="test", revision="v1", streaming=True)
"""


def publish(argv: Sequence[str]) -> int:
    """Publish a dataset folder, or say what that would be."""
    parser = argparse.ArgumentParser(
        prog="em-bench publish",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that em-bench build wrote")
    parser.add_argument("--to", required=True, metavar="ORG/NAME", help="the dataset repository, made if not there")
    parser.add_argument("--revision-tag", metavar="TAG", help="name this content for good, as v1; done last")
    parser.add_argument("--public", action="store_true", help="let everybody see the repository once it is complete")
    parser.add_argument(
        "--without", action="append", default=[], metavar="SOURCE", help="leave a source out altogether; repeatable"
    )
    parser.add_argument("--dry-run", action="store_true", help="quote files and bytes, and send nothing")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a file with one line, the access token")
    arguments = parser.parse_args(argv)
    part = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
    if not re.fullmatch(f"{part}/{part}", arguments.to) or ".." in arguments.to or "--" in arguments.to:
        raise InputError(
            "--to names a repository", found=arguments.to, expected="ORG/NAME, as my-lab/em-organelle-wild"
        )
    if arguments.revision_tag is not None and not re.fullmatch(part, arguments.revision_tag):
        raise InputError("--revision-tag is a name", found=arguments.revision_tag, expected="for instance v1")
    if arguments.revision_tag == "main":
        raise InputError("--revision-tag main is the name of the branch", expected="another name, as v1")

    from dataset_builder.publish import planned
    from dataset_builder.publish import publish as publish_plan
    from em_bench_eval.hub_faults import read_token
    from em_bench_eval.hub_upload import Repository

    token = None if arguments.token_file is None else read_token(arguments.token_file)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C
    with planned(arguments.folder, arguments.without, only_quote=arguments.dry_run) as plan:
        seen = "public" if arguments.public else "private"
        print(f"{arguments.folder} -> {arguments.to} (dataset repository, {seen})")
        _show(plan)
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return 0
        to = Repository(arguments.to, "dataset", public=arguments.public)
        done = publish_plan(plan, to, arguments.revision_tag, token)
    print(
        f"published: {done.files} files, {format_bytes(done.bytes)} ({done.lfs_files} as LFS); sent now: "
        f"{done.sent_files}, deleted: {done.deleted_files}"
    )
    print("compared: every file there has the size and hash of the one here")
    print(f"{done.url} (commit {done.commit})")
    revision = f', revision="{arguments.revision_tag}"' if arguments.revision_tag else ""
    print(f'load it: datasets.load_dataset("{arguments.to}"{revision})')
    return 0


def _show(plan: Plan) -> None:
    from dataset_builder.publish import warnings

    width = max(len(verdict.source) for verdict in plan.judged)
    for verdict in plan.judged:
        how = "pixels" if verdict.as_pixels else "dropped" if verdict.dropped else "recipe"
        line = (
            f"  {how:<8} {verdict.source:<{width}}  {verdict.licence}  {verdict.rows} rows, {verdict.volumes} volumes"
        )
        print(line + (f"  ({verdict.reason})" if verdict.reason else ""))
        if verdict.source in plan.fingerprints:
            print(f"           rows fingerprint {plan.fingerprints[verdict.source]}")
    total, lfs = sum(plan.sizes.values()), plan.lfs
    in_lfs = sum(plan.sizes[name] for name in lfs)
    print(
        f"  upload   {len(plan.files)} files, {format_bytes(total)}: {len(lfs)} as LFS ({format_bytes(in_lfs)}), "
        f"{len(plan.files) - len(lfs)} in git ({format_bytes(total - in_lfs)})"
    )
    for entry in plan.left_out:
        print(f"  stays    {entry.what}: {entry.files} files, {format_bytes(entry.bytes)} ({entry.why})")
    for warning in warnings(plan):
        print(f"  mind     {warning}")
