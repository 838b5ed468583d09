"""How often instances are wrong: a random sample that an expert judges, and what follows from it for all.

The sample is stratified: flagged and unflagged instances of each organelle are drawn apart, so that the rare unflagged
errors and the many flagged ones are both measured. Within a stratum every instance has the same chance. Rows are in
random order with the strata interleaved: a file that is filled from the top down to any row is a smaller valid sample.

The estimate weights each stratum by its instances. Its interval combines Wilson's score interval of every stratum, with
the finite population correction, by the method of variance estimates recovery (MOVER; Zou & Donner 2008, Statistics in
Medicine 27:1693): exactly 0 errors seen does not make an interval of zero width, a stratum judged completely does.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES

VERDICTS = ("ok", "merge", "split", "crumb", "wrong class")
SAMPLE_SIZE = 100
FEWEST_PER_STRATUM = 5
EXPECTED_ERROR = {"flagged": 0.5, "unflagged": 0.1}  # only for sharing out the sample (Neyman); no estimate uses it
CONFIDENCE = 0.95
Z95 = 1.959963984540054  # standard normal quantile of 0.975
METHOD = "stratified, Wilson score intervals with finite population correction combined by MOVER (Zou & Donner 2008)"

Stratum = tuple[str, str]  # organelle, "flagged" or "unflagged"


@dataclass(frozen=True)
class Estimate:
    """An error rate: share of instances."""

    rate: float
    low: float  # 95 % confidence interval
    high: float
    judged: int
    instances: int


@dataclass(frozen=True)
class Sample:
    """The instances to judge, in the order of the file, and the sizes of the strata that they stand for."""

    drawn: tuple[tuple[int, Stratum], ...]  # instance id, stratum
    sizes: Mapping[Stratum, int]
    key: str  # of seed, instances and strata: tells audit files of different certificates apart


@dataclass(frozen=True)
class Judgement:
    """What the expert wrote about one instance."""

    verdict: str  # one of VERDICTS
    note: str


def draw(stratum_of: Mapping[int, Stratum], seed: int, size: int = SAMPLE_SIZE) -> Sample:
    """Draw a sample of about ``size`` instances (at least one of every stratum); a function of its arguments alone."""
    members: dict[Stratum, list[int]] = {}
    for id_ in sorted(stratum_of):
        members.setdefault(stratum_of[id_], []).append(id_)
    sizes = {stratum: len(members[stratum]) for stratum in sorted(members)}
    counts = allocate(sizes, size)
    rows: list[tuple[float, int, Stratum]] = []
    for stratum, ids in sorted(members.items()):
        # the position among the known organelles, not a hash: hashes of text differ from run to run
        stream = np.random.default_rng([seed, ORGANELLES.index(stratum[0]), stratum[1] == "flagged"])
        order = stream.permutation(len(ids))[: counts[stratum]]
        rows += [((place + stream.random()) / len(order), ids[pick], stratum) for place, pick in enumerate(order)]
    everything = repr((seed, sorted((id_, *stratum) for id_, stratum in stratum_of.items())))
    key = hashlib.sha256(everything.encode()).hexdigest()[:8]
    return Sample(tuple((id_, stratum) for _, id_, stratum in sorted(rows)), sizes, key)


def allocate(sizes: Mapping[Stratum, int], size: int) -> dict[Stratum, int]:
    """Share ``size`` out in proportion to stratum size times expected standard deviation, a few for every stratum."""
    size = min(sum(sizes.values()), max(size, len(sizes)))
    base = min(FEWEST_PER_STRATUM, size // max(len(sizes), 1))
    counts = {stratum: min(base, count) for stratum, count in sizes.items()}
    weight = {s: n * math.sqrt(EXPECTED_ERROR[s[1]] * (1 - EXPECTED_ERROR[s[1]])) for s, n in sizes.items()}
    for _ in range(size - sum(counts.values())):
        open_ = [stratum for stratum in sizes if counts[stratum] < sizes[stratum]]
        neediest = min(open_, key=lambda stratum: ((counts[stratum] + 1) / weight[stratum], stratum))
        counts[neediest] += 1
    return counts


def read_table(path: str | os.PathLike[str]) -> list[tuple[int, dict[str, str]]]:
    """Read an audit file: line number and cells by column of every row; ``InputError`` where it is no such file."""
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except FileNotFoundError:
        raise InputError(f"{file} does not exist", expected="the audit.csv of a certificate, filled in") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as CSV", found=error, expected="UTF-8 text with commas") from None
    header = rows[0][1] if rows else []
    missing = [name for name in ("sample", "instance", "organelle", "verdict", "note") if name not in header]
    if missing:
        raise InputError(
            f"{file}, line 1: no column {', '.join(missing)}",
            found=", ".join(header) or "an empty file",
            expected="the header that the certificate wrote",
            remedy="keep the header, and save as CSV with commas between the columns",
        )
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise InputError(
                f"{file}, line {line}: wrong number of columns",
                found=len(cells),
                expected=len(header),
                remedy="put quotation marks around a note that has a comma",
            )
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in rows[1:]]


def read_judgements(
    path: str | os.PathLike[str], stratum_of: Mapping[int, Stratum], seed: int
) -> tuple[dict[int, Judgement], Sample]:
    """Read a filled audit file; return what was judged, by instance id in the order of the file, and the whole sample.

    The sample is drawn again, so the file must hold the very rows that were written for this volume and seed, in any
    state of filling from the top. A file without any verdict says nothing, so it may be of another volume: nothing is
    judged then, and the sample is a new one of its size.

    Raises:
        InputError: another sample, an unknown verdict, or a gap in the filling; the message names the line.
    """
    rows = read_table(path)
    if not any(row["verdict"] for _, row in rows):
        return {}, draw(stratum_of, seed, len(rows) or SAMPLE_SIZE)
    sample = draw(stratum_of, seed, len(rows))
    judged: dict[int, Judgement] = {}
    blank: int | None = None
    for place, (line, row) in enumerate(rows):
        where = f"{path}, line {line}"
        _check_row(where, row, sample, place)
        verdict = " ".join(row["verdict"].lower().split())
        if not verdict:
            blank = blank or line
        elif blank is not None:
            raise InputError(
                f"{path}, line {blank}: no verdict",
                found=f"an empty cell, and a verdict further down (line {line})",
                expected="the file filled from the top without gaps",
                remedy="judge the row; leaving out what is hard to judge would bias the error rate",
            )
        elif verdict not in VERDICTS:
            raise InputError(
                f"{where}: unknown verdict",
                found=repr(row["verdict"]),
                expected=" / ".join(VERDICTS),
                remedy="write one of these words; remarks belong in the column note",
            )
        else:
            judged[sample.drawn[place][0]] = Judgement(verdict, row["note"])
    if len(rows) < len(sample.drawn):
        raise InputError(
            f"{path}: rows are missing at the end",
            found=f"{len(rows)} rows",
            expected=f"at least {len(sample.drawn)}",
            remedy="use the file as written; rows that are not judged stay, with an empty verdict",
        )
    return judged, sample


def _check_row(where: str, row: Mapping[str, str], sample: Sample, place: int) -> None:
    found = f"instance {row['instance']} ({row['organelle']}) of sample {row['sample']}"
    expected = "no further row"
    if place < len(sample.drawn):
        id_, (organelle, _) = sample.drawn[place]
        expected = f"instance {id_} ({organelle}) of sample {sample.key}"
    if found != expected:
        raise InputError(
            f"{where}: not the row that was drawn",
            found=found,
            expected=expected,
            remedy="give the file as written (no row added or moved) with the same instances, decisions and seed",
        )


def estimate(sample: Sample, is_wrong: Mapping[int, bool], organelle: str | None = None) -> Estimate | None:
    """Estimate the share of wrong instances of one organelle or of all.

    ``is_wrong`` has an entry for every instance that was judged. Returns ``None`` if a stratum that takes part was not
    judged at all: nothing is known about it then.
    """
    strata = [stratum for stratum in sample.sizes if organelle in (None, stratum[0])]
    total = sum(sample.sizes[stratum] for stratum in strata)
    rate = below = above = 0.0
    judged = 0
    for stratum in strata:
        answers = [is_wrong[id_] for id_, own in sample.drawn if own == stratum and id_ in is_wrong]
        if not answers:
            return None
        share = sum(answers) / len(answers)
        low, high = wilson(sum(answers), len(answers), sample.sizes[stratum])
        weight = sample.sizes[stratum] / total
        rate += weight * share
        below += (weight * (share - low)) ** 2
        above += (weight * (high - share)) ** 2
        judged += len(answers)
    if not judged:
        return None
    return Estimate(rate, max(0.0, rate - math.sqrt(below)), min(1.0, rate + math.sqrt(above)), judged, total)


def wilson(wrong: int, judged: int, population: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a share, for a sample without replacement from ``population``.

    The correction replaces the sample size n by n (N - 1) / (N - n); a complete count has an interval of zero width.
    """
    share = wrong / judged
    if judged >= population:
        return share, share
    n = judged * (population - 1) / (population - judged)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    seen_wrong, seen_right = wrong / population, (judged - wrong) / population  # these are certain
    return max(seen_wrong, centre - half), min(1.0 - seen_right, centre + half)


def strata_rows(sample: Sample, is_wrong: Mapping[int, bool]) -> list[dict[str, object]]:
    """Instances, drawn, judged and wrong by stratum, as in ``certificate.json``."""
    rows: list[dict[str, object]] = []
    for (organelle, stratum), size in sample.sizes.items():
        drawn: Sequence[int] = [id_ for id_, own in sample.drawn if own == (organelle, stratum)]
        judged = [is_wrong[id_] for id_ in drawn if id_ in is_wrong]
        rows.append(
            {
                "organelle": organelle,
                "stratum": stratum,
                "instances": size,
                "drawn": len(drawn),
                "judged": len(judged),
                "wrong": sum(judged) if judged else None,
            }
        )
    return rows
