"""``em-bench explain``: what a key of a score means."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def explain(argv: Sequence[str]) -> int:
    """Run ``em-bench explain``; see ``em-bench explain --help``."""
    parser = argparse.ArgumentParser(
        prog="em-bench explain",
        description="Say what a key of a score means: definition, formula, range, aggregation, edge cases, reference. "
        "The texts come from the declarations that compute the numbers.",
        epilog="examples:\n  em-bench explain mito/dice__instance\n  em-bench explain --family network\n"
        "  em-bench explain            (lists every key)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("keys", nargs="*", metavar="KEY", help="dice__instance, or mito/dice__instance")
    parser.add_argument("--family", help="list one family: instance, panoptic, network, boundary, semantic, count")
    parser.add_argument("--markdown", action="store_true", help="print docs/metrics.md")
    arguments = parser.parse_args(argv)
    from em_bench_eval import explain as texts

    if arguments.markdown:
        print(texts.as_markdown(), end="")
    elif arguments.keys:
        print("\n\n".join(texts.as_text(key) for key in arguments.keys))
    else:
        print(texts.as_list(arguments.family))
        print("\nem-bench explain KEY says what a key means in full.")
    return 0
