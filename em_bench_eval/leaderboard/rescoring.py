"""Scoring an untrusted submission against reference labels in several processes; the numbers of ``em-bench score``.

Each process decodes and reduces its share of the images to statistics (``scoring.Evaluation``); one process pools
them in the order of the predictions, so the result does not depend on the number of processes, to the last digit.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.checking import check_prediction
from em_bench_eval.leaderboard.forms import Form, belonging, open_form, recognise
from em_bench_eval.leaderboard.guarded import check_guarded, limit_memory, warm_up
from em_bench_eval.leaderboard.items import Expected, expected_items
from em_bench_eval.leaderboard.manifest import Manifest, read_manifest
from em_bench_eval.leaderboard.reference import Reference, local_files
from em_bench_eval.leaderboard.result_document import RESULT_FORMAT, check_result, is_ranked
from em_bench_eval.leaderboard.safe_read import list_files
from em_bench_eval.leaderboard.submission import submission_hash
from em_bench_eval.leaderboard.verdict import Faults, Verdict
from em_bench_eval.row import software_versions, utc_date
from em_bench_eval.score_dataset import group_intervals, image_values, score_image
from em_bench_eval.scoring import Evaluation
from em_bench_eval.settings import DEFAULT_SETTINGS, METRIC_VERSION, Settings

if TYPE_CHECKING:
    from em_bench_eval.metric import Value
    from em_bench_eval.rows import LabelledImage
    from em_bench_eval.schema import Prediction

IMAGES_AT_ONCE = 16  # scored by a process before it asks for more
MEMORY_BYTES = 8 * 2**30  # of a process, beyond what the libraries need
SPREAD_FROM_S = 20.0  # of expected work: starting processes takes seconds, too
SHOWN_IMAGES = 6  # of the best and of the worst
HEADLINE, AGNOSTIC_HEADLINE = "macro/dice__instance", "any/dice__instance"


class RefusedSubmission(InputError):
    """The verdict on a submission is not ok; ``verdict`` says why."""

    def __init__(self, verdict: Verdict):
        self.verdict = verdict
        super().__init__("this submission cannot be scored", found=f"\n{verdict.to_text()}", expected="no faults")


@dataclass(frozen=True)
class Scored:
    """What one image contributes."""

    record_id: str
    source: str
    domain: str
    annotated: tuple[str, ...]
    pixels: int
    evaluation: Any  # Evaluation or AgnosticEvaluation
    seconds: float


@dataclass(frozen=True)
class Job:
    """What a process needs to score a range of a submission's images."""

    folder: str
    reference: list[str]  # Parquet files
    expected: Expected
    settings: Settings
    class_agnostic: bool

    def evaluation(self) -> Any:
        """Return an empty ``Evaluation``, or one that reads no organelles of predictions."""
        from em_bench_eval.class_agnostic import AgnosticEvaluation

        return AgnosticEvaluation(self.settings) if self.class_agnostic else Evaluation(self.settings)


def rescore(
    submission: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    settings: Settings = DEFAULT_SETTINGS,
    *,
    workers: int = 1,
    expected: Expected | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a submission and return the result document (``docs/submissions.md``).

    Args:
        submission: its folder.
        reference: the dataset with the labels of the split, private or not: a folder, or a name on the Hub.
        settings: of the metric.
        workers: processes that decode and score; 1, or little work, scores in this process.
        expected: the split as read before (``items.expected_items``), to spare reading it again.
        progress: show bars on stderr.

    Raises:
        RefusedSubmission: the verdict is not ok; it has been judged first, against this very dataset.
        InputError: the reference lacks labels, files changed meanwhile, or a process died.
    """
    folder = Path(submission)
    manifest = read_manifest(folder, Faults())[0]
    if expected is None and manifest is not None:
        expected = expected_items(reference, manifest.config, manifest.split)
    files = [] if expected is None else local_files(reference, expected.config, expected.split)
    started = time.perf_counter()
    verdict = check_guarded(folder, expected, progress=progress)
    if not verdict.ok or manifest is None or expected is None:
        raise RefusedSubmission(verdict)
    judged = time.perf_counter()
    if verdict.facts.get("expected_seconds", 0.0) < SPREAD_FROM_S:
        workers = 1
    job = Job(str(folder.absolute()), files, expected, settings, manifest.class_agnostic)
    scored = list(_all_scored(job, len(expected.items), workers, progress))
    counted = time.perf_counter()
    after = submission_hash(folder)
    if after != verdict.facts["submission_hash"] or len(scored) != len(expected.items):
        raise InputError(f"{folder} was changed while it was scored", remedy="score it again")
    document = {
        "format": RESULT_FORMAT,
        "submission": _identity(manifest, verdict),
        "ranked": is_ranked(manifest.prompts, manifest.split, manifest.class_agnostic),
        "class_agnostic": manifest.class_agnostic,
        "config": manifest.config,
        "split": manifest.split,
        "metric_version": METRIC_VERSION,
        "settings": asdict(settings),
        "settings_hash": settings.hash(),
        "dataset": {
            "name": expected.dataset,
            "fingerprint": expected.fingerprint,
            "revision": expected.revision,
            "split_hash": verdict.facts["split_hash"],
            "images": len(expected.items),
        },
        **_pooled(scored, job),
        "levels": None,
        "timings": {
            "validate_s": round(judged - started, 3),
            "score_s": round(counted - judged, 3),
            "pool_s": round(time.perf_counter() - counted, 3),
            "workers": workers,
            "core_s": round(sum(one.seconds for one in scored), 3),
        },
        "software": software_versions(),
        "date": utc_date(),
    }
    check_result(document, str(folder))
    return document


def _identity(manifest: Manifest, verdict: Verdict) -> dict[str, Any]:
    names = ("model", "team", "paper", "code", "training_data", "prompts", "compute", "contact", "notes", "split_hash")
    stated = {name: getattr(manifest, name) for name in names}
    return {
        **stated,
        "training_data": list(manifest.training_data),
        "form": verdict.facts["form"],
        "hash": verdict.facts["submission_hash"],
        "images": verdict.facts["images"],
        "instances": verdict.facts["instances"],
    }


def _all_scored(job: Job, count: int, workers: int, progress: bool) -> Iterator[Scored]:
    """Score all images, in the order of the predictions."""
    from tqdm import tqdm

    starts = range(0, count, IMAGES_AT_ONCE)
    bar = tqdm(total=count, desc="score", unit="image", disable=not progress, file=sys.stderr)
    with bar:
        if workers <= 1:
            share = Share(job)
            for start in starts:
                for one in share.score(start, start + IMAGES_AT_ONCE):
                    bar.update()
                    yield one
            return
        context = multiprocessing.get_context("spawn")  # libraries of arrays and tables have threads: never fork
        try:
            with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(job,)) as pool:
                stops = (start + IMAGES_AT_ONCE for start in starts)
                for part in pool.map(_score_range, starts, stops):
                    bar.update(len(part))
                    yield from part
        except BrokenProcessPool as error:
            raise InputError(
                "a process that scored the submission died",
                found=str(error),
                expected=f"images that are scored within {MEMORY_BYTES / 2**30:g} GiB",
            ) from error


class Share:
    """A process's view of a submission and its reference."""

    def __init__(self, job: Job):
        self._job = job
        folder, faults = Path(job.folder), Faults()
        files = list_files(folder, faults)
        name = recognise(files, faults)
        if name is None:
            raise InputError(f"{folder} was changed while it was scored", remedy="score it again")
        own = {file: files[file] for file in belonging(files, name)}
        self._form: Form = open_form(name, folder, own, job.expected, faults)
        self._reference = Reference(job.reference)

    def score(self, start: int, stop: int) -> Iterator[Scored]:
        """Score the images ``ids[start:stop]``."""
        faults = Faults()
        began = time.process_time()
        for candidate in self._form.read(start, stop, faults):
            item = self._job.expected.items[candidate.record_id]
            prediction = check_prediction(candidate, item, faults, class_agnostic=self._job.class_agnostic)
            if prediction is None:
                break
            yield _score(prediction, self._reference.labelled(prediction.record_id), self._job.evaluation(), began)
            began = time.process_time()
        if faults.count():
            raise InputError("the submission was changed while it was scored", found=faults.as_list()[0]["examples"][0])


def _score(prediction: Prediction, image: LabelledImage, evaluation: Any, began: float) -> Scored:
    score_image(evaluation, prediction, image)
    annotated = tuple(sorted(map(str, image.annotated)))
    seconds = time.process_time() - began
    return Scored(
        prediction.record_id, image.source, image.domain, annotated, image.instances.size, evaluation, seconds
    )


_share: Share | None = None


def _begin(job: Job) -> None:
    global _share
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warm_up()
    _share = Share(job)
    limit_memory(MEMORY_BYTES)


def _score_range(start: int, stop: int) -> list[Scored]:
    assert _share is not None
    return list(_share.score(start, stop))


def _pooled(scored: list[Scored], job: Job) -> dict[str, Any]:
    """Pool the images by group, as ``score_dataset.score_folder`` does."""
    groups: dict[str, Any] = {}
    members: dict[str, list[Scored]] = {}
    for one in scored:
        for group in ("all", f"domain={one.domain}", f"source={one.source}"):
            groups.setdefault(group, job.evaluation()).merge(one.evaluation)
            members.setdefault(group, []).append(one)
    volumes = {group: [_volume(one) for one in ones] for group, ones in members.items()}
    per_image = {
        one.record_id: one.evaluation.per_image() if job.class_agnostic else image_values(one.evaluation)
        for one in scored
    }
    return {
        "groups": {
            group: {
                "images": len(members[group]),
                "volumes": len(set(volumes[group])),
                "megapixels": round(sum(one.pixels for one in members[group]) / 1e6, 3),
            }
            for group in sorted(groups)
        },
        "scores": {group: groups[group].compute() for group in sorted(groups)},
        "intervals": {group: group_intervals(groups[group], volumes[group]) for group in sorted(groups)},
        "per_source": _per_source(scored),
        "images": _extremes(scored, per_image, AGNOSTIC_HEADLINE if job.class_agnostic else HEADLINE),
    }


def _volume(one: Scored) -> str:
    return one.record_id.rsplit("/", 2)[0]


def _per_source(scored: list[Scored]) -> dict[str, Any]:
    found = {}
    for source, ones in itertools.groupby(sorted(scored, key=lambda one: one.source), key=lambda one: one.source):
        members = list(ones)
        found[source] = {
            "group": f"source={source}",
            "domains": sorted({one.domain for one in members}),
            "annotated": sorted({name for one in members for name in one.annotated}),
        }
    return found


def _extremes(scored: list[Scored], per_image: Mapping[str, Mapping[str, Value]], headline: str) -> dict[str, Any]:
    """Choose the images with the best and with the worst headline; ties by record id, undefined ones left out."""
    defined = {one.record_id: one for one in scored if per_image[one.record_id].get(headline) is not None}
    ranked = sorted(defined, key=lambda name: (per_image[name][headline], name))

    def shown(names: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "record_id": name,
                "source": defined[name].source,
                "domain": defined[name].domain,
                "values": dict(per_image[name]),
            }
            for name in names
        ]

    best = ranked[: -SHOWN_IMAGES - 1 : -1]
    return {"by": headline, "worst": shown(ranked[:SHOWN_IMAGES]), "best": shown(best), "defined": len(ranked)}
