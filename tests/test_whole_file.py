"""A file is there completely or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from em_bench_eval.whole_file import sha256_of, write_whole


def test_what_is_written_replaces_what_was_there_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    path.write_text("earlier")

    def write(temporary: Path) -> None:
        np.savez(temporary, a=np.arange(3))  # appends .npz to a name that has another ending
        assert path.read_text() == "earlier"
        assert temporary.parent == path.parent

    write_whole(path, write)
    assert np.load(path)["a"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("begun", [False, True])
def test_what_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path, begun: bool) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("earlier")

    def fail(temporary: Path) -> None:
        if begun:
            temporary.write_text("hal")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1])
def test_the_hash_is_that_of_the_whole_content(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
