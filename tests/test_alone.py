"""Two processes that want the same folder: the second is refused, until the first ends in whatever way."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError

HOLD = """
import sys
from pathlib import Path
from em_bench_eval.alone import alone
with alone(Path(sys.argv[1]), "writing cell.zarr"):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
sys.stdin.readline()
"""


@contextmanager
def another_process(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def is_free(lock: Path) -> bool:
    try:
        with alone(lock, "writing cell.zarr"):
            return True
    except InputError:
        return False


def test_a_second_process_is_refused_until_the_first_ends_its_block(tmp_path: Path) -> None:
    with another_process(tmp_path / "lock") as first:
        with pytest.raises(InputError) as caught, alone(tmp_path / "lock", "writing cell.zarr"):
            pass
        lines = ["another run is writing cell.zarr", "  what to do: wait for it, or stop it and run this again"]
        assert str(caught.value).splitlines() == lines
        assert not is_free(tmp_path / "lock"), "a refusal frees nothing"
        first.stdin.write("\n")
        first.stdin.flush()
        assert first.stdout.readline() == "released\n"
        assert is_free(tmp_path / "lock"), "while the process goes on"


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with another_process(tmp_path / "lock") as first:
        assert not is_free(tmp_path / "lock")
        first.kill()
        first.wait()
        assert first.returncode < 0 or sys.platform == "win32"
        assert is_free(tmp_path / "lock")


@pytest.mark.skipif(sys.platform == "win32", reason="what is held cannot be removed there")
def test_a_folder_may_go_with_the_lock_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    with alone(folder / "lock", "x"):
        shutil.rmtree(folder)
    folder.mkdir()
    with another_process(folder / "lock"):
        assert not is_free(folder / "lock")
    assert is_free(folder / "lock")


def test_an_error_in_the_block_frees_the_lock_and_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), alone(tmp_path / "lock", "x"):
        raise KeyError("mine")
    assert is_free(tmp_path / "lock")


def test_nowhere_to_lock_is_no_other_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), alone(tmp_path / "file" / "lock", "x"):
        pass
