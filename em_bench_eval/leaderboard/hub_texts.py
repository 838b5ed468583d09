"""The texts of the leaderboard's repositories: cards, and the workflow that updates it."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

SPACE_CARD = Template("""---
title: EM organelles in the wild
emoji: 🔬
colorFrom: blue
colorTo: green
sdk: static
app_file: index.html
pinned: false
license: apache-2.0
datasets:
- $dataset
tags:
- leaderboard
- electron-microscopy
- instance-segmentation
short_description: Organelle instances in EM, re-scored by us
---

# EM organelles in the wild: leaderboard

Instance segmentation of five organelles in electron microscopy. Teams send predictions; every number on this page was
computed from them by `em-bench leaderboard update`, and nothing is self-reported.

* Data: [$dataset](../../datasets/$dataset)
* Submissions, results and how to submit: [$submissions](../../datasets/$submissions)
""")

PLACEHOLDER = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>EM organelles in the wild</title>
<style>:root { color-scheme: light dark } body { font: 16px/1.5 sans-serif; max-width: 40em; margin: 3em auto }</style>
</head>
<body>
<h1>EM organelles in the wild</h1>
<p>No submission has been scored yet. How to submit is described in the card of the dataset repository
<code>$submissions</code>. The first <code>em-bench leaderboard update</code> replaces this page.</p>
</body>
</html>
""")

SUBMISSIONS_CARD = Template("""---
pretty_name: Submissions to EM organelles in the wild
license: other
license_name: per-submission
license_link: README.md
viewer: false
tags:
- leaderboard
- submissions
- electron-microscopy
- instance-segmentation
---

# Submissions to EM organelles in the wild

A submission is predictions, not scores. Whoever submits opens a pull request here; we score the predictions against
the labels of the test split$private, write the scores as a comment, merge, and rebuild [the page](../../spaces/$space).

## How to submit

1. Predict the test split of [`$dataset`](../../datasets/$dataset), with our tools or your own:

   ```shell
   em-bench predict --checkpoint YOUR_MODEL --dataset $dataset --config wild --split test --out predictions
   ```

2. Describe it: this writes `predictions/submission.yaml`, with what is known filled in and gaps for you to complete.

   ```shell
   em-bench validate predictions --draft --dataset $dataset
   ```

3. Ask for the verdict that we would give, offline, all faults at once:

   ```shell
   em-bench validate predictions --dataset $dataset
   ```

4. Send it. A pull request appears under "Community"; the result comes as a comment there.

   ```shell
   em-bench submit predictions --to $submissions --dataset $dataset
   ```

   What is merged lies in `submissions/TEAM/NAME`; its result in `results/`, all results in `results.parquet`.

Predictions that were not made with these tools may come as PNG, zarr, Parquet or COCO files: `docs/submissions.md` of
the code describes all forms, and limits of size. No code, no pickles: they are refused unread.

## What you agree to

Merged predictions are public, so that others can score them again. What you state in `submission.yaml` (team, paper,
code, data that you trained with, prompts, compute) is shown on the page. Predictions made with the test labels in any
form are listed as prompted and not ranked.

## How scores are computed

`em-bench leaderboard update`, version and settings recorded with every result, with confidence intervals over volumes.
`em-bench explain KEY` defines every number.

## For maintainers

`ci/leaderboard.yml` is a GitHub Actions workflow that updates the leaderboard every hour: copy it to
`.github/workflows/` of a repository with the code, and give it a secret `HF_TOKEN` that can write here and to the
Space$reads. By hand: `$update`
""")

WORKFLOW = Template("""# Updates the leaderboard: scores open pull requests, comments, merges, rebuilds the page.
# Copy to .github/workflows/ of the code's repository. Needs the secret HF_TOKEN: a fine-grained token that can write to
# $submissions and $space$reads, and to nothing else.
# Submissions are untrusted: they are only ever read as data, in a process with bounded memory and time.
name: leaderboard
on:
  schedule:
    - cron: "17 * * * *"
  workflow_dispatch:
concurrency:
  group: leaderboard
  cancel-in-progress: false
permissions:
  contents: read
jobs:
  update:
    runs-on: ubuntu-latest
    timeout-minutes: 350
    steps:
      - uses: actions/checkout@v4
        with:
          persist-credentials: false
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install .
      - run: |
          $update
        env:
          HF_TOKEN: $${{ secrets.HF_TOKEN }}
          HF_HUB_DISABLE_TELEMETRY: "1"
""")

GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.parquet", "*.png", "submissions/**/c/**")  # c: chunks of zarr
)


def submission_texts(names: Mapping[str, str]) -> dict[str, str]:
    """Return path -> text of the submissions repository; ``names`` are those of ``hub_space.names_of``."""
    return {
        "README.md": SUBMISSIONS_CARD.substitute(names),
        "ci/leaderboard.yml": WORKFLOW.substitute(names),
        ".gitattributes": GITATTRIBUTES,
    }
