"""``em-bench push``: a dataset, the metric, a model or the leaderboard to the Hugging Face Hub."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from em_bench_eval.errors import did_you_mean

# what -> (module, function, one line of help); other folders are named as strings only
KINDS: dict[str, tuple[str, str, str]] = {
    "dataset": ("dataset_builder.cli_publish", "publish", "a dataset folder; test labels may stay private"),
    "metric": ("em_bench_eval.hub_metric", "push_metric", "the metric, as the Space that evaluate.load reads"),
    "model": ("baselines.hub.hub_model", "push_model", "a checkpoint, with its card, scores and licences"),
    "leaderboard": ("em_bench_eval.leaderboard.hub_space", "push_leaderboard", "the page, and where to submit"),
}
EXAMPLES = """examples:
  em-bench push dataset em-organelle-wild --to my-lab/em-organelle-wild --private-labels test --dry-run
  em-bench push metric --to my-lab/em_bench_eval --public
  em-bench push model runs/unet --to my-lab/em-organelle-unet --dataset em-organelle-wild --score predictions/score.json
  em-bench push leaderboard --to my-lab/em-organelle-leaderboard --submissions my-lab/em-organelle-submissions \\
      --dataset my-lab/em-organelle-wild

em-bench push WHAT --help says more. Private by default; --dry-run lists files and sizes and sends nothing."""


def push(argv: Sequence[str]) -> int:
    """Hand over to the push of one kind; returns its exit status."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    kind, rest = arguments[0], arguments[1:]
    if kind not in KINDS:
        print(f"em-bench push: unknown {kind!r}; {did_you_mean(kind, KINDS)}\n\n{_usage()}", file=sys.stderr)
        return 2
    module, function, _ = KINDS[kind]
    command: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return command(rest)


def _usage() -> str:
    width = max(map(len, KINDS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, _, about) in KINDS.items()]
    head = ["usage: em-bench push WHAT [options]", "", "Upload to the Hugging Face Hub.", "", "what:"]
    return "\n".join([*head, *lines, "", EXAMPLES])
