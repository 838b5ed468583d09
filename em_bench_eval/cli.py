"""``em-bench``: finds the command and hands over. Imports nothing heavy, so it answers at once."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from em_bench_eval import __version__
from em_bench_eval.errors import InputError, did_you_mean

# command -> (module, function, one line of help); other folders are named as strings only
COMMANDS: dict[str, tuple[str, str, str]] = {
    "sources": ("dataset_builder.cli", "sources", "list the data sources: licence, organelles, voxel size"),
    "fetch": ("dataset_builder.cli_fetch", "fetch", "download a source: resumable, verified, several mirrors"),
    "inspect": ("dataset_builder.cli_inspect", "inspect", "show what is in a file, folder or URL; draft a spec"),
    "build": ("dataset_builder.cli", "build", "build the benchmark dataset folder from one or more sources"),
    "check": ("dataset_builder.cli_check", "check", "look for faults in a dataset; a page with pictures"),
    "cite": ("dataset_builder.cli_cite", "cite", "print the BibTeX of what a dataset, split or source holds"),
    "publish": ("dataset_builder.cli_publish", "publish", "upload a dataset folder to the Hugging Face Hub"),
    "label": ("lpa.cli", "label", "turn a semantic volume into instances, at any size"),
    "pretrain": ("baselines.cli_pretrain", "pretrain", "pre-train an encoder on images without labels"),
    "train": ("baselines.cli_train", "train", "train a baseline on a dataset folder or Hub dataset"),
    "predict": ("baselines.cli_predict", "predict", "predict images or volumes of any size, decoded to instances"),
    "sam": ("baselines.cli_sam", "sam", "predict with Segment Anything or micro-SAM, automatic or prompted"),
    "export": ("baselines.cli_export", "export", "export a dataset for nnU-Net, or as plain files for other programs"),
    "import": ("baselines.cli_import", "import_", "read results of nnU-Net, MitoNet or anything else as predictions"),
    "score": ("em_bench_eval.cli_score", "score", "score predictions against the reference, per organelle"),
    "table": ("em_bench_eval.cli_table", "table", "set scores in the layout of the paper, beside its rows"),
    "explain": ("em_bench_eval.cli_explain", "explain", "say what a key of a score means"),
    "mismatch": ("baselines.cli_mismatch", "mismatch", "say what a patch, a slice and a volume cost, per organelle"),
    "report": ("em_bench_eval.cli_report", "report", "write a leaderboard row and an HTML page with pictures"),
    "validate": ("em_bench_eval.cli_validate", "validate", "judge a submission as the leaderboard does"),
    "push": ("em_bench_eval.cli_push", "push", "upload a dataset, the metric, a model or the leaderboard to the Hub"),
    "submit": ("em_bench_eval.cli_submit", "submit", "send predictions to the leaderboard, as a pull request"),
    "leaderboard": ("em_bench_eval.cli_leaderboard", "leaderboard", "for maintainers: score submissions, make a page"),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help_line}" for name, (_, _, help_line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: em-bench COMMAND [options]",
            "",
            "The benchmark for organelle instance segmentation in electron microscopy.",
            "",
            "commands, in the order of use:",
            *lines,
            "",
            "em-bench COMMAND --help explains a command and shows an example.",
        ]
    )


REMEDIES = {
    errno.EACCES: "change its permissions, or name a place that you may read and write",
    errno.EPERM: "change its permissions, or name a place that you may read and write",
    errno.EROFS: "this file system can only be read: name another place for what is written",
    errno.ENOSPC: "free space, or name a place on another disk",
    errno.EDQUOT: "free space, or name a place on another disk",
    errno.ENOENT: "check the path",
    errno.EEXIST: "something else of this name is there: choose another name",
    errno.ENOTDIR: "a part of this path is a file, where a folder is needed: check the path",
    errno.EISDIR: "this is a folder, where a file is needed: check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _told(error: OSError) -> InputError:
    """Say which file could not be read or written, why, and what to do about it."""
    return InputError(
        f"cannot read or write {os.fsdecode(error.filename)}",
        found=error.strerror or type(error).__name__,
        remedy=REMEDIES.get(error.errno or 0, "check the file and the disk, then run the same command again"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 2 unusable input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(f"em-bench {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"em-bench: unknown command {name!r}; {did_you_mean(name, COMMANDS)}\n\n{_usage()}", file=sys.stderr)
        return 2
    module, function, _ = COMMANDS[name]
    command: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    try:
        return command(rest)
    except InputError as error:
        print(f"em-bench {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"em-bench {name}: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `em-bench sources | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if not isinstance(error.filename, (str, bytes, os.PathLike)):  # no file of the user's: a fault of ours
            raise
        print(f"em-bench {name}: {_told(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
