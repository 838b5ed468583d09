"""``em-bench leaderboard update`` against the Hub double: idempotent, and safe to interrupt anywhere."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import leaderboard_documents
import pyarrow.parquet as pq
import pytest
from hub_double import HubDouble
from leaderboard_scene import (
    NAME,
    NO_WAITS,
    STAMP,
    Dying,
    FakeJudge,
    Killed,
    api,
    comments,
    pull,
    requests_that_change,
    scene,
    send,
    state,
    submissions_repository,
    table,
    update,
)

from em_bench_eval.alone import alone
from em_bench_eval.cli_leaderboard import rebuild
from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.comments import Mark, mark_of
from em_bench_eval.leaderboard.pulls import Submissions
from em_bench_eval.leaderboard.results import PARQUET, Results
from em_bench_eval.leaderboard.update import Options, Update


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    with submissions_repository(monkeypatch, tmp_path / "cache") as double:
        yield double


# --- one run ----------------------------------------------------------------------------------------------------------


def test_scores_comments_merges_and_records(hub: HubDouble, tmp_path: Path) -> None:
    number = send(hub, tmp_path, "1.0")
    run = update(hub, tmp_path)
    assert pull(hub, number).status == "merged"
    assert not run.report.failed
    files = hub.files("dataset", NAME)
    assert files["submissions/their-lab/unet/predictions.parquet"] == b"1.0"
    (row,) = table(hub)
    origin = row["provenance"]
    assert origin["pull_request"] == number
    assert (origin["author"], origin["path"], origin["scored_by"]) == ("igor", "submissions/their-lab/unet", "maria")
    assert origin["commit"] == hub.repo("dataset", NAME).refs[f"refs/pr/{number}"]
    assert origin["repository"] == NAME
    document = json.loads(files[f"results/{row['hash']}.json"])
    assert (
        row["scores"]["all"]["macro/dice__instance"]
        == document["scores"]["all"]["macro/dice__instance"]
        == pytest.approx(0.7)
    )
    parquet = pq.read_table(io.BytesIO(files[PARQUET])).to_pylist()
    assert json.loads(parquet[0]["document"]) == document
    score = next(one for one in parquet[0]["scores"] if (one["group"], one["key"]) == ("all", "macro/dice__instance"))
    assert (score["value"], score["low"], score["high"]) == pytest.approx((0.7, 0.65, 0.75))
    (comment,) = comments(hub, number)
    assert "| all images | mean | 0.700 (0.650 to 0.750) |" in comment
    assert "**Scored. Ranked.**" in comment
    assert mark_of(comment) == Mark("scored", row["hash"], STAMP)
    assert gzip.decompress(files[f"pictures/{row['hash']}.json.gz"]) == b"[]"


def test_a_second_run_changes_nothing(hub: HubDouble, tmp_path: Path) -> None:
    send(hub, tmp_path, "1.0")
    send(hub, tmp_path, "refuse", "their-lab/bad")
    update(hub, tmp_path)
    before, changing = state(hub), requests_that_change(hub)
    judge = FakeJudge()
    update(hub, tmp_path, judge)
    assert state(hub) == before
    assert (judge.calls, requests_that_change(hub)) == (0, changing)


def test_prompted_rows_are_never_ranked(hub: HubDouble, tmp_path: Path) -> None:
    number = send(hub, tmp_path, "1.1 oracle:points")
    update(hub, tmp_path)
    assert [row["ranked"] for row in table(hub)] == [False]
    assert "Listed, not ranked: it was shown something of the reference" in comments(hub, number)[0]
    document = leaderboard_documents.document("x", leaderboard_documents.ALL, prompts="oracle:points")
    with pytest.raises(InputError, match="must not be ranked"):
        Results().put({**document, "ranked": True})


def test_faulty_ones_do_not_block_the_others(
    hub: HubDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ("refuse", "disk", "bug", "1.0")
    numbers = {text: send(hub, tmp_path, text, f"lab/{text.replace('.', '')}") for text in said}
    run = update(hub, tmp_path)
    assert {text: pull(hub, number).status for text, number in numbers.items()} == {
        "refuse": "open",
        "disk": "open",
        "bug": "open",
        "1.0": "merged",
    }
    assert [len(comments(hub, number)) for number in numbers.values()] == [1, 0, 0, 1]
    assert len(run.report.failed) == 2, "faults of the disk and of ours are told to maintainers, not to strangers"
    assert "no space left" in run.report.failed[0]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert len(table(hub)) == 1


def test_refused_ones_are_closed_if_wanted(hub: HubDouble, tmp_path: Path) -> None:
    number = send(hub, tmp_path, "refuse")
    update(hub, tmp_path)
    assert pull(hub, number).status == "open"
    update(hub, tmp_path, close_refused=True)
    assert pull(hub, number).status == "closed"
    assert len(comments(hub, number)) == 1


def test_a_correction_is_looked_at(hub: HubDouble, tmp_path: Path) -> None:
    number = send(hub, tmp_path, "refuse")
    update(hub, tmp_path)
    assert send(hub, tmp_path, "0.5") == number, "the same pull request"
    update(hub, tmp_path)
    assert pull(hub, number).status == "merged"
    assert [mark.state for mark in map(mark_of, comments(hub, number)) if mark] == ["refused", "scored"]


def test_dry_run_changes_nothing_on_the_hub(hub: HubDouble, tmp_path: Path) -> None:
    send(hub, tmp_path, "1.0")
    send(hub, tmp_path, "refuse", "their-lab/bad")
    before = requests_that_change(hub)
    run = update(hub, tmp_path, dry_run=True)
    assert requests_that_change(hub) == before
    assert len(run.results) == 1
    assert list(hub.files("dataset", NAME)) == ["README.md"]


def test_once_judges_one_again(hub: HubDouble, tmp_path: Path) -> None:
    first, second = send(hub, tmp_path, "refuse"), send(hub, tmp_path, "1.0", "their-lab/other")
    judge = FakeJudge()
    update(hub, tmp_path, judge, once=first)
    update(hub, tmp_path, judge, once=first)
    assert judge.calls == 2
    assert len(comments(hub, first)) == 1
    assert pull(hub, second).status == "open"


# --- kills, races, faults of the Hub ----------------------------------------------------------------------------------


CHANGES = 8  # of the uninterrupted run: commit, comment, merge; comment, close; commit, comment, merge


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch, submissions_repository(patch, work / "cache") as double:
        scene(double, work)
        before = requests_that_change(double)
        update(double, work, close_refused=True)
        assert requests_that_change(double) - before == CHANGES
        return state(double)


@pytest.mark.parametrize("at", range(1, CHANGES + 1))
def test_killed_anywhere_the_next_run_ends_the_same(
    hub: HubDouble, tmp_path: Path, uninterrupted: dict[str, Any], at: int
) -> None:
    """Before and after each request that changes something; then once more, to see that nothing moves."""
    scene(hub, tmp_path)
    for after in (False, True):
        dying = Submissions(Dying(api(hub), at if not after else 1, after=after), NAME, NO_WAITS)
        with suppress(Killed):  # or nothing was left to do
            Update(dying, FakeJudge(), tmp_path / "work", Options(close_refused=True)).run()
    update(hub, tmp_path, close_refused=True)
    assert state(hub) == uninterrupted
    update(hub, tmp_path, close_refused=True)
    assert state(hub) == uninterrupted


@pytest.mark.parametrize("how", [{"status": 503}, {"cut": True}, {"cut": True, "after": True}], ids=str)
def test_faults_that_pass(hub: HubDouble, tmp_path: Path, uninterrupted: dict[str, Any], how: dict[str, Any]) -> None:
    scene(hub, tmp_path)
    for path in ("/commit/main", r"/discussions/\d+/comment", r"/discussions/\d+/merge", r"/discussions/\d+/status"):
        hub.fail("POST", path, **how)
    run = update(hub, tmp_path, close_refused=True)
    assert not run.report.failed
    assert state(hub) == uninterrupted


def test_the_hub_is_down_for_one_submission_only(hub: HubDouble, tmp_path: Path) -> None:
    first, second = send(hub, tmp_path, "1.0"), send(hub, tmp_path, "0.8", "their-lab/other")
    hub.fail("POST", f"/discussions/{first}/merge", status=500, times=3)
    run = update(hub, tmp_path)
    assert [pull(hub, number).status for number in (first, second)] == ["open", "merged"]
    assert len(run.report.failed) == 1
    update(hub, tmp_path)
    assert pull(hub, first).status == "merged"
    assert len(comments(hub, first)) == 1


def test_a_push_while_it_is_scored(hub: HubDouble, tmp_path: Path) -> None:
    number = send(hub, tmp_path, "1.0")
    judge = FakeJudge()
    judge.meanwhile = lambda: send(hub, tmp_path, "0.5")
    update(hub, tmp_path, judge)
    assert judge.calls == 2
    assert pull(hub, number).status == "merged"
    assert [row["scores"]["all"]["macro/dice__instance"] for row in table(hub)] == pytest.approx([0.35])
    assert len(comments(hub, number)) == 1


def test_two_maintainers_at_the_same_time(hub: HubDouble, tmp_path: Path) -> None:
    """While the first scores, the second does all of it; and somebody commits between reading and writing."""
    scene(hub, tmp_path)
    judge = FakeJudge()
    judge.meanwhile = lambda: update(hub, tmp_path / "second", token="hf_second")
    run = update(hub, tmp_path, judge)
    assert not run.report.failed
    assert len(table(hub)) == 2
    for number in (1, 3):
        assert pull(hub, number).status == "merged"
        assert len(comments(hub, number, "maria", "second")) == 1


def test_the_table_is_never_lost_to_a_race(hub: HubDouble, tmp_path: Path) -> None:
    scene(hub, tmp_path)
    real, raced = Submissions.commit, []

    def commit(self: Submissions, operations: Any, title: str, parent: str) -> str:
        if not raced:
            raced.append(True)
            update(hub, tmp_path / "second", token="hf_second")
        return real(self, operations, title, parent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Submissions, "commit", commit)
        update(hub, tmp_path)
    assert len(table(hub)) == 2
    assert any(status == 412 for _, path, status in hub.log if "/commit/main" in path)


def test_the_lock_keeps_a_second_run_out(tmp_path: Path) -> None:
    (tmp_path / "site.work").mkdir()
    command = ["--results", str(tmp_path / "board"), "--out", str(tmp_path / "site")]
    refusal = pytest.raises(InputError, match=r"another run is using .*site.work\n.*name another --work and --out")
    with alone(tmp_path / "site.work" / "lock", "x"), refusal:
        rebuild(command)
    assert not (tmp_path / "site").exists()
    assert rebuild(command) == 0
