"""The quality certificate: planted errors are flagged, the interval covers the truth, bad audits are named."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle
from lpa import audit
from lpa.certificate import Certificate, certify, write_certificate
from lpa.measure import measure
from lpa.relations import contacts, nearest_across_gap, solidity
from lpa.signs import THRESHOLDS, robust_log_normal
from lpa.split import split
from lpa.split_rules import NeckRule

VOXEL = (16.0, 16.0, 16.0)
SHAPE = (40, 150, 150)


class Drawing:
    """A volume to draw balls and boxes of one organelle into."""

    def __init__(self, shape: tuple[int, int, int] = SHAPE, organelle: Organelle = Organelle.MITO):
        self.volume = np.zeros(shape, np.uint32)
        self.organelle = organelle
        self.where = np.indices(shape)

    def ball(self, id_: int, centre: tuple[float, float, float], radius: float) -> None:
        squared = sum((axis - c) ** 2 for axis, c in zip(self.where, centre, strict=True))
        self.volume[squared <= radius**2] = id_

    def box(self, id_: int, z: slice, y: slice, x: slice) -> None:
        self.volume[z, y, x] = id_

    def certify(self, **settings: object) -> Certificate:
        ids = [int(id_) for id_ in np.unique(self.volume) if id_]
        return certify(self.volume, dict.fromkeys(ids, self.organelle), VOXEL, **settings)  # type: ignore[arg-type]


def flags(certificate: Certificate) -> dict[tuple[int, str], set[str]]:
    return {(f.instance_id, f.kind): {reason.name for reason in f.reasons} for f in certificate.flags}


def numbers(certificate: Certificate, id_: int, sign: str) -> dict[str, float]:
    return next(dict(r.numbers) for f in certificate.flags if f.instance_id == id_ for r in f.reasons if r.name == sign)


def test_a_clean_volume_has_no_flag() -> None:
    drawing = Drawing()
    for id_, x in enumerate((25, 75, 125), start=1):
        drawing.ball(id_, (20, 75, x), 12)
    assert flags(drawing.certify()) == {}


def test_two_bodies_with_a_neck_are_a_likely_merge() -> None:
    drawing = Drawing()
    drawing.ball(7, (20, 40, 40), 12)
    drawing.ball(7, (20, 40, 74), 14)
    drawing.box(7, slice(18, 23), slice(38, 43), slice(40, 74))
    drawing.ball(8, (20, 110, 110), 12)
    certificate = drawing.certify()
    assert flags(certificate) == {(7, "merge"): {"neck"}}
    measured = numbers(certificate, 7, "neck")
    assert 0.1 < measured["neck_ratio"] < 0.4  # a bar of half width 2.5 voxels and a ball of radius 12
    assert measured["persistence_nm"] == pytest.approx(9.5 * 16, abs=2 * 16)


def test_network_organelles_are_never_merged_by_neck() -> None:
    drawing = Drawing(organelle=Organelle.ER)
    drawing.ball(7, (20, 40, 40), 12)
    drawing.ball(7, (20, 40, 80), 12)
    drawing.box(7, slice(19, 22), slice(39, 42), slice(40, 80))
    assert flags(drawing.certify()) == {}
    for organelle in Organelle:
        limits = THRESHOLDS[organelle]
        assert organelle.is_network == (limits.max_neck_ratio is None) == (limits.min_solidity is None)


def test_a_ring_is_a_likely_merge_by_its_hull() -> None:
    drawing = Drawing()
    radius = np.hypot(drawing.where[1] - 75, drawing.where[2] - 75)
    drawing.volume[(np.abs(radius - 50) < 5) & (np.abs(drawing.where[0] - 20) < 5)] = 3
    certificate = drawing.certify()
    assert "solidity" in flags(certificate)[3, "merge"]
    assert numbers(certificate, 3, "solidity")["solidity"] == pytest.approx(2 * 50 * 10 / 55**2, rel=0.1)


def test_a_giant_among_equals_is_a_volume_outlier() -> None:
    drawing = Drawing((60, 200, 200), Organelle.GOLGI)
    for id_, (y, x) in enumerate(itertools.product((15, 50, 85), (15, 50, 85, 120)), start=1):
        drawing.ball(id_, (30, y, x), 7 + id_ % 4)
    drawing.ball(99, (30, 160, 160), 28)
    certificate = drawing.certify()
    assert flags(certificate) == {(99, "merge"): {"volume"}}
    volumes = np.sort(measure(drawing.volume, dict.fromkeys(range(100), "golgi"), VOXEL)["volume_nm3"])
    assert numbers(certificate, 99, "volume")["times_median"] == pytest.approx(volumes[-1] / np.median(volumes))


def test_one_body_cut_in_two_is_a_likely_split_of_the_smaller_part() -> None:
    drawing = Drawing()
    drawing.box(1, slice(12, 28), slice(60, 76), slice(20, 80))
    drawing.box(2, slice(12, 28), slice(60, 76), slice(80, 110))
    certificate = drawing.certify()
    assert flags(certificate) == {(2, "split"): {"contact"}}
    (flag,) = certificate.flags
    assert flag.neighbours == (1,)
    assert drawing.volume[flag.focus] == 2
    assert flag.focus[2] == 80  # at the contact


def test_balls_that_just_touch_are_no_split() -> None:
    drawing = Drawing()
    drawing.ball(1, (20, 60, 40), 12)
    drawing.ball(2, (20, 60, 65), 12.3)
    assert len(contacts(drawing.volume, VOXEL).pair) == 1
    assert flags(drawing.certify()) == {}


def test_other_organelles_may_touch() -> None:
    drawing = Drawing()
    drawing.box(1, slice(12, 28), slice(60, 76), slice(20, 80))
    drawing.box(2, slice(12, 28), slice(60, 76), slice(80, 110))
    assert not certify(drawing.volume, {1: "mito", 2: "golgi"}, VOXEL).queue


@pytest.mark.parametrize(("offset", "expected"), [(0, {(2, "split"): {"gap"}}), (30, {})])
def test_a_fragment_in_line_beyond_a_gap_is_a_likely_split(offset: int, expected: object) -> None:
    drawing = Drawing()
    drawing.box(1, slice(15, 25), slice(60, 70), slice(10, 80))
    drawing.box(2, slice(15, 25), slice(60 + offset, 70 + offset), slice(84, 110))
    assert flags(drawing.certify()) == expected


def test_a_neighbour_alongside_is_no_split() -> None:
    drawing = Drawing()
    drawing.box(1, slice(15, 25), slice(60, 70), slice(10, 100))
    drawing.box(2, slice(15, 25), slice(73, 83), slice(30, 60))
    assert flags(drawing.certify()) == {}


def test_crumbs_are_small_in_nm_and_not_at_the_border() -> None:
    drawing = Drawing()
    drawing.ball(1, (20, 75, 75), 12)
    drawing.box(2, slice(5, 9), slice(20, 24), slice(20, 24))  # 64 voxels: 2.6e5 nm^3
    drawing.box(3, slice(0, 4), slice(120, 124), slice(20, 24))
    found = flags(drawing.certify())
    assert found == {(2, "crumb"): {"small"}, (3, "border"): {"border"}}
    as_endo = flags(certify(drawing.volume, {1: "endo", 2: "endo", 3: "endo"}, VOXEL))
    assert as_endo == {(3, "border"): {"border"}}


def test_doubtful_cuts_are_flagged_with_their_numbers() -> None:
    drawing = Drawing()
    drawing.ball(1, (20, 40, 40), 13)
    drawing.ball(1, (20, 40, 72), 15)
    drawing.box(1, slice(16, 25), slice(36, 45), slice(40, 72))
    pieces, decisions = split(drawing.volume, {1: "mito"}, VOXEL, {"mito": NeckRule(0.45, 80)})
    (decision,) = decisions
    assert decision.is_split
    organelle_of = dict.fromkeys(decision.child_ids, "mito")
    certificate = certify(pieces, organelle_of, VOXEL, decisions=decisions)
    signs = [(f, r) for f in certificate.flags for r in f.reasons if r.name == "cut"]
    assert [(f.instance_id, f.kind, f.neighbours) for f, _ in signs] == [(2, "split", (1,))]  # the smaller part
    assert signs[0][1].numbers["cut_neck_ratio"] == decision.neck_ratio
    with pytest.raises(InputError, match="do not belong to this volume"):
        certify(drawing.volume, {1: "mito"}, VOXEL, decisions=decisions)


def test_the_queue_goes_by_risk_times_share_of_the_organelle(tmp_path: Path) -> None:
    drawing = Drawing()
    drawing.box(1, slice(12, 28), slice(60, 76), slice(20, 80))
    drawing.box(2, slice(12, 28), slice(60, 76), slice(80, 110))
    drawing.box(3, slice(5, 9), slice(20, 24), slice(20, 24))
    certificate = drawing.certify()
    total = float((drawing.volume > 0).sum()) * 16**3
    assert [entry.flag.instance_id for entry in certificate.queue] == [2, 3]
    for entry in certificate.queue:
        assert entry.value == pytest.approx(
            entry.flag.risk * float((drawing.volume == entry.flag.instance_id).sum()) * 16**3 / total
        )
        assert 0.5 <= entry.flag.risk <= 1
    write_certificate(certificate, tmp_path)
    with (tmp_path / "queue.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["instance"] for row in rows] == ["2", "3"]
    assert rows[0]["flag"] == "split"
    assert "contact_ratio=" in rows[0]["numbers"]
    assert [float(rows[0][f"centroid_{axis}"]) for axis in "zyx"] == pytest.approx([19.5, 67.5, 94.5])
    assert [float(rows[0][f"centroid_{axis}_nm"]) for axis in "zyx"] == pytest.approx([320, 1088, 1520])
    assert [int(rows[0][f"bbox_{edge}"]) for edge in ("z0", "y0", "x0", "z1", "y1", "x1")] == [12, 60, 80, 28, 76, 110]
    assert rows[0]["neighbours"] == "1"


# relations


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_contacts_equal_a_loop_over_voxels(seed: int) -> None:
    volume = np.random.default_rng(seed).integers(0, 4, (3, 4, 5)).astype(np.uint16)
    voxel, expected = (10.0, 3.0, 2.0), {}
    for place in np.ndindex(volume.shape):
        for axis in range(3):
            other = tuple(c + (k == axis) for k, c in enumerate(place))
            if other[axis] < volume.shape[axis] and 0 != volume[place] != volume[other] != 0:
                pair = tuple(sorted((int(volume[place]), int(volume[other]))))
                expected[pair] = expected.get(pair, 0.0) + 60.0 / voxel[axis] / 1.5
    found = contacts(volume, voxel)
    assert dict(zip(map(tuple, found.pair.tolist()), found.area_nm2.tolist(), strict=True)) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_gap_equals_the_smallest_distance_of_all_pairs(seed: int) -> None:
    volume = np.random.default_rng(seed).choice([0, 1, 2, 3], (4, 7, 7), p=[0.85, 0.05, 0.05, 0.05])
    voxel, reach = (3.0, 2.0, 1.0), 5.0
    if not (volume == 1).any():
        return
    points = np.argwhere(volume == 1)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(points.min(0), points.max(0), strict=True))
    there = np.argwhere(volume == 2)
    distances = [np.linalg.norm((a - b) * voxel) for a in points for b in there]
    gap = nearest_across_gap(volume, box, 1, lambda id_: id_ == 2, reach, voxel)  # type: ignore[arg-type]
    if not distances or min(distances) > reach:
        assert gap is None
    else:
        assert gap is not None
        assert (gap.neighbour, gap.distance_nm) == (2, pytest.approx(min(distances)))


def test_solidity() -> None:
    voxel = (40.0, 8.0, 8.0)
    assert solidity(np.ones((3, 4, 5), bool), voxel) == pytest.approx(1)
    assert solidity(np.ones((1, 1, 1), bool), voxel) == pytest.approx(1)
    assert solidity(np.ones((1, 6, 4), bool), voxel) == pytest.approx(1)
    corner = np.zeros((1, 10, 10), bool)
    corner[0, 0], corner[0, :, 0] = True, True
    assert solidity(corner, voxel) == pytest.approx(19 / (100 - 81 / 2))


def test_robust_log_normal_ignores_outliers() -> None:
    rng = np.random.default_rng(0)
    volumes = np.concatenate([np.exp(rng.normal(15, 0.5, 2000)), np.full(100, np.exp(25.0))])
    median, sigma = robust_log_normal(volumes)
    assert np.log(median) == pytest.approx(15, abs=0.1)
    assert sigma == pytest.approx(0.5, abs=0.06)


# audit


def strata(counts: dict[tuple[str, str], int]) -> dict[int, audit.Stratum]:
    names = [stratum for stratum, count in counts.items() for _ in range(count)]
    return dict(enumerate(names, start=1))


POPULATION = strata(
    {("mito", "flagged"): 60, ("mito", "unflagged"): 340, ("er", "unflagged"): 12, ("endo", "flagged"): 3}
)


def test_without_an_audit_no_error_rate_is_known(tmp_path: Path) -> None:
    drawing = Drawing()
    drawing.ball(1, (20, 75, 75), 12)
    certificate = drawing.certify()
    assert certificate.error_rates == {}
    assert "No error rate is known" in certificate.summary()
    write_certificate(certificate, tmp_path)
    stored = json.loads((tmp_path / "certificate.json").read_text())
    assert stored["error_rate"] is None
    assert stored["organelles"]["mito"]["error_rate"] is None


def test_the_sample_is_random_stratified_and_reproducible() -> None:
    sample = audit.draw(POPULATION, 0, 100)
    assert sample == audit.draw(dict(reversed(POPULATION.items())), 0, 100)
    assert sample.drawn != audit.draw(POPULATION, 1, 100).drawn
    ids = [id_ for id_, _ in sample.drawn]
    assert len(ids) == len(set(ids)) == 100
    assert all(POPULATION[id_] == stratum for id_, stratum in sample.drawn)
    assert {stratum for _, stratum in sample.drawn[:20]} >= {("mito", "flagged"), ("mito", "unflagged")}
    counts = {stratum: sum(own == stratum for _, own in sample.drawn) for stratum in sample.sizes}
    assert counts["endo", "flagged"] == 3  # small strata completely
    assert counts["mito", "flagged"] / 60 > counts["mito", "unflagged"] / 340
    assert len(audit.draw(POPULATION, 0, 10**6).drawn) == len(POPULATION)
    assert len(audit.draw(POPULATION, 0, 1).drawn) == 4  # at least one of each
    assert audit.draw({}, 0, 10).drawn == ()


def test_every_instance_has_the_same_chance_within_its_stratum() -> None:
    drawn = np.zeros(41)
    for seed in range(600):
        for id_, _ in audit.draw(strata({("mito", "unflagged"): 40}), seed, 10).drawn:
            drawn[id_] += 1
    # 600 draws at 1/4: standard deviation 10.6; the largest of 40 stays within 4 of them
    assert np.abs(drawn[1:] - 150).max() < 4 * 10.6


@pytest.mark.parametrize("rates", [(0.5, 0.03, 0.2, 0.3), (0.8, 0.10, 0.0, 1.0), (0.1, 0.005, 0.1, 0.0)])
def test_the_interval_covers_the_truth_at_its_nominal_rate(rates: tuple[float, ...]) -> None:
    """200 audits of one population; 95 % nominal, binomial standard deviation 1.5 %: at least 95 - 3 x 1.5 = 90.5 %."""
    rng = np.random.default_rng(7)
    rate_of = dict(zip(dict.fromkeys(POPULATION.values()), rates, strict=True))
    wrong = {id_: bool(rng.random() < rate_of[stratum]) for id_, stratum in POPULATION.items()}
    truth = sum(wrong.values()) / len(wrong)
    covered, estimates = 0, []
    for seed in range(200):
        sample = audit.draw(POPULATION, seed, 100)
        estimate = audit.estimate(sample, {id_: wrong[id_] for id_, _ in sample.drawn})
        assert estimate is not None
        assert 0 <= estimate.low <= estimate.rate <= estimate.high <= 1
        covered += estimate.low <= truth <= estimate.high
        estimates.append(estimate.rate)
    assert covered / 200 >= 0.905
    # unbiased: the mean of 200 within 4 standard errors
    assert abs(np.mean(estimates) - truth) < 4 * np.std(estimates) / np.sqrt(200)


def test_wilson_interval() -> None:
    # n = 10, 0 wrong, no correction for a large population: 0 to z^2 / (n + z^2)
    assert audit.wilson(0, 10, 10**9) == pytest.approx((0, 1.96**2 / (10 + 1.96**2)), abs=1e-4)
    assert audit.wilson(3, 10, 10) == (0.3, 0.3)  # everything judged
    low, high = audit.wilson(5, 20, 40)
    wide_low, wide_high = audit.wilson(5, 20, 4000)
    assert wide_low < low < 0.25 < high < wide_high
    assert audit.wilson(0, 19, 20)[1] <= 1 / 20  # of 20 instances 19 are known to be right


def test_an_unjudged_stratum_leaves_the_rate_unknown() -> None:
    sample = audit.draw(POPULATION, 0, 100)
    mito = {id_: False for id_, stratum in sample.drawn if stratum[0] == "mito"}
    assert audit.estimate(sample, mito) is None
    assert audit.estimate(sample, mito, "mito") is not None
    assert audit.estimate(sample, {}) is None


@pytest.fixture
def audited(tmp_path: Path) -> tuple[Drawing, Path]:
    """A volume with a planted split and crumb, and the unfilled audit of its certificate."""
    drawing = Drawing()
    for id_, (y, x) in enumerate(itertools.product((15, 45), (20, 50, 80, 110)), start=1):
        drawing.ball(id_, (20, y, x), 8)
    drawing.box(20, slice(12, 28), slice(90, 106), slice(20, 80))
    drawing.box(21, slice(12, 28), slice(90, 106), slice(80, 110))
    drawing.box(22, slice(5, 9), slice(130, 134), slice(20, 24))
    write_certificate(drawing.certify(), tmp_path)
    return drawing, tmp_path / "audit.csv"


def rewrite(path: Path, verdict: str, first: int = 0, last: int = 10**6) -> None:
    """Fill the verdict of a range of rows."""
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows[first:last]:
        row["verdict"], row["note"] = verdict, "seen, twice"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_filled_audit_gives_an_error_rate(audited: tuple[Drawing, Path]) -> None:
    drawing, path = audited
    rewrite(path, "ok")
    rewrite(path, " Wrong  Class", 0, 1)
    certificate = drawing.certify(audit=path)
    everything = certificate.error_rates["all"]
    assert (everything.rate, everything.low, everything.high) == pytest.approx((1 / 11, 1 / 11, 1 / 11))  # all judged
    assert certificate.error_rates["mito"] == everything
    assert "9.1% of instances are wrong" in certificate.summary()
    write_certificate(certificate, path.parent)
    stored = json.loads((path.parent / "certificate.json").read_text())
    assert stored["audit"]["verdicts"] == {"ok": 10, "merge": 0, "split": 0, "crumb": 0, "wrong class": 1}
    assert stored["error_rate"]["judged"] == 11
    again = drawing.certify(audit=path)  # verdicts and notes survive
    assert again.judgements == certificate.judgements
    assert next(iter(again.judgements.values())) == audit.Judgement("wrong class", "seen, twice")


def test_a_smaller_sample_filled_in_part(audited: tuple[Drawing, Path], tmp_path: Path) -> None:
    drawing, _ = audited
    write_certificate(drawing.certify(audit_size=8), tmp_path / "small")
    path = tmp_path / "small" / "audit.csv"
    rewrite(path, "ok", 0, 6)
    rate = drawing.certify(audit=path).error_rates["all"]
    assert rate.rate == 0
    assert 0 < rate.high < 0.6
    assert rate.judged == 6


def test_an_unfilled_audit_counts_as_none(audited: tuple[Drawing, Path]) -> None:
    drawing, path = audited
    unfilled, without = drawing.certify(audit=path), drawing.certify()
    assert (unfilled.sample, unfilled.flags, unfilled.judgements) == (without.sample, without.flags, {})
    drawing.volume[drawing.volume == 22] = 0  # also that of other instances: nothing is lost
    certificate = drawing.certify(audit=path)
    assert "No error rate is known" in certificate.summary()
    write_certificate(certificate, path.parent)
    assert certificate.sample.key in path.read_text()


def test_verdicts_are_never_overwritten(audited: tuple[Drawing, Path]) -> None:
    drawing, path = audited
    rewrite(path, "ok")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(InputError, match="verdicts that would be lost"):
        write_certificate(drawing.certify(), path.parent)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def filled(text: str) -> list[str]:
    """Lines of an audit file with every instance judged right."""
    return text.replace(",,\n", ",ok,\n").split("\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",,\n", ",maybe,\n", 1), r"line 2: unknown verdict(.|\n)*'maybe'(.|\n)*ok / merge"),
        (lambda text: text.replace("verdict", "opinion"), r"line 1: no column verdict"),
        (lambda text: "", r"line 1: no column(.|\n)*an empty file"),
        (
            lambda text: text.replace(",,\n", ",ok,fine, really\n", 1),
            r"line 2: wrong number of columns(.|\n)*17(.|\n)*16",
        ),
        (lambda text: "\n".join([*filled(text)[:2], *filled(text)[3:]]), r"line 3: not the row that was drawn"),
        (
            lambda text: "\n".join(filled(text) + filled(text)[-2:]),
            r"line 14: not the row(.|\n)*expected: no further row",
        ),
        (lambda text: ",ok,\n".join(text.rsplit(",,\n", 1)), r"line 2: no verdict(.|\n)*line 12"),
        (
            lambda text: "\n".join(filled(text)).replace(text.split("\n")[1].split(",")[1], "00000000"),
            r"line 2: not the row that was drawn",
        ),
        (lambda text: text.replace(",", ";"), r"line 1: no column(.|\n)*commas"),
    ],
)
def test_a_malformed_audit_is_named(audited: tuple[Drawing, Path], change: object, message: str) -> None:
    drawing, path = audited
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        drawing.certify(audit=path)
    assert str(path) in str(caught.value)


def test_an_audit_of_other_instances_is_refused(audited: tuple[Drawing, Path]) -> None:
    drawing, path = audited
    rewrite(path, "ok")
    drawing.volume[drawing.volume == 22] = 0
    with pytest.raises(InputError, match="line 2: not the row that was drawn"):
        drawing.certify(audit=path)
    with pytest.raises(InputError, match="does not exist"):
        drawing.certify(audit=path.with_name("none.csv"))


def test_the_same_volume_gives_the_same_bytes(audited: tuple[Drawing, Path], tmp_path: Path) -> None:
    drawing, path = audited
    write_certificate(drawing.certify(), tmp_path / "again")
    for name in ("certificate.json", "queue.csv", "audit.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (path.parent / name).read_bytes()


def test_a_foreign_table_and_an_empty_volume() -> None:
    drawing = Drawing()
    empty = drawing.certify()
    assert (empty.flags, empty.queue, empty.sample.drawn) == ((), (), ())
    table = measure(drawing.volume, {}, VOXEL)
    drawing.ball(1, (20, 75, 75), 12)
    with pytest.raises(InputError, match="table does not belong"):
        drawing.certify(table=table)
