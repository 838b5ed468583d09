"""The quality certificate of an instance volume: what is likely wrong, what to correct first, how much is wrong.

Three files: ``certificate.json`` (counts, limits, every flag, the error rate), ``queue.csv`` (what to correct, most
valuable first) and ``audit.csv`` (a random sample to judge). Flags are signs, not findings. An error rate comes from
the audit alone; until it is filled in, the certificate says that none is known (the paper gives 73 % correct for
BetaSeg, section 2.3, without sample or interval).

The queue is ordered by ``value`` = risk x the volume that a correction would move / the volume of the organelle, so
that a large doubtful merge comes before many doubtful crumbs, and no organelle is last because it is small.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle
from lpa import audit as audits
from lpa.audit import Estimate, Judgement, Sample, Stratum
from lpa.extents import as_instances
from lpa.measure import measure
from lpa.signs import FEWEST_FOR_OUTLIERS, THRESHOLDS, Scene, Thresholds, robust_log_normal, whole_volumes
from lpa.split import SplitDecision, three_lengths
from lpa.triage import KINDS, TO_CORRECT, Flag, triage

VERSION = 1
UNKNOWN = "No error rate is known: nobody has judged the audit sample. Flags are signs, not findings."
INCOMPLETE = "No overall error rate is known yet: some part of the audit sample has no verdict at all."

QUEUE_COLUMNS = (
    *("rank", "instance", "organelle", "flag", "reason", "numbers", "risk", "value", "volume_nm3"),
    *("centroid_z", "centroid_y", "centroid_x", "centroid_z_nm", "centroid_y_nm", "centroid_x_nm"),
    *("bbox_z0", "bbox_y0", "bbox_x0", "bbox_z1", "bbox_y1", "bbox_x1"),
    *("look_at_z", "look_at_y", "look_at_x", "neighbours"),
)
AUDIT_COLUMNS = (
    *("number", "sample", "instance", "organelle", "volume_nm3", "look_at_z", "look_at_y", "look_at_x"),
    *("bbox_z0", "bbox_y0", "bbox_x0", "bbox_z1", "bbox_y1", "bbox_x1", "verdict", "note"),
)


@dataclass(frozen=True)
class QueueEntry:
    """A flag that may need a correction."""

    rank: int
    flag: Flag
    value: float  # risk x affected volume / volume of the organelle


@dataclass(frozen=True)
class Certificate:
    """What is known about the quality of an instance volume."""

    shape: tuple[int, int, int]
    voxel_size_nm: tuple[float, float, float]
    seed: int
    table: Mapping[str, Any]  # of lpa.measure
    flags: tuple[Flag, ...]
    queue: tuple[QueueEntry, ...]
    thresholds: Mapping[Organelle, Thresholds]
    sample: Sample
    look_at: Mapping[int, tuple[int, int, int]]  # by sampled instance: a voxel of it near its centroid, (z, y, x)
    judgements: Mapping[int, Judgement]  # by judged instance; empty without an audit
    error_rates: Mapping[str, Estimate]  # by organelle and "all"; only those that are known

    def flagged(self, organelle: Organelle | None, kind: str) -> set[int]:
        """Ids with a flag of a kind; ``None``: of all organelles."""
        return {f.instance_id for f in self.flags if f.kind == kind and organelle in (None, f.organelle)}

    def summary(self) -> str:
        """One paragraph for the terminal."""
        counts = ", ".join(f"{name} {len(self.flagged(None, kind)):,}" for kind, name in KIND_NAMES.items())
        known = self.error_rates.get("all")
        rate = error_text(known) if known else INCOMPLETE if self.judgements else UNKNOWN
        return f"Instances {len(self.table['id']):,}: {counts}. {rate}"


KIND_NAMES: Mapping[str, str] = {
    "merge": "likely merges",
    "split": "likely splits",
    "crumb": "crumbs",
    "border": "cut by the border",
}


def certify(
    instances: npt.ArrayLike,
    organelle_of: Mapping[int, Organelle | str],
    voxel_size: Iterable[float],
    *,
    table: Mapping[str, Any] | None = None,
    decisions: Iterable[SplitDecision] | None = None,
    audit: str | os.PathLike[str] | None = None,
    audit_size: int = audits.SAMPLE_SIZE,
    seed: int = 0,
    thresholds: Mapping[Organelle, Thresholds] = THRESHOLDS,
) -> Certificate:
    """Certify an instance volume; the same arguments give the same certificate.

    Args:
        instances: ``(z, y, x)`` integers, 0 = background, in memory.
        organelle_of: organelle of every id.
        voxel_size: ``(z, y, x)`` in nm.
        table: what ``lpa.measure.measure`` returns for these instances; measured here if not given.
        decisions: the second result of ``lpa.split.split``, if that made the instances.
        audit: a filled ``audit.csv`` of an earlier certificate of the same instances, seed and decisions;
            one that nobody has filled in counts as none.
        audit_size: rows of the sample, if ``audit`` is not given (else as many as that has).
        seed: of the sample.
        thresholds: limits by organelle.

    Raises:
        InputError: unusable instances; table, decisions or audit that belong to others; a malformed audit file.
    """
    volume, voxel_nm = as_instances(instances), three_lengths(voxel_size)
    if audit_size < 1:
        raise InputError("the audit sample is empty", found=audit_size, expected="at least 1 instance")
    if table is None:
        table = measure(volume, organelle_of, voxel_nm)
    flags = triage(volume, table, voxel_nm, decisions or (), thresholds)
    doubted = {flag.instance_id for flag in flags if flag.kind in TO_CORRECT}
    stratum_of: dict[int, Stratum] = {
        int(id_): (str(organelle), "flagged" if int(id_) in doubted else "unflagged")
        for id_, organelle in zip(table["id"], table["organelle"], strict=True)
    }
    judgements: dict[int, Judgement] = {}
    if audit is None:
        sample = audits.draw(stratum_of, seed, audit_size)
    else:
        judgements, sample = audits.read_judgements(audit, stratum_of, seed)
    is_wrong = {id_: judgement.verdict != "ok" for id_, judgement in judgements.items()}
    rates = {
        name: rate
        for name in ("all", *sorted({stratum[0] for stratum in sample.sizes}))
        if (rate := audits.estimate(sample, is_wrong, None if name == "all" else name)) is not None
    }
    return Certificate(
        shape=(volume.shape[0], volume.shape[1], volume.shape[2]),
        voxel_size_nm=voxel_nm,
        seed=seed,
        table=table,
        flags=tuple(flags),
        queue=order_queue(flags, table),
        thresholds=thresholds,
        sample=sample,
        look_at=_look_at(volume, table, voxel_nm, [id_ for id_, _ in sample.drawn]),
        judgements=judgements,
        error_rates=rates,
    )


def order_queue(flags: Sequence[Flag], table: Mapping[str, Any]) -> tuple[QueueEntry, ...]:
    """Order what may need a correction by value, ties by id."""
    volumes, organelles = np.asarray(table["volume_nm3"], np.float64), np.asarray(table["organelle"])
    total = {name: float(volumes[organelles == name].sum()) for name in np.unique(organelles).tolist()}
    valued = [
        (flag.risk * flag.affected_nm3 / total[flag.organelle.value], flag) for flag in flags if flag.kind in TO_CORRECT
    ]
    valued.sort(key=lambda pair: (-pair[0], pair[1].instance_id, pair[1].kind))
    return tuple(QueueEntry(rank, flag, value) for rank, (value, flag) in enumerate(valued, start=1))


def write_certificate(certificate: Certificate, folder: str | os.PathLike[str]) -> None:
    """Write ``certificate.json``, ``queue.csv`` and ``audit.csv`` into ``folder``, which is made if it does not exist.

    Each file gets its name when it is complete. Verdicts are never lost: an ``audit.csv`` in the folder that holds some
    is only replaced by a certificate that has read the same ones.

    Raises:
        InputError: the folder holds an audit with other verdicts.
    """
    where = Path(folder)
    files = {
        "certificate.json": json.dumps(as_json(certificate), indent=1, allow_nan=False) + "\n",
        "queue.csv": _csv(QUEUE_COLUMNS, _queue_rows(certificate)),
        "audit.csv": _csv(AUDIT_COLUMNS, _audit_rows(certificate)),
    }
    _keep_verdicts(where / "audit.csv", certificate)
    where.mkdir(parents=True, exist_ok=True)
    temporary = {name: where / f".{name}.{os.getpid()}.tmp" for name in files}
    try:
        for name, content in files.items():
            temporary[name].write_text(content, encoding="utf-8", newline="")
        for name in files:
            os.replace(temporary[name], where / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def as_json(certificate: Certificate) -> dict[str, Any]:
    """Return the content of ``certificate.json``."""
    table = certificate.table
    names = np.asarray(table["organelle"])
    volumes = np.asarray(table["volume_nm3"], np.float64)
    organelles: dict[str, Any] = {}
    for organelle in Organelle:
        own = names == organelle.value
        if not own.any():
            continue
        limits = certificate.thresholds[organelle]
        whole = whole_volumes(table, organelle, limits.min_volume_nm3)
        median, sigma = robust_log_normal(whole) if len(whole) else (None, None)
        organelles[organelle.value] = {
            "instances": int(own.sum()),
            "volume_nm3": float(volumes[own].sum()),
            **{kind: len(certificate.flagged(organelle, kind)) for kind in KINDS},
            "whole_instances": len(whole),
            "median_volume_nm3": median,
            "sigma_of_log_volume": sigma,
            "outliers_judged": len(whole) >= FEWEST_FOR_OUTLIERS and limits.max_sigmas is not None,
            "thresholds": asdict(limits),
            "error_rate": _rate_json(certificate.error_rates.get(organelle.value)),
        }
    verdicts = [judgement.verdict for judgement in certificate.judgements.values()]
    is_wrong = {id_: judgement.verdict != "ok" for id_, judgement in certificate.judgements.items()}
    return {
        "version": VERSION,
        "shape": list(certificate.shape),
        "voxel_size_nm": list(certificate.voxel_size_nm),
        "instances": len(names),
        **{kind: len(certificate.flagged(None, kind)) for kind in KINDS},
        "statement": certificate.summary(),
        "error_rate": _rate_json(certificate.error_rates.get("all")),
        "organelles": organelles,
        "audit": {
            "seed": certificate.seed,
            "method": audits.METHOD,
            "confidence": audits.CONFIDENCE,
            "drawn": len(certificate.sample.drawn),
            "judged": len(verdicts),
            "sample": certificate.sample.key,
            "verdicts": {verdict: verdicts.count(verdict) for verdict in audits.VERDICTS},
            "strata": audits.strata_rows(certificate.sample, is_wrong),
        },
        "queue_order": "risk x affected volume / volume of the organelle; risk is an order, not a probability",
        "flags": [
            {
                "instance": flag.instance_id,
                "organelle": flag.organelle.value,
                "flag": flag.kind,
                "reasons": [{"sign": r.name, "text": r.text, "risk": r.risk, **r.numbers} for r in flag.reasons],
                "neighbours": list(flag.neighbours),
            }
            for flag in certificate.flags
        ],
    }


def error_text(estimate: Estimate) -> str:
    """Say an error rate with its interval."""
    return (
        f"{estimate.rate:.1%} of instances are wrong (95 % confidence interval {estimate.low:.1%} to "
        f"{estimate.high:.1%}; {estimate.judged} of {estimate.instances:,} judged)."
    )


def _keep_verdicts(path: Path, certificate: Certificate) -> None:
    """Refuse to replace an audit file that holds verdicts other than the certificate's own."""
    if not path.exists():
        return
    known = {str(id_): judgement.verdict for id_, judgement in certificate.judgements.items()}
    for line, row in audits.read_table(path):
        verdict = " ".join(row["verdict"].lower().split())
        if verdict and (row["sample"] != certificate.sample.key or known.get(row["instance"]) != verdict):
            raise InputError(
                f"{path} holds verdicts that would be lost",
                found=f"{row['verdict']!r} for instance {row['instance']} in line {line}",
                expected="no audit in the folder, or the one that this certificate has read",
                remedy="give this file as the audit, or write to another folder",
            )


def _look_at(
    volume: npt.NDArray[Any], table: Mapping[str, Any], voxel_nm: tuple[float, float, float], ids: Iterable[int]
) -> dict[int, tuple[int, int, int]]:
    scene = Scene(volume, table, voxel_nm, {}, {})
    return {id_: scene.inside(scene.row_of[id_]) for id_ in ids}


def _rate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def _queue_rows(certificate: Certificate) -> Iterable[Sequence[object]]:
    table = certificate.table
    row_of = {int(id_): row for row, id_ in enumerate(table["id"])}
    for entry in certificate.queue:
        flag, row = entry.flag, row_of[entry.flag.instance_id]
        centroid_nm = np.asarray(table["centroid_nm"][row], np.float64)
        yield (
            *(entry.rank, flag.instance_id, flag.organelle.value, flag.kind),
            "; ".join(reason.text for reason in flag.reasons),
            "; ".join(f"{key}={number:.6g}" for reason in flag.reasons for key, number in reason.numbers.items()),
            *(f"{flag.risk:.4f}", f"{entry.value:.6g}", f"{float(table['volume_nm3'][row]):.6g}"),
            *(f"{c:.1f}" for c in centroid_nm / certificate.voxel_size_nm - 0.5),
            *(f"{c:.1f}" for c in centroid_nm),
            *(int(edge) for edge in table["bbox"][row]),
            *flag.focus,
            " ".join(map(str, flag.neighbours)),
        )


def _audit_rows(certificate: Certificate) -> Iterable[Sequence[object]]:
    table = certificate.table
    row_of = {int(id_): row for row, id_ in enumerate(table["id"])}
    for number, (id_, (organelle, _)) in enumerate(certificate.sample.drawn, start=1):
        row = row_of[id_]
        judgement = certificate.judgements.get(id_, Judgement("", ""))
        yield (
            *(number, certificate.sample.key, id_, organelle, f"{float(table['volume_nm3'][row]):.6g}"),
            *certificate.look_at[id_],
            *(int(edge) for edge in table["bbox"][row]),
            *(judgement.verdict, judgement.note),
        )


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
