"""The whole loop, from the command line, through the real client libraries, against the Hub double over real HTTP.

A maintainer publishes a dataset without its test labels and sets up a leaderboard; a stranger loads the data, trains,
pushes the model, predicts with it from the Hub and submits; the maintainer updates; the page has the row.

What this cannot show is what only the real Hub knows: its permissions (whether strangers may push large files to their
pull request, what a fine-grained token may do), rate limits, sizes, Xet storage, how it merges and what its listings
say of folders, when caches and listings lag behind, whether comments are shown as written, gated and very large
repositories, and static Spaces being served. See ``hub_double`` for the list of what the double leaves out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hub_double_pulls
import pytest
from hub_double import HubDouble

assert hub_double_pulls
DATA, LABELS = "my-lab/em-organelle-wild", "my-lab/em-organelle-wild-labels"
SUBMISSIONS, SPACE, MODEL = (
    "my-lab/em-organelle-submissions",
    "my-lab/em-organelle-leaderboard",
    "igor/em-organelle-unet",
)
MAINTAINER, STRANGER = "hf_writer", "hf_stranger"

# one process for several commands: each import of torch, datasets and transformers costs seconds
DRIVER = """
import json, os, sys
from em_bench_eval.cli import main
os.environ["HF_TOKEN"] = sys.argv[1]
for arguments in json.loads(sys.argv[2]):
    if arguments[0] == "load_dataset":
        from datasets import load_dataset
        rows = list(load_dataset(*arguments[1:3], split="test", streaming=True).decode(False))
        print(json.dumps({"rows": len(rows), "labelled": sum(bool(row["objects"]) for row in rows)}))
        continue
    print("$ em-bench " + " ".join(arguments))
    status = main(arguments)
    print(f"-> {status}", flush=True)
"""


def run(hub: HubDouble, work: Path, token: str, *commands: Sequence[str]) -> str:
    """Run commands as one user, in a process of their own; every user has another home."""
    switched = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **switched, "HF_HOME": str(work / token), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, token, json.dumps(commands)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert token not in done.stdout + done.stderr, "the token is never printed"
    return done.stdout


def fill_in(manifest: Path) -> None:
    """What a person does with the draft."""
    text = manifest.read_text()
    values = {"team": "Igor @maria", "paper": "none", "code": "none", "compute": "one core, 1 s"}
    for key, value in values.items():
        text = re.sub(rf"^{key}: .*FILL_IN.*$", f'{key}: "{value}"', text, flags=re.MULTILINE)
    text = text.replace("prompts: FILL_IN", "prompts: none").replace("- FILL_IN", "- em-organelle-wild wild/train")
    assert "FILL_IN" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    manifest.write_text(text)


def rows(hub: HubDouble) -> list[dict[str, Any]]:
    return list(json.loads(hub.files("dataset", SUBMISSIONS)["results.json"])["rows"])


@pytest.mark.slow
def test_publish_load_train_push_predict_submit_update(tiny_dataset: Path, tmp_path: Path) -> None:
    update = ["leaderboard", "update", "--submissions", SUBMISSIONS, "--reference", LABELS]
    update += ["--dataset", DATA, "--out", "site", "--publish-to", SPACE]
    submit = ["submit", "predictions", "--to", SUBMISSIONS, "--dataset", DATA]
    where = ["--submissions", SUBMISSIONS, "--dataset", DATA, "--labels", LABELS]
    with HubDouble() as hub:
        run(
            hub,
            tmp_path,
            MAINTAINER,
            ["push", "dataset", str(tiny_dataset), "--to", DATA, "--private-labels", "test", "--public"],
            [*["push", "leaderboard", "--public", "--to"], SPACE, *where],
        )
        assert hub.repo("dataset", LABELS).private
        said = run(
            hub,
            tmp_path,
            STRANGER,
            ["load_dataset", DATA, "wild"],
            ["train", "--model", "unet", "--preset", "smoke", "--steps", "2", "--dataset", DATA, "--out", "runs/unet"],
            ["push", "model", "runs/unet", "--to", MODEL, "--dataset", DATA],
            ["predict", "--checkpoint", MODEL, "--dataset", DATA, "--split", "test", "--out", "predictions"],
            submit,
        )
        loaded = json.loads(said.splitlines()[0])
        assert loaded["rows"] > 0
        assert loaded["labelled"] == 0
        assert said.splitlines()[-1] == "-> 2", "a draft of submission.yaml, for a person to complete"
        fill_in(tmp_path / "predictions" / "submission.yaml")

        said = run(hub, tmp_path, STRANGER, [*submit, "--dry-run"], submit, submit)
        assert "dry run: nothing was sent" in said
        assert said.count("/discussions/") == 2, "the second call continues the pull request of the first"
        number = int(re.findall(r"/discussions/(\d+)", said)[-1])
        pull = hub.repo("dataset", SUBMISSIONS).discussions[number]
        assert pull.status == "open"
        assert len([one for one in hub.repo("dataset", SUBMISSIONS).discussions.values() if one.author == "igor"]) == 1

        said = run(hub, tmp_path, MAINTAINER, update, update)
        assert said.count("-> 0") == 2
        assert pull.status == "merged"
        (row,) = rows(hub)
        assert row["provenance"]["author"] == "igor"
        assert row["dataset"] == LABELS
        assert row["dataset_revision"] == hub.repo("dataset", LABELS).commit_of("main").oid
        assert row["ranked"]
        texts = [event["data"]["latest"]["raw"] for event in pull.events if event["type"] == "comment"]
        assert len(texts) == 2, "the first is the description of the pull request"
        assert "**Scored. Ranked.**" in texts[1]
        assert "@maria" not in texts[1]

        page = hub.files("space", SPACE)
        assert b"Igor @maria" in page["index.html"]
        details = [name for name in page if name.startswith("submissions/") and name.endswith(".html")]
        assert len(details) == 1
        assert b"data:image/webp" in page[details[0]], "pictures of the best and worst cases"
        assert (tmp_path / "site" / "index.html").read_bytes() == page["index.html"]

        merges = hub.count("POST", "/merge")
        run(hub, tmp_path, MAINTAINER, ["leaderboard", "rebuild", "--submissions", SUBMISSIONS, "--out", "again"])
        assert (tmp_path / "again" / "index.html").is_file()
        assert hub.count("POST", "/merge") == merges
