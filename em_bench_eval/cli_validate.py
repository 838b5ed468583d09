"""``em-bench validate``: the leaderboard's own verdict on a submission, offline; and a first draft of its manifest."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.whole_file import write_whole

EPILOG = """examples:
  em-bench validate predictions/unet --draft --dataset em-organelle-wild
      writes predictions/unet/submission.yaml: what is known filled in, the rest marked FILL_IN
  em-bench validate predictions/unet --dataset em-organelle-wild
      what the leaderboard would say: all faults at once; exit status 0 (accepted) or 2
  em-bench validate predictions/unet --dataset em-organelle-wild --json > verdict.json

Works without the test labels: ids, shapes and pixel sizes are all it needs. Forms, limits and the manifest are
described in docs/submissions.md.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench validate",
        description="Judge a submission to the leaderboard as the leaderboard does, without sending anything.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("submission", type=Path, metavar="SUBMISSION", help="folder with predictions and submission.yaml")
    add(
        "--dataset",
        metavar="DATASET",
        help="dataset folder, or <org>/<name> on the Hub; without it, images that are missing, extra or of another "
        "shape go unnoticed",
    )
    add("--draft", action="store_true", help="write submission.yaml instead, for you to complete")
    add("--json", action="store_true", help="print the verdict as JSON")
    return parser


def validate(argv: list[str]) -> int:
    """Run ``em-bench validate``; see ``em-bench validate --help``."""
    arguments = _parser().parse_args(argv)
    check_folder(arguments.submission)
    return _draft(arguments) if arguments.draft else _judge(arguments)


def check_folder(submission: Path) -> None:
    """Raise ``InputError`` if there is no such folder."""
    if not submission.is_dir():
        raise InputError(
            f"there is no submission {submission}",
            found="a file (unpack archives first)" if submission.exists() else "no such folder",
            expected="a folder that em-bench predict wrote, or one of the other forms (docs/submissions.md)",
        )


def _judge(arguments: argparse.Namespace) -> int:
    from em_bench_eval.leaderboard.guarded import check_guarded
    from em_bench_eval.leaderboard.items import expected_items
    from em_bench_eval.leaderboard.manifest import CONFIGS, MANIFEST_FILE
    from em_bench_eval.schema import FOLDS

    if not (arguments.submission / MANIFEST_FILE).exists() and not arguments.json:
        print(f"no {MANIFEST_FILE} yet; write one: em-bench validate {arguments.submission} --draft", file=sys.stderr)
    expected = None
    if arguments.dataset is not None:
        known = _info(arguments.submission)
        config, split = known.get("config", "wild"), known.get("split", "test")
        config, split = (config if config in CONFIGS else "wild"), (split if split in FOLDS else "test")
        expected = expected_items(arguments.dataset, config, split)
    verdict = check_guarded(arguments.submission, expected, progress=sys.stderr.isatty())
    if arguments.json:
        print(json.dumps(verdict.to_json(), indent=2, allow_nan=False))
    else:
        print(verdict.to_text())
    return 0 if verdict.ok else 2


def _info(folder: Path) -> dict[str, Any]:
    """Return what the manifest says, and for the rest what ``em-bench predict`` recorded."""
    from em_bench_eval.leaderboard.manifest import read_manifest
    from em_bench_eval.leaderboard.safe_read import read_json
    from em_bench_eval.leaderboard.verdict import Faults

    path = folder / "prediction.json"
    info = read_json(path, Faults(), path.name) if path.is_file() else None
    stated = read_manifest(folder, Faults())[1]
    recorded = info if isinstance(info, dict) else {}
    return {**{name: value for name, value in recorded.items() if isinstance(value, (str, bool))}, **stated}


def _draft(arguments: argparse.Namespace) -> int:
    from em_bench_eval.leaderboard.items import expected_items, split_hash
    from em_bench_eval.leaderboard.manifest import MANIFEST_FILE, draft, gaps

    path = arguments.submission / MANIFEST_FILE
    if os.path.lexists(path):
        raise InputError(f"{path} is there already", remedy="complete it, or remove it for a new draft")
    info = _info(arguments.submission)
    known = {name: str(info[name]) for name in ("model", "config", "split") if info.get(name)}
    known = {"config": "wild", "split": "test", **known}
    if info.get("prompts") not in (None, "", "none"):  # of em-bench sam: made from the reference
        known["prompts"] = str(info["prompts"])
    if info.get("class_agnostic") is True:
        known["class_agnostic"] = "true"
    if arguments.dataset is not None:
        expected = expected_items(arguments.dataset, known["config"], known["split"])
        known["split_hash"] = split_hash(expected.items.values())
    text = draft(known)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    print(f"wrote {path}; for you to complete: {', '.join(gaps(text))}")
    if arguments.dataset is None:
        print("name the dataset with --dataset to have split_hash filled in", file=sys.stderr)
    return 0
