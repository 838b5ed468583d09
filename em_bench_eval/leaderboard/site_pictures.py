"""Pictures of a submission's best and worst images, drawn once and kept: making the site again draws nothing.

Only the few images that are shown are decoded. The EM image is kept as WebP (lossy: for display), layers as PNG.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.checking import check_prediction
from em_bench_eval.leaderboard.forms import belonging, open_form, recognise
from em_bench_eval.leaderboard.items import Expected, expected_items
from em_bench_eval.leaderboard.reference import local_files
from em_bench_eval.leaderboard.safe_read import list_files
from em_bench_eval.leaderboard.site_rows import Result
from em_bench_eval.leaderboard.submission import submission_hash
from em_bench_eval.leaderboard.verdict import Faults
from em_bench_eval.settings import Settings
from em_bench_eval.whole_file import write_whole

if TYPE_CHECKING:
    from em_bench_eval.pictures import Picture
    from em_bench_eval.rows import LabelledImage
    from em_bench_eval.schema import Prediction

FORMAT = "em-organelle-wild pictures v1"
SHOWN = 4  # of the best and of the worst
LARGEST = 2_400_000  # characters of all pictures of a page
QUALITY = 62  # of WebP


def cases_of(result: Result, shown: int = SHOWN) -> list[dict[str, Any]]:
    """Choose the images to show from a result: the best and the worst, from different volumes where possible."""
    chosen: list[dict[str, Any]] = []
    for role in ("best", "worst"):
        listed = [one for one in result["images"][role] if not _is_in(one["record_id"], chosen)]
        for _ in range(min(shown, len(listed))):
            volumes = {_volume(one["record_id"]) for one in chosen if one["role"] == role}
            fresh = [one for one in listed if _volume(one["record_id"]) not in volumes]
            best = (fresh or listed)[0]
            listed.remove(best)
            chosen.append({"role": role, **best})
    return chosen


def _is_in(record_id: str, chosen: list[dict[str, Any]]) -> bool:
    return any(one["record_id"] == record_id for one in chosen)


def _volume(record_id: str) -> str:
    return record_id.rsplit("/", 2)[0]


def draw_cases(
    submission: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    result: Result,
    *,
    show_reference: bool,
    cache: Path | None = None,
    expected: Expected | None = None,
    hidden_sources: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """Draw the best and the worst images of a submission that was scored; returns what ``render_site`` takes.

    Args:
        submission: the folder that was scored.
        reference: the dataset with labels that it was scored against.
        result: its result document.
        show_reference: draw the reference labels, too. Must be False where labels of the split are kept private: pages
            are public. What was matched is marked on the prediction even then.
        cache: folder in which pictures are kept by submission, settings and dataset content.
        expected: the split as read before (``items.expected_items``).
        hidden_sources: sources of which nothing may be shown (their licence forbids it).

    Returns:
        A list of JSON-able cases: ``role`` ("best", "worst"), ``record_id``, ``source``, ``domain``, ``values``,
        ``pixel_size_nm`` (y, x), ``shape`` (y, x) of the picture, ``scale`` (label, fraction of the width),
        ``cropped``, ``counts`` (organelle -> reference, predicted, matched), and as data addresses ``image``,
        ``ignore`` (or None), ``reference`` (organelle -> layer; None: not shown) and ``prediction``.

    Raises:
        InputError: the folder is not the one that was scored, or the reference has no labels.
    """
    cases = [case for case in cases_of(result) if case["source"] not in hidden_sources]
    kept = None if cache is None else cache / f"{_identity(result, cases, show_reference)}.json"
    if kept is not None and (found := _read(kept)) is not None:
        return found
    folder = Path(submission)
    if submission_hash(folder) != result["submission"]["hash"]:
        raise InputError(f"{folder} is not the submission that was scored", remedy="score it again")
    if expected is None:
        expected = expected_items(reference, result["config"], result["split"])
    wanted = [case["record_id"] for case in cases]
    images = _images(local_files(reference, result["config"], result["split"]), wanted)
    predictions = _predictions(folder, expected, wanted, class_agnostic=bool(result["class_agnostic"]))
    drawn: list[dict[str, Any]] = []
    for case in cases:
        name = case["record_id"]
        one = _draw(case, images[name], predictions[name], result, show_reference)
        if sum(_size(case) for case in (*drawn, one)) <= LARGEST:
            drawn.append(one)
    if kept is not None:
        _write(kept, drawn)
    return drawn


def _identity(result: Result, cases: list[dict[str, Any]], show_reference: bool) -> str:
    dataset = result["dataset"]
    known = [FORMAT, dataset.get("fingerprint"), result["settings_hash"], show_reference, QUALITY]
    known += [[case["role"], case["record_id"]] for case in cases]
    return f"{result['submission']['hash'][:32]}-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}"


def _images(files: list[str], wanted: list[str]) -> dict[str, LabelledImage]:
    """Decode rows of a split straight from its Parquet files; see ``reference`` for why not by load_dataset."""
    import pyarrow.parquet as pq

    from em_bench_eval.rows import ID_COLUMNS, decode_row, row_id

    found = {}
    for file in files:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        ids = [name for name in ID_COLUMNS if name in parquet.schema_arrow.names]
        for group in range(parquet.num_row_groups):
            names = [row_id(row) for row in parquet.read_row_group(group, columns=ids).to_pylist()]
            places = [place for place, name in enumerate(names) if name in wanted]
            if places:
                table = parquet.read_row_group(group)
                for place in places:
                    cells = table.slice(place, 1).to_pylist()[0]
                    if not (cells["instances"] or {}).get("bytes"):
                        raise InputError(f"the reference has no labels for {names[place]}")
                    found[names[place]] = decode_row(cells)
    absent = [name for name in wanted if name not in found]
    if absent:
        raise InputError("the reference is not the dataset that was scored", found=f"no image {absent[0]}")
    return found


def _predictions(folder: Path, expected: Expected, wanted: list[str], *, class_agnostic: bool) -> dict[str, Prediction]:
    """Decode the predictions of some images; the submission is untrusted, and its verdict was ok."""
    faults = Faults()
    files = list_files(folder, faults)
    name = recognise(files, faults)
    found = {}
    if name is not None:
        own = {file: files[file] for file in belonging(files, name)}
        form = open_form(name, folder, own, expected, faults)
        place_of = {record: place for place, record in enumerate(form.ids)}
        for record in (record for record in wanted if record in place_of):
            for candidate in form.read(place_of[record], place_of[record] + 1, faults):
                item = expected.items[record]
                checked = check_prediction(candidate, item, faults, class_agnostic=class_agnostic)
                if checked is not None:
                    found[record] = checked
    if faults.count() or len(found) != len(wanted):
        raise InputError(f"{folder} was changed since it was scored", remedy="score it again")
    return found


def _draw(
    case: Mapping[str, Any], image: LabelledImage, prediction: Prediction, result: Result, show_reference: bool
) -> dict[str, Any]:
    from em_bench_eval.comparison import compare
    from em_bench_eval.pictures import draw
    from em_bench_eval.report_agnostic import compare_agnostic

    settings = Settings(**result["settings"])
    compared = (compare_agnostic if result["class_agnostic"] else compare)(image, prediction, settings)
    picture = draw(image.image, image.ignore, image.pixel_size_nm, compared.reference, compared.prediction)
    scale = picture.scale_bar
    return {
        **{name: case[name] for name in ("role", "record_id", "source", "domain")},
        "values": dict(case["values"]),
        "pixel_size_nm": list(image.pixel_size_nm),
        "shape": list(picture.shape),
        "scale": {"label": scale.label, "fraction": scale.fraction},
        "cropped": picture.cropped,
        "counts": {str(organelle): list(counts) for organelle, counts in compared.counts.items()},
        "image": _address(_webp(picture), "webp"),
        "ignore": None if picture.ignore_png is None else _address(picture.ignore_png, "png"),
        "reference": _layers(picture.reference_png) if show_reference else None,
        "prediction": _layers(picture.prediction_png),
    }


def _layers(layers: Mapping[Any, bytes]) -> dict[str, str]:
    return {str(organelle): _address(_fewer_colours(png), "png") for organelle, png in layers.items()}


def _fewer_colours(png: bytes) -> bytes:
    """Store a layer with a palette where it has few colours: half the size, no pixel changed."""
    from PIL import Image

    layer = Image.open(io.BytesIO(png))
    colours = layer.getcolors(256)
    if colours is None:
        return png
    palette = layer.quantize(colors=max(2, len(colours)), method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    if palette.convert("RGBA").tobytes() != layer.tobytes():
        return png
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG", optimize=True)
    return min(buffer.getvalue(), png, key=len)


def _webp(picture: Picture) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture.image_png)).convert("RGB").save(buffer, format="WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _size(case: Mapping[str, Any]) -> int:
    layers = [*(case["reference"] or {}).values(), *case["prediction"].values()]
    return len(case["image"]) + 2 * len(case["ignore"] or "") + sum(map(len, layers))


def _read(path: Path) -> list[dict[str, Any]] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document["cases"] if isinstance(document, dict) and document.get("format") == FORMAT else None


def _write(path: Path, cases: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = json.dumps({"format": FORMAT, "cases": cases})
    write_whole(path, lambda partial: partial.write_text(document, encoding="utf-8"))
