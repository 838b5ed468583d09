"""RETINA's published table: another task (semantic IoU on five data sets), quoted as printed and never ranked.

Quoted from Xing, Xie and Bader 2025, PLoS Comput Biol 21(5): e1013115, Table 1: means of three runs.
"""

from __future__ import annotations

from em_bench_eval.leaderboard.site_board import quoted_value
from em_bench_eval.leaderboard.site_text import link, text

ADDRESS = "https://doi.org/10.1371/journal.pcbi.1013115"
TITLE = "RETINA, PLoS Comput Biol 2025"
DATASETS = (
    *("CREMI synaptic clefts", "Guay", "Kasthuri++", "Perez"),
    *("Perez: lysosomes", "Perez: mitochondria", "Perez: nuclei", "Perez: nucleoli", "UroCell"),
)
MODELS: dict[str, tuple[float | None, ...]] = {
    "UNet-ResNet50, random": (0.000, 0.452, 0.904, 0.850, 0.845, 0.841, 0.984, 0.731, 0.203),
    "UNet-ResNet50, CEM500K": (0.246, 0.468, 0.915, 0.905, 0.854, 0.887, 0.990, 0.889, 0.598),
    "TransUNet, random": (0.294, 0.266, 0.894, 0.893, 0.845, 0.847, 0.990, 0.891, 0.579),
    "3D TransUNet, random": (0.313, 0.493, 0.905, None, None, None, None, None, 0.573),
    "nnU-Net, random": (0.243, 0.495, 0.898, None, None, None, None, None, 0.567),
    "RETINA": (0.327, 0.552, 0.916, 0.919, 0.885, 0.890, 0.991, 0.910, 0.610),
}
PEREZ, PARTS = 3, slice(4, 8)
NOTES = (
    "Voxel-wise IoU of classes, not of instances: no column here corresponds to one above.",
    "Perez is the mean of its four parts, right to the last digit; it has 2D images only, so no 3D models.",
    "The random UNet-ResNet50 has 0.000 on clefts: in the published code its random encoder is frozen, which the "
    "table does not say. A random encoder that is trained is a different, fairer baseline.",
    "The paper says that only transformer layers are transferred from pre-training; the published code transfers the "
    "convolutional layers, too.",
)


def retina_table() -> str:
    """Return the table as HTML."""
    heads = '<th scope="col" class="who">Model, as printed</th>'
    heads += "".join(f'<th scope="col" class="num">{text(name)}</th>' for name in DATASETS)
    rows = "".join(
        f'<tr><th scope="row" class="who"><span class="name">{text(model)}</span><span class="links">'
        f'<span class="chip quote">quoted</span></span></th>{"".join(map(quoted_value, values))}</tr>'
        for model, values in MODELS.items()
    )
    notes = "".join(f"<li>{text(note)}</li>" for note in NOTES)
    caption = "Table 1 of the RETINA paper, semantic IoU: quoted, not re-scored"
    return (
        f'<section class="config" aria-labelledby="retina"><h2 id="retina">RETINA\'s data sets</h2>'
        f'<section class="quoted" aria-label="{text(caption)}"><h3>Quoted, not re-scored</h3>'
        f"<p>Table 1 of {link(ADDRESS, TITLE)} as printed, unranked: semantic IoU, means of three runs.</p>"
        f'<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="quoted"><caption class="sr">{text(caption)}</caption><thead><tr>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div></div><ul class="small">{notes}</ul></section></section>'
    )
