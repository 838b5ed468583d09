"""A submission on disk: who it is, what it predicts, and the verdict on it.

``check`` reads no more than it must: names and the manifest, then ids, then headers, and decodes each image once, one
at a time. It may be called on anything; ``guarded.check_guarded`` calls it in a process with bounded memory and time.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from em_bench_eval.leaderboard.checking import check_prediction
from em_bench_eval.leaderboard.forms import FORMS, Form, belonging, open_form, recognise
from em_bench_eval.leaderboard.items import Expected, split_hash
from em_bench_eval.leaderboard.manifest import Manifest, read_manifest
from em_bench_eval.leaderboard.safe_read import list_files, open_plain, read_json
from em_bench_eval.leaderboard.verdict import Faults, Verdict
from em_bench_eval.schema import Prediction

INFO_FILE = "prediction.json"
_SAMPLES = 3  # images that are scored against themselves, shifted, to learn how long scoring takes
_LARGE_SAMPLE = 2**22  # pixels


def check(folder: str | os.PathLike[str], expected: Expected | None = None, *, progress: bool = False) -> Verdict:
    """Judge a submission: all faults at once.

    Args:
        folder: the submission.
        expected: the split that it predicts (``items.expected_items``); ``None``: shapes, missing and extra images and
            the hash are not checked, which a note says.
        progress: show a bar on stderr.
    """
    root = Path(folder)
    faults = Faults()
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        faults.note("layout", root.name or str(root), found, "a folder with submission.yaml and predictions")
        return Verdict(faults.as_list())
    files = list_files(root, faults)
    manifest, values = read_manifest(root, faults)
    form_name = recognise(files, faults)
    own = belonging(files, form_name)
    facts: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if name != "format"
    }
    facts |= {"form": FORMS[form_name].about.split(",")[0].split(":")[0]} if form_name else {}
    notes = _notes(files, own, manifest, expected)
    _check_info(root, own, values, faults)
    if expected is not None:
        facts |= _check_split(manifest, expected, faults)
    if form_name is not None:
        before = faults.count()
        form = open_form(form_name, root, {file: files[file] for file in own}, expected, faults)
        if form.ids or faults.count() == before:  # else nothing could be read, which is said already
            _check_ids(form.ids, expected, faults)
        facts |= _check_all(form, expected, faults, bool(values.get("class_agnostic")), progress)
    facts |= {"files": len(own), "bytes": sum(files[file] for file in own)}
    if faults.count() == 0:
        facts["submission_hash"] = submission_hash(root, own)
    return Verdict(faults.as_list(), facts, notes)


def own_files(folder: str | os.PathLike[str]) -> list[str]:
    """Name the files that belong to a submission (relative, with "/"): what ``em-bench submit`` uploads."""
    files = list_files(Path(folder), Faults())
    return belonging(files, recognise(files, Faults()))


def submission_hash(folder: str | os.PathLike[str], own: list[str] | None = None) -> str:
    """Return the SHA-256 over names and contents of the files that belong to a submission."""
    root = Path(folder)
    whole = hashlib.sha256()
    for name in sorted(own_files(root) if own is None else own):
        content = hashlib.sha256()
        with os.fdopen(open_plain(root / name), "rb") as file:
            while block := file.read(2**20):
                content.update(block)
        whole.update(f"{name} {content.hexdigest()}\n".encode())
    return whole.hexdigest()


def _notes(files: Mapping[str, int], own: list[str], manifest: Manifest | None, expected: Expected | None) -> list[str]:
    notes = []
    ignored = sorted(set(files) - set(own))
    if ignored:
        shown = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        notes.append(f"no part of the submission, neither read nor sent: {len(ignored)} of its files ({shown})")
    if expected is None:
        notes.append("without --dataset, shapes, missing and extra images and the split's hash are not checked")
    if manifest is not None and manifest.split != "test":
        notes.append(f"the leaderboard ranks the split test; this predicts {manifest.split}")
    if manifest is not None and manifest.class_agnostic:
        notes.append("instances without organelles are scored class-agnostically: listed apart, never ranked")
    if manifest is not None and not manifest.is_automatic:
        notes.append(f"prompts {manifest.prompts} use the reference: listed apart, never ranked")
    return notes


def _check_info(root: Path, own: list[str], values: Mapping[str, Any], faults: Faults) -> None:
    """Compare the manifest with what ``em-bench predict`` recorded."""
    info = read_json(root / INFO_FILE, faults, INFO_FILE) if INFO_FILE in own else None
    if not isinstance(info, Mapping):
        return
    for name in ("config", "split"):
        if name in values and isinstance(info.get(name), str) and info[name] != values[name]:
            faults.note("manifest", f"submission.yaml, {name}", values[name], f"{info[name]}, as in {INFO_FILE}")
    shown = info.get("prompts")
    if isinstance(shown, str) and shown not in ("", "none") and values.get("prompts") == "none":
        faults.note("manifest", "submission.yaml, prompts", "none", f"{shown}, as {INFO_FILE} records")
    if info.get("class_agnostic") is True and not values.get("class_agnostic"):
        faults.note("manifest", "submission.yaml, class_agnostic", "not true", f"true, as {INFO_FILE} records")


def _check_split(manifest: Manifest | None, expected: Expected, faults: Faults) -> dict[str, Any]:
    current = split_hash(expected.items.values())
    facts = {
        "dataset": {
            "name": expected.dataset,
            "fingerprint": expected.fingerprint,
            "revision": expected.revision,
            "images": len(expected.items),
        },
        "split_hash": current,
    }
    if manifest is not None and manifest.split_hash != current:
        found, right = manifest.split_hash[:16], current[:16]
        where = f"submission.yaml, split_hash of {expected.config}/{expected.split}"
        faults.note("split-hash", where, f"{found}...", f"{right}...")
    return facts


def _check_ids(ids: Any, expected: Expected | None, faults: Faults) -> None:
    """Note images that are predicted twice, missing, or not in the split."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            faults.note("duplicate", name)
        elif expected is not None and name not in expected.items and not name.startswith("\0"):
            faults.note("extra", name, "", f"images of {expected.config}/{expected.split}")
        seen.add(name)
    for name in expected.items if expected is not None else ():
        if name not in seen:
            faults.note("missing", name)


def _check_all(
    form: Form, expected: Expected | None, faults: Faults, class_agnostic: bool, progress: bool
) -> dict[str, Any]:
    """Decode and check every image; returns the counts, and how long scoring will take."""
    from tqdm import tqdm

    images = instances = pixels = 0
    samples: list[Prediction] = []
    started, spent_checking = time.perf_counter(), 0.0
    candidates = form.read(0, len(form.ids), faults)
    for candidate in tqdm(candidates, "validate", len(form.ids), unit="image", disable=not progress, file=sys.stderr):
        began = time.perf_counter()
        item = None if expected is None else expected.items[candidate.record_id]
        prediction = check_prediction(candidate, item, faults, class_agnostic=class_agnostic)
        images += 1
        pixels += candidate.labels.size
        instances += len(candidate.objects)
        if prediction is not None and _worth(prediction, samples):
            samples = sorted([*samples, prediction], key=lambda one: -len(one.confidence_of))[:_SAMPLES]
        spent_checking += time.perf_counter() - began
    facts: dict[str, Any] = {"images": images, "instances": instances, "megapixels": round(pixels / 1e6, 3)}
    if images and samples:
        decoding = time.perf_counter() - started - spent_checking
        facts["expected_seconds"] = round(2 * decoding + pixels * _seconds_per_pixel(samples), 2)
    return facts


def _worth(prediction: Prediction, samples: list[Prediction]) -> bool:
    if prediction.instances.size > _LARGE_SAMPLE and samples:
        return False
    return len(samples) < _SAMPLES or len(prediction.confidence_of) > min(len(one.confidence_of) for one in samples)


def _seconds_per_pixel(samples: list[Prediction]) -> float:
    """Score the fullest images against themselves, shifted by a few pixels; twice, since the first call warms up."""
    from em_bench_eval.scoring import Evaluation

    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for one in samples:
            shifted = np.roll(one.instances, 3, axis=1)
            Evaluation().add({"mito": shifted}, {"mito": one.instances}, voxel_size_nm=(8.0, 8.0))
        seconds.append(time.perf_counter() - started)
    return min(seconds) / sum(one.instances.size for one in samples)
