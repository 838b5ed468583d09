"""Write docs/results.md and its picture from the folders that scripts/results.sh made.

python scripts/results_table.py OUT --dataset DATASET [--docs docs]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parents[1] / "docs"
SHOWN = ("lucchipp", "vnc_sstem", "hela_sbfsem")
COLUMNS = (
    ("volume", "mito/dice__instance", "instance Dice, ids of the volume"),
    ("slice", "mito/dice__instance", "instance Dice, ids of the slice"),
    ("slice", "mito/pq", "PQ, ids of the slice"),
    ("volume", "mito/semantic_dice", "semantic Dice"),
)


def read_runs(out: Path) -> list[dict[str, Any]]:
    """One entry per finished run: names, scores by kind of reference id, and what the checkpoint says."""
    runs = []
    for folder in sorted(out.glob("*-*-*")):
        model, source, seed = folder.name.rsplit("-", 2)
        paths = {kind: folder / kind / "score.json" for kind in ("volume", "slice")}
        if all(path.is_file() for path in paths.values()):
            scores = {kind: json.loads(path.read_text())["groups"] for kind, path in paths.items()}
            training = json.loads((folder / "checkpoint" / "config.json").read_text())["training"]
            runs.append({"model": model, "source": source, "seed": seed, "scores": scores, "training": training})
    return runs


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a row per model, training source and test source; mean over seeds, and each seed's value."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        grouped[run["model"], run["source"]].append(run)
    head = ["model", "trained on", "tested on", *(title for _, _, title in COLUMNS), "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (model, source), same in sorted(grouped.items()):
        for tested in SHOWN:
            cells = [
                cell([run["scores"][kind][f"source={tested}"].get(key) for run in same]) for kind, key, _ in COLUMNS
            ]
            where = f"**{tested}**" if tested == source else tested
            lines.append("| " + " | ".join([model, source, where, *cells, str(len(same))]) + " |")
    return "\n".join(lines)


def cell(values: list[float | None]) -> str:
    """``0.58 (0.57, 0.59)``: the mean, and every seed."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.fmean(known):.3f}" + (f" ({', '.join(f'{v:.3f}' for v in known)})" if len(known) > 1 else "")


def costs(runs: list[dict[str, Any]]) -> str:
    """Markdown: parameters, steps and minutes of training, by model."""
    lines = ["| model | steps | crops per step | crop | minutes, each run |", "|---" * 5 + "|"]
    for model in sorted({run["model"] for run in runs}):
        of_one = [run["training"] for run in runs if run["model"] == model]
        recipe = of_one[0]["recipe"]
        minutes = ", ".join(f"{training['minutes']:.1f}" for training in of_one)
        lines.append(f"| {model} | {recipe['steps']} | {recipe['batch_size']} | {recipe['crop']} | {minutes} |")
    return "\n".join(lines)


def picture(out: Path, dataset: str, runs: list[dict[str, Any]], path: Path) -> None:
    """A slice of each source: image, reference, and what each model (trained on that source, first seed) says."""
    from PIL import Image, ImageDraw, ImageFont

    from em_bench_eval.align import align_image, align_mask
    from em_bench_eval.rows import decode_row, open_rows, read_predictions

    rows = open_rows(dataset, "wild", "test")
    first: dict[str, dict[str, Path]] = defaultdict(dict)
    for run in runs:
        first[run["source"]].setdefault(run["model"], out / f"{run['model']}-{run['source']}-{run['seed']}" / "volume")
    strips = []
    for source in sorted(first):
        index = list(rows["source"]).index(source)
        row = decode_row(rows[index])
        gray = align_image(row.image, row.pixel_size_nm)[:480, :480]
        tiles = [("image", None), ("reference", row.instances)]
        for model, folder in sorted(first[source].items()):
            found = next(p for p in read_predictions(folder) if p.record_id == row.record_id)
            tiles.append((model, found.instances))
        drawn = []
        for title, ids in tiles:
            shown = None if ids is None else align_mask(ids, row.pixel_size_nm)[:480, :480]
            tile = Image.fromarray(coloured(gray, shown)).resize((320, 320 * gray.shape[0] // gray.shape[1]))
            pen, font = ImageDraw.Draw(tile), ImageFont.load_default(size=17)
            pen.rectangle((0, 0, 12 + pen.textlength(f"{source}: {title}", font), 25), fill=(20, 20, 20))
            pen.text((6, 2), f"{source}: {title}", fill=(255, 255, 255), font=font)
            drawn.append(np.asarray(tile))
        strips.append(np.concatenate(drawn, axis=1))
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(strip, [(0, 0), (0, width - strip.shape[1]), (0, 0)], constant_values=255) for strip in strips]
    partial = path.with_name(f".partial-{path.name}")
    Image.fromarray(np.concatenate(padded)).quantize(192).save(partial, format="PNG", optimize=True)
    os.replace(partial, path)


def coloured(gray: np.ndarray, ids: np.ndarray | None) -> np.ndarray:
    """Instances as translucent colours over the image, ``(y, x, 3)`` uint8."""
    from em_bench_eval.colours import instance_colours

    base = np.repeat(np.clip(gray, 0, 255)[..., None], 3, axis=2)
    if ids is not None:
        for id_, colour in instance_colours(np.unique(ids[ids > 0]).tolist()).items():
            base[ids == id_] = 0.45 * base[ids == id_] + 0.55 * np.array(colour)
    return base.astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    runs = read_runs(options.out)
    if not runs:
        raise SystemExit(f"{options.out} holds no finished run; scripts/results.sh makes them")
    text = (options.docs / "results.template.md").read_text()
    device = os.environ.get("DEVICE_NOTE", "two CPU cores, one thread per training")
    for name, value in (("TABLE", table(runs)), ("COSTS", costs(runs)), ("DEVICE", device)):
        text = text.replace("{{" + name + "}}", value)
    partial = options.docs / ".partial-results.md"
    partial.write_text(text)
    picture(options.out, options.dataset, runs, options.docs / "results.png")
    os.replace(partial, options.docs / "results.md")
    print(options.docs / "results.md")


if __name__ == "__main__":
    main()
