"""``em-bench publish``: a dataset folder to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.cli import format_bytes
from em_bench_eval.errors import InputError
from em_bench_eval.hub_push import check_repo_id, check_tag

if TYPE_CHECKING:
    from dataset_builder.publish import Plan

DESCRIPTION = """Upload a dataset folder to the Hugging Face Hub, as a dataset repository that is private unless you say
--public.

Nothing is visible half: the files go to a draft pull request, are compared there with yours by content, and one merge
shows them all; the revision tag comes last. A run that was killed or cut off continues with the same command. Files
that an earlier revision has and this folder has not are deleted from the main branch, not from earlier revisions.

Sources that may not be redistributed are never uploaded: recipes/ then says how users build them. What em-bench build
did not write stays at home.

With --private-labels the rows of a fold keep their images and lose their labels, which go to a second repository that
is always private. A repository that ever showed these labels is refused: its history would still have them.
"""
EXAMPLES = """examples:
  em-bench publish em-organelle-wild --to my-lab/em-organelle-wild --dry-run
      what would be uploaded, what stays at home and why, how many bytes; sends nothing, needs no network
  em-bench publish em-organelle-wild --to my-lab/em-organelle-wild --revision-tag v1
  em-bench publish em-organelle-wild --to my-lab/em-organelle-wild --revision-tag v1 --public
      the same, and visible to everybody once it is complete

  em-bench publish em-organelle-wild --to my-lab/em-organelle-wild --private-labels test --public
      the test split without labels for everybody, and my-lab/em-organelle-wild-labels with them, private

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
    parser.add_argument(
        "--private-labels", nargs="+", choices=("test", "validation"), default=[], metavar="FOLD", help="test, mostly"
    )
    parser.add_argument(
        "--labels-to", metavar="ORG/NAME", help="private repository for these labels (default: --to with -labels)"
    )
    parser.add_argument("--dry-run", action="store_true", help="quote files and bytes, and send nothing")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a file with one line, the access token")
    arguments = parser.parse_args(argv)
    check_repo_id("--to", arguments.to, "my-lab/em-organelle-wild")
    tag = check_tag(arguments.revision_tag)
    private = sorted(set(arguments.private_labels))
    labels_to = arguments.labels_to or f"{arguments.to}-labels"
    check_repo_id("--labels-to", labels_to, "my-lab/em-organelle-wild-labels")
    if labels_to == arguments.to or (arguments.labels_to and not private):
        raise InputError("--labels-to names a second repository for --private-labels", found=arguments.labels_to)

    from dataset_builder.publish import planned
    from dataset_builder.publish import publish as publish_plan
    from em_bench_eval.hub_push import show_files, tell, token_of
    from em_bench_eval.hub_upload import Repository

    token = token_of(arguments)
    to = Repository(arguments.to, "dataset", public=arguments.public)
    hidden = Repository(labels_to, "dataset")
    with planned(arguments.folder, arguments.without, private, only_quote=arguments.dry_run) as plan:
        seen = "public" if arguments.public else "private"
        print(f"{arguments.folder} -> {arguments.to} (dataset repository, {seen})")
        _show(plan)
        show_files(to, plan.files)
        if private:
            print(f"  hidden   labels of {', '.join(private)}: they go to {labels_to}, which stays private")
            show_files(hidden, plan.labels)
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return 0
        done = publish_plan(plan, to, tag, token, labels_to=hidden)
    tell(done)
    revision = f', revision="{tag}"' if tag else ""
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
