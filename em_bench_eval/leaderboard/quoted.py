"""The published rows of the benchmark's paper: quoted as printed, never ranked, with what does not add up beside."""

from __future__ import annotations

from em_bench_eval.leaderboard.site_board import quoted_value
from em_bench_eval.leaderboard.site_text import link, text
from em_bench_eval.leaderboard.site_values import SHORT_TITLES
from em_bench_eval.paper_tables import PUBLISHED, PaperRow, faults
from em_bench_eval.schema import ORGANELLES

PAPER = "In-the-wild EM organelle benchmark"
ADDRESS = "https://arxiv.org/abs/2601.12464"


def quoted_table(config: str) -> str:
    """Return the paper's table of a configuration as HTML; "" where the paper has none."""
    rows = PUBLISHED.get(config, ())
    if not rows:
        return ""
    number = 1 + list(PUBLISHED).index(config)
    heads = '<th scope="col" class="who">Model, as printed</th>'
    for name in ("macro", *ORGANELLES):
        for place, term in enumerate(("Dice", "IoU")):
            title = "Printed average" if name == "macro" else SHORT_TITLES[name]
            opens = " opens" if place == 0 else ""
            heads += f'<th scope="col" class="num{opens}"><span class="top">{title}</span> '
            heads += f'<span class="sub">{term}</span></th>'
    heads += '<th scope="col" class="checked">Checked</th>'
    caption = f"Table {number} of the paper, {config}: quoted, not re-scored"
    return (
        f'<section class="quoted" aria-label="{text(caption)}"><h3>Quoted, not re-scored</h3>'
        f"<p>Table {number} of {link(ADDRESS, PAPER)} as printed, unranked. These numbers come from other images and "
        "from an aggregation that the paper does not state, so none of them is comparable with a row above.</p>"
        f'<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="quoted"><caption class="sr">{text(caption)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(map(_row, rows))}</tbody></table></div></div></section>"
    )


def _row(row: PaperRow) -> str:
    cells = ""
    for pair in (row.average, *(row.values.get(name) for name in ORGANELLES)):
        cells += "".join(quoted_value(value) for value in pair or (None, None))
    found = faults(row)
    notes = "".join(f"<li>{text(fault)}</li>" for fault in found)
    checked = f"<ul>{notes}</ul>" if notes else "nothing found"
    return (
        f'<tr><th scope="row" class="who"><span class="name">{text(row.model)}</span>'
        f'<span class="links"><span class="chip quote">quoted</span></span></th>{cells}'
        f'<td class="checked">{checked}</td></tr>'
    )
