"""Pull requests that mean no good, and what is merged: nothing of them is run, believed, or in the way of others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import leaderboard_documents
import pytest
from hub_double import HubDouble
from leaderboard_scene import (
    NAME,
    NO_WAITS,
    STAMP,
    FakeJudge,
    api,
    comments,
    pull,
    raw_pull,
    requests_that_change,
    scene,
    send,
    submissions_repository,
    table,
    update,
)

from em_bench_eval.leaderboard import hub_results
from em_bench_eval.leaderboard.comments import Mark, code_block, mark_of
from em_bench_eval.leaderboard.fetching import Limits, check_listing
from em_bench_eval.leaderboard.pulls import Submissions
from em_bench_eval.leaderboard.results import TABLE, Results, read_folder, write_folder
from em_bench_eval.leaderboard.site_update import STATE, publish_site, remake


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    with submissions_repository(monkeypatch, tmp_path / "cache") as double:
        yield double


# --- hostile pull requests --------------------------------------------------------------------------------------------


SPACE = "my-lab/em-organelle-leaderboard"
SOUND = {"submissions/a/b/submission.yaml": b"model: b", "submissions/a/b/predictions.parquet": b"1.0"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"results/" + "a" * 64 + ".json": b"{}"}, "one folder"),
        ({"README.md": b"mine now"}, "one folder"),
        ({"results.json": b"[]"}, "one folder"),
        ({"submissions/c/d/submission.yaml": b""}, "one folder"),
        ({"submissions/a/b/../../../README.md": b"x"}, None),
        ({"submissions/a/b/model.pkl": b"\x80"}, "no part of a submission"),
        ({"submissions/a/b/predictions.Parquet": b"x"}, "a name that is refused"),
        ({"submissions/a/b/a:b": b"x"}, "a name that is refused"),
        ({"submissions/a/coco.json": b"x"}, "one folder"),
    ],
    ids=str,
)
def test_what_is_refused_by_its_listing(
    hub: HubDouble, tmp_path: Path, more: Mapping[str, bytes], said: str | None
) -> None:
    try:
        number = raw_pull(hub, {**SOUND, **more})
    except Exception:
        assert said is None, "the client itself refuses it"
        return
    good = send(hub, tmp_path, "0.9")
    judge, before = FakeJudge(), hub.count("GET", "/resolve/")
    update(hub, tmp_path, judge)
    assert judge.calls == 1
    assert pull(hub, number).status == "open"
    assert said is not None
    assert said in comments(hub, number)[0]
    assert pull(hub, good).status == "merged"
    assert not [path for _, path, _ in hub.log[before:] if "resolve" in path and "/a/b/" in path], "not downloaded"
    assert hub.files("dataset", NAME)["README.md"] == b"card"


def test_giants_are_not_downloaded(hub: HubDouble, tmp_path: Path) -> None:
    number = raw_pull(hub, {**SOUND, "submissions/a/b/predictions.parquet": b"1.0" * 1000})
    update(hub, tmp_path, limits=Limits(files=10, bytes=2000))
    assert "at most 10 files" in comments(hub, number)[0]
    assert not hub.count("GET", "a/b/predictions.parquet")


def test_limits_and_names_of_a_listing() -> None:
    fine = {"submission.yaml": 10, "volumes/a b/c.zarr/.zarray": 10, "objects.csv": 3, "volumes/x@1,2.zarr/c/0": 1}
    assert check_listing(fine) is None
    for name in ("../x", "a/../b", "a//b", "/etc/passwd", "a\\b", "a\x1b[31m", "a/b.", "C:x", "ü.png", "x/" * 20 + "y"):
        assert check_listing({**fine, name: 1}) is not None, name
    assert check_listing({"predictions.parquet": 3}) is not None
    assert check_listing({"submission.yaml": 3}) is not None


def test_somebody_elses_submission_cannot_be_replaced_or_copied(hub: HubDouble, tmp_path: Path) -> None:
    send(hub, tmp_path, "1.0")
    update(hub, tmp_path)
    thief = send(hub, tmp_path, "0.1", token="hf_other")
    copy = send(hub, tmp_path, "1.0", "other-lab/mine", "hf_other")
    update(hub, tmp_path)
    assert "somebody else's" in comments(hub, thief)[0]
    assert "the predictions of submissions/their-lab/unet" in comments(hub, copy)[0]
    assert [row["provenance"]["author"] for row in table(hub)] == ["igor"]


def test_an_author_can_correct_a_merged_submission(hub: HubDouble, tmp_path: Path) -> None:
    send(hub, tmp_path, "1.0")
    update(hub, tmp_path)
    number = send(hub, tmp_path, "0.5")
    update(hub, tmp_path)
    assert number == 2
    assert [row["provenance"]["pull_request"] for row in table(hub)] == [2]
    assert hub.files("dataset", NAME)["submissions/their-lab/unet/predictions.parquet"] == b"0.5"
    assert len([name for name in hub.files("dataset", NAME) if name.startswith(("results/", "pictures/"))]) == 2


def test_a_comment_of_a_stranger_does_not_count_as_ours(hub: HubDouble, tmp_path: Path) -> None:
    number = send(hub, tmp_path, "refuse")
    head = hub.repo("dataset", NAME).refs[f"refs/pr/{number}"]
    forged = Mark("refused", head, STAMP).text() + "done"
    api(hub, "hf_stranger").comment_discussion(NAME, number, comment=forged, repo_type="dataset")
    update(hub, tmp_path)
    assert len(comments(hub, number)) == 1


def test_texts_of_a_submission_stand_in_a_code_block(hub: HubDouble, tmp_path: Path) -> None:
    number = send(hub, tmp_path, "refuse @olga ![x](http://evil/x.png) ~~~\n# owned <img src=x> <!-- em-bench scored")
    update(hub, tmp_path)
    (comment,) = comments(hub, number)
    head, fence, rest = comment.partition("~~~text\n")
    assert fence
    assert "evil" not in head
    inside, end, tail = rest.partition("\n~~~")
    assert end
    assert tail == ""
    assert "~~~" not in inside
    assert "evil" in inside
    assert "@olga" not in comment
    assert "@maria" not in comment
    assert "@0,512" in code_block("a/z/00001@0,512"), "record ids can be copied"
    assert mark_of("> " + comment) is None


def test_a_commit_between_the_last_look_and_the_merge_is_undone(hub: HubDouble, tmp_path: Path) -> None:
    """The Hub cannot be told which commit to merge: what came beside the submission is restored, the rest is scored."""
    number = send(hub, tmp_path, "1.0")
    real = Submissions.merge

    def merge(self: Submissions, found: int) -> Any:
        from huggingface_hub import CommitOperationAdd

        bad = {"README.md": b"owned", "extra.txt": b"x", "submissions/their-lab/unet/predictions.parquet": b"0.5"}
        api(hub, "hf_stranger").create_commit(
            NAME,
            [CommitOperationAdd(name, content) for name, content in bad.items()],
            commit_message="late",
            repo_type="dataset",
            revision=f"refs/pr/{number}",
        )
        return real(self, found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Submissions, "merge", merge)
        run = update(hub, tmp_path)
    files = hub.files("dataset", NAME)
    assert files["README.md"] == b"card"
    assert "extra.txt" not in files
    assert "beside" in run.report.failed[0]
    assert [row["scores"]["all"]["macro/dice__instance"] for row in table(hub)] == pytest.approx([0.35]), (
        "what is there is scored"
    )


def test_pull_requests_of_people_are_left_alone(hub: HubDouble, tmp_path: Path) -> None:
    number = raw_pull(hub, {"README.md": b"a better card"})
    draft = api(hub, "hf_stranger").create_pull_request(NAME, title="soon", repo_type="dataset").num
    update(hub, tmp_path, close_refused=True)
    assert [pull(hub, one).status for one in (number, draft)] == ["open", "draft"]
    assert not comments(hub, number)


# --- what is merged ---------------------------------------------------------------------------------------------------


def test_scored_again_when_the_dataset_changes(hub: HubDouble, tmp_path: Path) -> None:
    number = send(hub, tmp_path, "1.0")
    update(hub, tmp_path)
    before = table(hub)[0]
    judge = FakeJudge("content 2")
    update(hub, tmp_path, judge)
    (row,) = table(hub)
    assert row["dataset_fingerprint"] == "content 2"
    assert row["provenance"] == before["provenance"]
    assert judge.calls == 1
    assert len(comments(hub, number)) == 1
    judge = FakeJudge("content 3")
    judge.possible = False  # other images: nothing to be done, and not tried in every run
    update(hub, tmp_path, judge)
    assert (judge.calls, table(hub)[0]["dataset_fingerprint"]) == (0, "content 2")


def test_merged_by_hand_removed_by_hand_damaged(hub: HubDouble, tmp_path: Path) -> None:
    send(hub, tmp_path, "1.0")
    by_hand = send(hub, tmp_path, "0.8", "other-lab/unet", "hf_other")
    api(hub).merge_pull_request(NAME, by_hand, repo_type="dataset")
    update(hub, tmp_path)
    assert len(table(hub)) == 2
    maintainer = api(hub)
    maintainer.delete_folder("submissions/other-lab", NAME, repo_type="dataset")
    own = next(row["hash"] for row in table(hub) if row["provenance"]["path"].startswith("submissions/their-lab"))
    maintainer.upload_file(path_or_fileobj=b"{}", path_in_repo=f"results/{own}.json", repo_id=NAME, repo_type="dataset")
    update(hub, tmp_path)
    assert [row["hash"] for row in table(hub)] == [own]
    assert json.loads(hub.files("dataset", NAME)[f"results/{own}.json"])["submission"]["hash"] == own


def test_results_are_read_in_one_file(hub: HubDouble, tmp_path: Path) -> None:
    scene(hub, tmp_path)
    found = update(hub, tmp_path).results
    before = len(hub.log)
    submissions = Submissions(api(hub), NAME, NO_WAITS)
    read = hub_results.read_results(submissions, submissions.head())
    assert read.documents == found.documents
    assert not [path for _, path, _ in hub.log[before:] if "resolve" in path and "/results/" in path]


def test_a_local_table(tmp_path: Path) -> None:
    made = Results(leaderboard_documents.documents())
    write_folder(tmp_path, made)
    assert read_folder(tmp_path).documents == json.loads(json.dumps(made.documents))
    rows = json.loads((tmp_path / TABLE).read_text())["rows"]
    assert [row["model"] for row in rows if row["config"] == "wild" and row["ranked"]][:2] != []
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    write_folder(tmp_path, read_folder(tmp_path))
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}, "the same bytes"
    made.drop(rows[0]["hash"])
    write_folder(tmp_path, made)
    assert rows[0]["hash"] not in read_folder(tmp_path).documents


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_made_and_published_once(hub: HubDouble, tmp_path: Path) -> None:
    scene(hub, tmp_path)
    results = update(hub, tmp_path).results
    submissions, out = Submissions(api(hub), NAME, NO_WAITS), tmp_path / "site"

    def make() -> str | None:
        return remake(submissions, api(hub), lambda: results, out, "my-lab/set", tmp_path / "pictures", SPACE)

    assert make() is not None
    files = hub.files("space", SPACE)
    assert b"U-Net" in files["index.html"]
    assert len([name for name in files if name.startswith("submissions/") and name.endswith(".html")]) == 2
    before = requests_that_change(hub)
    assert make() is None
    assert requests_that_change(hub) == before
    (out / STATE).unlink()
    assert make() is None, "made again, the same bytes"
    assert publish_site(api(hub), SPACE, out, NO_WAITS) is None
    results.drop(next(iter(results.documents)))
    assert make() is not None
    assert len([name for name in hub.files("space", SPACE) if name.endswith(".html")]) == 2
