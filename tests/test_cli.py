"""The dispatcher: fast, teaching, and with an exit status that scripts can trust."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from em_bench_eval import __version__
from em_bench_eval.cli import COMMANDS, main

HEAVY = ("torch", "transformers", "datasets", "evaluate", "accelerate", "skimage", "zarr", "tensorstore")


def test_no_arguments_list_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"em-bench {__version__}\n"


def test_misspelt_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bild"]) == 2
    assert "did you mean 'build'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_its_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, function, _ = COMMANDS[name]
    assert callable(getattr(importlib.import_module(module), function))
    try:
        status: object = main([name, "--help"])
    except SystemExit as exit_:  # argparse ends the program
        status = exit_.code
    assert status == 0
    text = capsys.readouterr().out
    assert f"usage: em-bench {name}" in text
    assert "example" in text
    assert f"em-bench {name} " in text.split("example", 1)[1]


@pytest.mark.parametrize("arguments", [[], *([name, "--help"] for name in COMMANDS)], ids=str)
def test_answers_without_importing_anything_heavy(arguments: list[str]) -> None:
    program = (
        "import sys, json\n"
        "from em_bench_eval.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "sys.stderr.write(json.dumps(sorted(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    loaded = json.loads(result.stderr)
    assert not [name for name in HEAVY if name in loaded]


def test_exit_status_of_the_installed_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "em_bench_eval.cli", "sources", "nothing"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "unknown source 'nothing'" in result.stderr
    assert "Traceback" not in result.stderr
