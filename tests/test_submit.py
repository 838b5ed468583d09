"""``em-bench submit``, and the process that scores: what is sent, what is refused, and what a hostile one can do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import leaderboard_scene as scene
import pytest
import submission_forms as forms
from hub_double import HubDouble
from huggingface_hub.errors import HfHubHTTPError

from em_bench_eval import cli_submit, hub_upload
from em_bench_eval.cli_leaderboard import leaderboard
from em_bench_eval.cli_submit import submit
from em_bench_eval.errors import InputError
from em_bench_eval.hub_upload import hashed
from em_bench_eval.leaderboard import judge as judge_module
from em_bench_eval.leaderboard import sending
from em_bench_eval.leaderboard.items import expected_items
from em_bench_eval.leaderboard.judge import Judge, pack_pictures, unpack_pictures
from em_bench_eval.leaderboard.results import read_folder
from em_bench_eval.leaderboard.sending import folder_of, slug
from em_bench_eval.leaderboard.submission import check
from em_bench_eval.rows import decode_row, open_rows

TO = ["--to", scene.NAME]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    monkeypatch.setattr(hub_upload, "FILES_PER_COMMIT", 1)
    with scene.submissions_repository(monkeypatch, tmp_path / "cache") as double:
        yield double


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge in this process: starting another one takes seconds."""
    monkeypatch.setattr(
        "em_bench_eval.leaderboard.guarded.check_guarded", lambda folder, expected, **_: check(folder, expected)
    )
    monkeypatch.setattr(sending, "WAITS_S", (0.0, 0.0))


@pytest.fixture(scope="module")
def made(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    predictions = [forms.damaged(decode_row(row)) for row in open_rows(tiny_dataset, forms.CONFIG, forms.SPLIT)]
    expected = expected_items(tiny_dataset, forms.CONFIG, forms.SPLIT)
    return forms.write(tmp_path_factory.mktemp("team") / "unet", "parquet", predictions, expected)


@pytest.fixture
def submission(made: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(made, tmp_path / "predictions"))


# --- submit -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_sends_one_pull_request_and_continues_it(
    hub: HubDouble, submission: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (submission / "debug.log").write_text("not part of it")
    arguments = [str(submission), *TO, "--dataset", str(tiny_dataset)]
    assert submit([*arguments, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "ACCEPTED" in told
    assert "predictions.parquet" in told
    assert "dry run: nothing was sent" in told
    assert not hub.repo("dataset", scene.NAME).discussions
    assert submit(arguments) == 0
    told = capsys.readouterr().out
    assert f"{hub.url}/datasets/{scene.NAME}/discussions/1" in told
    assert "hf_stranger" not in told
    files = hub.files("dataset", scene.NAME, "refs/pr/1")
    start = "submissions/a-laboratory/u-net-ours/"
    assert {name for name in files if name != "README.md"} == {
        start + name for name in ("predictions.parquet", "prediction.json", "submission.yaml")
    }
    assert files[start + "predictions.parquet"] == (submission / "predictions.parquet").read_bytes()
    assert scene.pull(hub, 1).status == "open"
    assert submit(arguments) == 0
    assert "sent now: 0 files" in capsys.readouterr().out
    manifest = submission / "submission.yaml"
    manifest.write_text(manifest.read_text().replace("one GPU, 6 h", "two GPUs, 3 h"))
    assert submit(arguments) == 0
    assert "sent now: 1 files" in capsys.readouterr().out
    assert list(hub.repo("dataset", scene.NAME).discussions) == [1]
    scene.api(hub).merge_pull_request(scene.NAME, 1, repo_type="dataset")
    assert submit(arguments) == 0
    assert "it is merged already" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_what_would_be_refused_is_not_sent(
    hub: HubDouble, submission: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (submission / "submission.yaml").write_text(forms.manifest(prompts="oracle"))
    assert submit([str(submission), *TO, "--dataset", str(tiny_dataset)]) == 2
    told = capsys.readouterr()
    assert "NOT ACCEPTED" in told.out
    assert "nothing was sent" in told.err
    (submission / "submission.yaml").unlink()
    assert submit([str(submission), *TO, "--dataset", str(tiny_dataset)]) == 2
    assert "FILL_IN" in (submission / "submission.yaml").read_text()
    assert "complete it" in capsys.readouterr().err
    with pytest.raises(InputError, match="no submission"):
        submit([str(submission / "none"), *TO])
    with pytest.raises(InputError, match="names a repository"):
        submit([str(submission), "--to", "nonsense"])
    assert not hub.log[2:] or not hub.repo("dataset", scene.NAME).discussions


@pytest.mark.parametrize("skip", range(5))
@pytest.mark.parametrize("how", [{"status": 503, "times": 4}, {"cut": True, "after": True, "times": 1}], ids=str)
def test_cut_off_and_continued(hub: HubDouble, tmp_path: Path, skip: int, how: dict[str, Any]) -> None:
    """Faults at every request that sends something; maintainers never see half a submission as open."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("submission.yaml", "predictions.parquet", "README.md"):
        (folder / name).write_text(name)
    files = hashed({path.name: path for path in folder.iterdir()})
    hub.fail("POST", "/commit/|/discussions", skip=skip, **how)

    def send() -> Any:
        return sending.submit(scene.api(hub, "hf_stranger"), scene.NAME, "submissions/a/b", files, (0.0,))

    with suppress(HfHubHTTPError):  # of one attempt more than it makes, or none
        send()
    for pull in hub.repo("dataset", scene.NAME).discussions.values():
        complete = len(hub.files("dataset", scene.NAME, f"refs/pr/{pull.num}")) == 1 + len(files)
        assert pull.status == "draft" or complete
    hub.faults.clear()
    sent = send()
    opened = [pull for pull in hub.repo("dataset", scene.NAME).discussions.values() if pull.status == "open"]
    assert [pull.num for pull in opened] == [sent.number]
    assert len(hub.files("dataset", scene.NAME, f"refs/pr/{sent.number}")) == 1 + len(files)


def test_names_of_folders() -> None:
    assert slug("U-Net (ours), größer") == "u-net-ours-groer"
    assert folder_of("A lab", "U-Net v1.2") == "submissions/a-lab/u-net-v1.2"
    assert folder_of("", "", "Lab/My_Model") == "submissions/Lab/My_Model"
    for team, model, name in (
        ("日本", "x", None),
        ("", "", "a/b/c"),
        ("", "", "../x"),
        ("", "", "a/.b"),
        ("a", "..", None),
    ):
        with pytest.raises(InputError, match="no name of a folder"):
            folder_of(team, model, name)


# --- the process that scores -----------------------------------------------------------------------------------------


def test_add_scores_a_folder_here_and_makes_the_page(
    submission: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real process, from the command line; its result is that of re-scoring in this process."""
    from em_bench_eval.leaderboard.rescoring import rescore
    from em_bench_eval.leaderboard.results import lasting

    out, board = tmp_path / "site", tmp_path / "board"
    options = ["--reference", str(tiny_dataset), "--results", str(board), "--out", str(out)]
    assert leaderboard(["add", str(submission), *options]) == 0
    (document,) = read_folder(board).documents.values()
    assert lasting(document) == lasting(json.loads(json.dumps(rescore(submission, tiny_dataset, progress=False))))
    page = next((out / "submissions").glob("*.html")).read_text()
    assert "data:image/webp" in page
    assert "U-Net (ours)" in (out / "index.html").read_text()
    first = (out / "index.html").read_bytes()
    capsys.readouterr()
    assert leaderboard(["rebuild", "--results", str(board), "--out", str(out)]) == 0
    assert (out / "index.html").read_bytes() == first


def judge(tmp_path: Path, dataset: Path, **options: Any) -> Judge:
    return Judge(str(dataset), tmp_path / "work", progress=False, **options)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import time; time.sleep(60)", "resources"),
        ("import os; os.abort()", "crash"),
        ("raise SystemExit(3)", "crash"),
        ("print('\\x1b[31mowned')", "crash"),
    ],
)
def test_whatever_the_process_does_there_is_a_verdict(
    submission: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: str
) -> None:
    monkeypatch.setattr(judge_module, "command_of", lambda *job: [sys.executable, "-c", code])
    judged = judge(tmp_path, tiny_dataset, minutes=0.01 if kind == "resources" else 1)(submission)
    assert judged.result is None
    assert judged.refused is not None
    assert [group["kind"] for group in judged.refused.faults] == [kind]


def test_the_process_gets_no_token(
    submission: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys, json\n"
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'seen')!r}).write_text(json.dumps([dict(os.environ), os.listdir('.')]))\n"
    )
    monkeypatch.setattr(judge_module, "command_of", lambda *job: [sys.executable, "-c", code])
    for name in ("HF_TOKEN", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "hf_secret")
    judge(tmp_path, tiny_dataset)(submission)
    environment, listed = json.loads((tmp_path / "seen").read_text())
    assert "hf_secret" not in json.dumps(environment)
    assert environment["HF_HUB_OFFLINE"] == environment["HF_DATASETS_OFFLINE"] == "1"
    assert environment["HF_HOME"] != os.environ.get("HF_HOME")
    assert listed == ["job.json"]


def test_what_this_leaderboard_does_not_score(submission: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    own = judge(tmp_path, tiny_dataset)
    (submission / "submission.yaml").write_text(forms.manifest(config="homogeneous", split="validation"))
    import em_bench_eval.leaderboard.judge as module

    def none(*_: object) -> Any:
        raise InputError("my-lab/secret-name has no split")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "expected_items", none)
        patch.setattr(module, "data_files", none)
        refused = own(submission).refused
    assert refused is not None
    assert "homogeneous/validation" in refused.to_text()
    assert "secret" not in refused.to_text()
    with pytest.raises(InputError, match="cannot open the reference"):
        judge(tmp_path, tmp_path / "no-dataset").stamp()


def test_current_results(submission: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    from em_bench_eval.leaderboard.rescoring import rescore
    from em_bench_eval.settings import Settings

    own, document = judge(tmp_path, tiny_dataset), rescore(submission, tiny_dataset, progress=False)
    assert own.is_current(document)
    assert own.can_be_current(document)
    assert not own.is_current({**document, "metric_version": "0"})
    assert not own.is_current({**document, "dataset": {**document["dataset"], "fingerprint": "content of yesterday"}})
    assert not own.can_be_current({**document, "dataset": {**document["dataset"], "split_hash": "0" * 64}})
    other = judge(tmp_path, tiny_dataset, settings=Settings(min_size_nm=50.0))
    assert not other.is_current(document)
    assert own.stamp() != other.stamp()
    assert len(own.stamp()) == 12


def test_packed_pictures() -> None:
    pictures = [{"role": "best", "image": "data:image/webp;base64,AAAA"}]
    assert unpack_pictures(pack_pictures(pictures)) == pictures
    assert pack_pictures(pictures) == pack_pictures(pictures)
    assert unpack_pictures(b"no gzip") == []


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaderboard(["updaet"]) == 2
    assert "did you mean 'update'" in capsys.readouterr().err
    for what in ("update", "rebuild", "add"):
        with pytest.raises(SystemExit):
            leaderboard([what, "--help"])
        assert f"em-bench leaderboard {what} " in capsys.readouterr().out.split("example", 1)[1]
    assert cli_submit.EPILOG.count("em-bench submit ") == 2


def test_private_labels_are_never_drawn(hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    scene.api(hub).create_repo("my-lab/labels", repo_type="dataset", private=True)
    options = ["--submissions", scene.NAME, "--reference", "my-lab/labels", "--out", str(tmp_path / "site")]
    with pytest.raises(InputError, match="labels that are private"):
        leaderboard(["update", *options, "--show-reference"])


def test_only_sources_that_may_be_passed_on_are_drawn(tiny_dataset: Path, tmp_path: Path) -> None:
    assert judge(tmp_path, tiny_dataset)._may_be_shown() == ["hela_sbfsem", "vnc_sstem"], (
        "lucchipp has no licence for it"
    )
    assert judge(tmp_path, tmp_path)._may_be_shown() == [], "unknown is no"
