"""Judging in a process of its own with bounded memory and time: whatever a submission does to it, there is a verdict.

``submission.check`` bounds what it can see declared. What unpacks to more than it declares, or makes a decoding library
crash, ends that process and not this one. The process gets no token and no network address, starts in an empty folder
(nothing of the submission can be imported), and answers in JSON.

Memory is bounded where the system knows ``RLIMIT_AS`` (Linux); elsewhere only time is, and what files declare.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from em_bench_eval.leaderboard.items import Expected
from em_bench_eval.leaderboard.verdict import Faults, Verdict

MEMORY_BYTES = 6 * 2**30  # beyond what the libraries need themselves
SECONDS = 600.0  # and more for each image
SECONDS_PER_IMAGE = 2.0
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "GITHUB_TOKEN", "GH_TOKEN")
_PACKAGES = Path(__file__).resolve().parents[2]  # where em_bench_eval is, installed or not
_CODE = "import sys; sys.path[0] = sys.argv[1]; from {} import main; main(*sys.argv[2:])"


def check_guarded(
    folder: str | os.PathLike[str],
    expected: Expected | None = None,
    *,
    progress: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    seconds: float | None = None,
) -> Verdict:
    """Judge a submission as ``submission.check`` does, in a process with bounded memory and time.

    A process that was stopped is a fault of the kind "resources", one that failed of the kind "crash".
    """
    if seconds is None:
        seconds = SECONDS + SECONDS_PER_IMAGE * (0 if expected is None else len(expected.items))
    with tempfile.TemporaryDirectory(prefix="em-bench-") as empty:
        job = Path(empty) / "job.json"
        job.write_text(
            json.dumps(
                {
                    "folder": str(Path(folder).absolute()),
                    "expected": None if expected is None else expected.to_json(),
                    "progress": progress,
                    "memory_bytes": memory_bytes,
                }
            )
        )
        answer = Path(empty) / "verdict.json"
        with tempfile.TemporaryFile() as said:
            try:
                done = subprocess.run(
                    command_of(__name__, job, answer),
                    cwd=empty,
                    env=clean_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=None if progress else said,
                    timeout=seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return _stopped(folder, f"no verdict after {seconds:.0f} s", f"at most {seconds:.0f} s")
            if done.returncode == 0 and answer.is_file():
                return Verdict.from_json(json.loads(answer.read_text()))
            said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
            last = said.read().decode(errors="replace").strip().splitlines()
        found = f"status {done.returncode}" + (f": {last[-1]}" if last else "")
        decoder = done.returncode in (-signal.SIGABRT, -signal.SIGSEGV) and last and "alloc" not in last[-1]
        if done.returncode > 0 or decoder:  # a Python error, or a library that gave up on the content
            return _stopped(folder, found, "a verdict", "crash")
        return _stopped(folder, found, f"a verdict within {memory_bytes / 2**30:.3g} GiB of memory")


def command_of(module: str, job: Path, answer: Path) -> list[str]:
    """Return the command that calls ``main(job, answer)`` of a module of this package, from any folder."""
    return [sys.executable, "-c", _CODE.format(module), str(_PACKAGES), str(job), str(answer)]


def clean_environment() -> dict[str, str]:
    """Return the environment without tokens, for a process with one thread and no network."""
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _stopped(folder: str | os.PathLike[str], found: str, expected: str, kind: str = "resources") -> Verdict:
    faults = Faults()
    faults.note(kind, Path(folder).name, found, expected)
    return Verdict(faults.as_list())


def limit_memory(more_bytes: int) -> None:
    """Let this process use so much more address space than now; nothing happens where the system cannot."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * resource.getpagesize() + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def warm_up() -> None:
    """Load what decodes and scores, so that libraries and their threads are not counted as the submission's memory."""
    import importlib

    import numpy as np
    import pyarrow as pa

    from em_bench_eval.leaderboard.forms import FORMS
    from em_bench_eval.scoring import Evaluation

    pa.set_memory_pool(pa.system_memory_pool())  # gives back what it frees
    pa.set_cpu_count(1)
    for name in ("PIL.PngImagePlugin", "pyarrow.parquet", "tensorstore", "yaml", "tqdm"):
        importlib.import_module(name)
    for form in FORMS.values():
        importlib.import_module(form.module)
    one = {"mito": np.eye(4, dtype=np.uint32)}
    Evaluation().add(one, one, voxel_size_nm=(1.0, 1.0))


def main(job_file: str, answer_file: str) -> None:
    """Judge as the parent process asks: job.json in, verdict.json out."""
    from em_bench_eval.leaderboard.submission import check

    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    expected = None if job["expected"] is None else Expected.from_json(job["expected"])
    warm_up()
    limit_memory(int(job["memory_bytes"]))
    try:
        verdict = check(job["folder"], expected, progress=bool(job["progress"]))
    except MemoryError:
        more = f"more than {job['memory_bytes'] / 2**30:.3g} GiB of memory"
        verdict = _stopped(job["folder"], more, "smaller rows, chunks or files")
    Path(answer_file).write_text(json.dumps(verdict.to_json(), allow_nan=False))
