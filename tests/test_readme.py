"""What the README shows runs as shown: its commands in order, then its Python, on tiny data."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import fake
import pytest
import sam_twin
import torch

from em_bench_eval.cli import COMMANDS, main

# appended to a command of the README so that it takes seconds here; the last value of an option wins
SHORTENED = {
    "pretrain": ["--preset", "smoke", "--steps", "2"],
    "train": ["--preset", "smoke", "--steps", "6"],
    "sam": ["--points-per-side", "2"],
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("em-bench ")]


@pytest.fixture(scope="module")
def readme(project: Path) -> str:
    return (project / "README.md").read_text()


@pytest.mark.slow
def test_the_journey_runs_as_written(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write in fake.WRITERS.values():
        write(Path("raw"))
    torch.save(
        sam_twin.random_state(), "sam_vit_b_01ec64.pth"
    )  # as large as a test can load; the real one is downloaded
    alone, with_the_hub = readme.split("## Publish and submit")  # the second part: tests/test_hub_loop.py
    journey = commands(alone)
    shown = [words[0] for words in journey]
    assert shown == [name for name in COMMANDS if name in shown], "commands are shown in the order of use"
    assert {*shown, *(words[0] for words in commands(with_the_hub))} == set(COMMANDS), "the README shows every command"
    for words in journey:
        assert main([*words, *SHORTENED.get(words[0], [])]) == 0, words
    assert Path("report/row.json").is_file()
    assert Path("report/index.html").is_file()
    (example,) = blocks(readme, "python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert set(names["data"]) == {"homogeneous", "wild"}  # type: ignore[call-overload]
    assert names["image_8nm"].shape == (40, 40)  # type: ignore[attr-defined]
    assert names["metric"].name  # type: ignore[attr-defined]


def test_the_python_example_prints_a_perfect_score_for_the_reference_itself(
    readme: str, tiny_dataset: Path, tmp_path: Path
) -> None:
    (example,) = blocks(readme, "python")
    script = tmp_path / "example.py"
    script.write_text(example)
    result = subprocess.run([sys.executable, script], cwd=tiny_dataset.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "1.0"


def test_load_train_score_submit_take_under_forty_lines(readme: str) -> None:
    section = readme.split("## Load, train, score, submit")[1].split("\n## ")[0]
    code = [line for block in re.findall(r"```\w+\n(.*?)```", section, flags=re.DOTALL) for line in block.splitlines()]
    assert len([line for line in code if line.strip()]) < 40


def test_every_file_that_the_readme_names_exists(readme: str, project: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if not link.startswith("http")]
    assert links
    for link in links:
        assert (project / link).is_file(), link


def test_versions_agree(project: Path) -> None:
    from em_bench_eval import __version__

    assert f"## {__version__} " in (project / "CHANGELOG.md").read_text()
    assert f"\nversion: {__version__}\n" in (project / "CITATION.cff").read_text()
