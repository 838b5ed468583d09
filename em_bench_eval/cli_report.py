"""``em-bench report``: a leaderboard row and one self-contained HTML page from a scored prediction folder."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.errors import InputError

if TYPE_CHECKING:
    from em_bench_eval.report import Example
    from em_bench_eval.schema import Organelle

SCORE_FILE = "score.json"
ROW_FILE = "row.json"
PAGE_FILE = "index.html"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench report",
        description="Write a leaderboard row (row.json) and one self-contained HTML page (index.html) with the scores "
        "per organelle, domain and source, and pictures of several images.",
        epilog="example:\n  em-bench report predictions/unet em-organelle-wild --out report --images 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prediction", metavar="PRED", help="folder of em-bench predict, scored by em-bench score")
    parser.add_argument("reference", metavar="REF", help="dataset folder, or <org>/<name> on the Hub")
    parser.add_argument("--out", metavar="DIR", help="folder to write to (default: PRED/report)")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="number of images shown (default: 8)")
    return parser


def report(argv: list[str]) -> int:
    """Run ``em-bench report``; returns the exit status. Raises ``InputError`` for what the user can mend."""
    options = _parser().parse_args(argv)
    if options.images < 0:
        raise InputError("--images is negative", found=options.images, expected="0 or more")
    prediction = Path(options.prediction)
    out = Path(options.out) if options.out else prediction / "report"
    if out.exists() and not out.is_dir():
        raise InputError(f"cannot write to {out}", found="a file", expected="a folder, or a new name")

    score = read_score(prediction)
    from em_bench_eval.report import render_page
    from em_bench_eval.row import build_row, to_json

    row = build_row(score)
    if score.get("class_agnostic"):
        from em_bench_eval.report_agnostic import page_score, reword

        score = page_score(score)
    facts, examples = _read_examples(prediction, options.reference, score, options.images)
    page = render_page(score, row, facts, examples)
    page = reword(page) if score.get("class_agnostic") else page
    write_together(out, {ROW_FILE: to_json(row), PAGE_FILE: page})
    print(f"leaderboard row: {out / ROW_FILE}")
    print(f"report page:     {out / PAGE_FILE} ({len(page.encode()) / 1e6:.1f} MB, {len(examples)} images)")
    print(f"open it:         {(out / PAGE_FILE).resolve().as_uri()}")
    return 0


def read_score(prediction: Path) -> dict[str, Any]:
    """Read ``score.json`` of a prediction folder; raises ``InputError`` if it is missing, damaged or outdated."""
    from em_bench_eval.row import SCORE_FORMAT, check_values, read_json
    from em_bench_eval.rows import PREDICTIONS_FILE, read_prediction_info
    from em_bench_eval.settings import Settings

    info = read_prediction_info(prediction)
    path = prediction / SCORE_FILE
    again = f"run: em-bench score {prediction} REF"
    if not path.is_file():
        raise InputError(
            f"{prediction} is not scored yet", found=f"no {SCORE_FILE}", expected="a scored prediction", remedy=again
        )
    score = read_json(path, "a score written by `em-bench score`")
    needed = ("metric_version", "settings", "settings_hash", "prediction", "dataset", "images", "groups", "per_image")
    missing = [key for key in needed if key not in score]
    if score.get("format") != SCORE_FORMAT or missing or "all" not in score.get("groups", {}):
        found = f"format {score.get('format')!r}" + (f" without {', '.join(missing)}" if missing else "")
        raise InputError(f"{path} is not a complete score", found=found, expected=f"{SCORE_FORMAT!r}", remedy=again)
    known = {field.name for field in fields(Settings)}
    if set(score["settings"]) != known:
        raise InputError(
            f"{path} was written by another version of em-organelle-wild",
            found=f"settings {', '.join(sorted(score['settings']))}",
            expected=f"settings {', '.join(sorted(known))}",
            remedy=again,
        )
    newer = path.stat().st_mtime_ns < (prediction / PREDICTIONS_FILE).stat().st_mtime_ns
    if score["prediction"] != info or newer:
        raise InputError(
            f"{path} belongs to an earlier prediction",
            found="predictions written after it" if newer else "another model, dataset or settings in prediction.json",
            expected="a score of the predictions that lie beside it",
            remedy=again,
        )
    for record, values in score["per_image"].items():
        check_values({key: value for key, value in values.items() if "/n_" not in key}, f"{path}, image {record}")
    return score


def choose_images(
    dice_of: Mapping[str, float | None], facts: Mapping[str, tuple[str, str]], count: int
) -> dict[str, tuple[str, ...]]:
    """Choose images to show: worst, median and best by macro Dice, then spread over (domain, source) and within.

    ``dice_of`` maps record ids to macro instance Dice (None: undefined), ``facts`` to (source, domain). Returns record
    ids with their roles, grouped by domain, best score first. Depends on nothing but the arguments.
    """
    ranked = sorted((dice, record) for record, dice in dice_of.items() if dice is not None)
    roles: dict[str, tuple[str, ...]] = {}
    if ranked:
        places = (("worst", 0), ("best", len(ranked) - 1), ("median", (len(ranked) - 1) // 2))
        for role, place in places[: max(0, count)]:
            record = ranked[place][1]
            roles[record] = (*roles.get(record, ()), role)
    groups: dict[tuple[str, str], list[str]] = {}
    for record in sorted(dice_of):
        source, domain = facts[record]
        groups.setdefault((domain, source), []).append(record)
    while len(roles) < min(count, len(dice_of)):
        open_groups = [key for key, records in groups.items() if any(record not in roles for record in records)]
        records = groups[min(open_groups, key=lambda key: (sum(record in roles for record in groups[key]), key))]
        taken = [place for place, record in enumerate(records) if record in roles]
        # neighbouring slices look alike: take the one farthest from those shown, or the middle one
        ends = taken or [-1, len(records)]
        free = [place for place, record in enumerate(records) if record not in roles]
        roles[records[max(free, key=lambda place: min(abs(place - end) for end in ends))]] = ()

    def order(record: str) -> tuple[str, float, str]:
        dice = dice_of[record]
        return facts[record][1], -1.0 if dice is None else -dice, record

    return {record: roles[record] for record in sorted(roles, key=order)}


def write_together(folder: Path, documents: Mapping[str, str]) -> None:
    """Write text files so that each appears under its name only when all of them are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        for name, text in documents.items():
            (Path(partial) / name).write_text(text, encoding="utf-8")
        for name in documents:
            os.replace(Path(partial) / name, folder / name)


def _read_examples(
    prediction: Path, reference: str, score: Mapping[str, Any], count: int
) -> tuple[dict[str, tuple[str, str]], Sequence[Example]]:
    """Read source and domain of every scored image, choose some, and draw them."""
    from tqdm import tqdm

    from em_bench_eval.comparison import compare
    from em_bench_eval.pictures import draw
    from em_bench_eval.report import Example
    from em_bench_eval.report_agnostic import compare_agnostic
    from em_bench_eval.rows import ID_COLUMNS, decode_row, open_rows, read_predictions, row_id
    from em_bench_eval.settings import Settings

    dataset, per_image = score["dataset"], score["per_image"]
    rows = open_rows(reference, dataset["config"], dataset["split"])
    light = rows.select_columns([*(name for name in ID_COLUMNS if name in rows.column_names), "source", "domain"])
    place = {row_id(row): number for number, row in enumerate(light)}
    absent = sorted(record for record in per_image if record not in place)
    if absent:
        raise InputError(
            f"{reference} is not the dataset that was scored",
            found=f"no row {absent[0]} ({len(absent)} of {len(per_image)} images are missing)",
            expected=f"the {dataset['config']}/{dataset['split']} rows of {dataset['path']}",
            remedy="name the dataset that em-bench score was given",
        )
    facts = {record: (light[place[record]]["source"], light[place[record]]["domain"]) for record in per_image}
    chosen = choose_images(
        {name: values.get("macro/dice__instance") for name, values in per_image.items()}, facts, count
    )
    settings = Settings(**score["settings"])
    drawn: dict[str, Example] = {}
    predictions = (predicted for predicted in read_predictions(prediction) if predicted.record_id in chosen)
    for predicted in tqdm(predictions, total=len(chosen), desc="drawing", unit="image", file=sys.stderr):
        record = predicted.record_id
        image = decode_row(rows[place[record]])
        compared = (compare_agnostic if score.get("class_agnostic") else compare)(image, predicted, settings)
        _check_counts(record, compared.counts, per_image[record], f"em-bench score {prediction} {reference}")
        drawn[record] = Example(
            record_id=record,
            source=image.source,
            domain=image.domain,
            roles=chosen[record],
            counts=compared.counts,
            pixel_size_nm=image.pixel_size_nm,
            picture=draw(image.image, image.ignore, image.pixel_size_nm, compared.reference, compared.prediction),
        )
    lost = [record for record in chosen if record not in drawn]
    if lost:
        raise InputError(
            f"{prediction} has no prediction for {lost[0]}, which score.json scored",
            remedy=f"run em-bench score {prediction} {reference} again, then em-bench report",
        )
    return facts, [drawn[record] for record in chosen]


def _check_counts(
    record: str, counts: Mapping[Organelle, tuple[int, int, int]], scored: Mapping[str, Any], command: str
) -> None:
    """Raise ``InputError`` if an image as drawn has other numbers of instances than the image as scored."""
    for organelle, numbers in counts.items():
        for name, found in zip(("n_reference", "n_prediction", "n_matched"), numbers, strict=True):
            # score.json leaves organelles without instances out, and may leave the matches out
            expected = scored.get(f"{organelle}/{name}", found if name == "n_matched" else 0)
            if found != expected:
                raise InputError(
                    f"{record}: score.json does not fit the predictions and the reference",
                    found=f"{organelle}/{name} = {found}",
                    expected=f"{expected}, as scored",
                    remedy=f"run {command} again, then em-bench report",
                )
