"""``em-bench table``: scores in the layout of the paper's tables, beside the paper's rows, checked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def table(argv: Sequence[str]) -> int:
    """Run ``em-bench table``; see ``em-bench table --help``."""
    parser = argparse.ArgumentParser(
        prog="em-bench table",
        description="Set scores in the layout of the paper's Table 1 (homogeneous) and Table 2 (wild), beside the rows "
        "that the paper prints, and say which printed average is not the mean of its row. The printed rows were not "
        "scored by this metric: the paper does not say how it aggregates.",
        epilog="examples:\n  em-bench table predictions/*/score.json\n  em-bench table --aggregation pooled score.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scores", nargs="*", type=Path, metavar="SCORE.json", help="written by `em-bench score`")
    parser.add_argument(
        "--aggregation", default="instance", help="instance, reference, matched, pooled or size (default: instance)"
    )
    parser.add_argument("--group", default="all", help="all, domain=in, domain=out, source=NAME (default: all)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--only-ours", action="store_true", help="leave the paper's rows out")
    arguments = parser.parse_args(argv)
    from em_bench_eval.errors import InputError
    from em_bench_eval.paper_tables import PUBLISHED, PaperRow, layout, row_of_score
    from em_bench_eval.row import read_json
    from em_bench_eval.score_dataset import SCORE_FORMAT

    rows: dict[str, list[PaperRow]] = {name: [] if arguments.only_ours else list(PUBLISHED[name]) for name in PUBLISHED}
    for path in arguments.scores:
        score = read_json(path, "a score written by `em-bench score`")
        config = score.get("dataset", {}).get("config")
        if score.get("format") != SCORE_FORMAT or config not in rows:
            raise InputError(
                f"{path} is no score of the benchmark",
                found=f"format {score.get('format')!r}, configuration {config!r}",
                expected=f"format {SCORE_FORMAT!r}, configuration {' or '.join(rows)}",
            )
        rows[config].append(row_of_score(score, arguments.aggregation, arguments.group))
    print("\n\n".join(layout(name, of, markdown=arguments.markdown) for name, of in rows.items() if of))
    return 0
