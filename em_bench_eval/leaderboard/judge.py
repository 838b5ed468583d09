"""Scoring one submission in a process of its own: whatever it does there, the next one gets its turn.

The process has bounded time, no token and no network; it reads a local copy of the split's reference, which the parent
has fetched. ``rescoring.rescore`` judges the submission in yet another process before it decodes anything itself.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.fetching import refusal
from em_bench_eval.leaderboard.guarded import clean_environment, command_of, limit_memory, warm_up
from em_bench_eval.leaderboard.items import Expected, content_of, data_files, expected_items
from em_bench_eval.leaderboard.manifest import CONFIGS, Manifest, read_manifest
from em_bench_eval.leaderboard.reference import local_files
from em_bench_eval.leaderboard.verdict import Faults, Verdict, printable
from em_bench_eval.settings import DEFAULT_SETTINGS, METRIC_VERSION, Settings

MINUTES = 240.0
SOURCES = "sources.json"  # of the dataset: what may be passed on


@dataclass(frozen=True)
class Judged:
    """What came out: a ``result`` document, or the ``refused`` verdict; ``pictures`` as ``render_site`` takes them."""

    result: dict[str, Any] | None = None
    refused: Verdict | None = None
    pictures: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Split:
    """A split of the reference: what is expected, and a local dataset folder with its labels."""

    expected: Expected
    folder: Path


class Judge:
    """Scores submissions against one reference dataset.

    Args:
        reference: the dataset with the labels: a folder, or ``<org>/<name>`` on the Hub.
        work: a folder for the local copy of the reference.
        settings: of the metric.
        workers: processes that score.
        minutes: that a submission may take, altogether.
        pictures: draw the best and the worst images.
        show_reference: draw the reference labels, too; only where they are public.
    """

    def __init__(
        self,
        reference: str,
        work: Path,
        settings: Settings = DEFAULT_SETTINGS,
        *,
        workers: int = 1,
        minutes: float = MINUTES,
        pictures: bool = True,
        show_reference: bool = False,
        progress: bool = True,
    ):
        self.reference, self.work, self.settings = reference, work, settings
        self.workers, self.minutes, self.progress = workers, minutes, progress
        self.pictures, self.show_reference = pictures, show_reference
        self._splits: dict[tuple[str, str], Split] = {}
        self._contents: dict[str, tuple[str, str]] = {}
        self._known: list[str] | None = None

    def is_current(self, document: Mapping[str, Any]) -> bool:
        """Was this result scored with our metric version, settings and content of the dataset?"""
        dataset = document["dataset"]
        fingerprint, revision = self._content(document["config"])
        same = dataset["fingerprint"] == fingerprint if fingerprint else dataset["revision"] == revision
        metric = (document["metric_version"], document["settings_hash"])
        return same and metric == (METRIC_VERSION, self.settings.hash())

    def can_be_current(self, document: Mapping[str, Any]) -> bool:
        """Does the submission of a result predict the images that the reference has now?"""
        from em_bench_eval.leaderboard.items import split_hash

        try:
            expected = self._split(document["config"], document["split"]).expected
        except InputError:
            return False
        return bool(split_hash(expected.items.values()) == document["dataset"]["split_hash"])

    def stamp(self) -> str:
        """Return 12 hexadecimal digits that change with metric version, settings and dataset."""
        known = [METRIC_VERSION, self.settings.hash(), *(self._content(config) for config in CONFIGS)]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]

    def _content(self, config: str) -> tuple[str, str]:
        """Return the fingerprint on the dataset's card, and the commit; "" where there is none."""
        if config not in self._contents:
            if config not in self._configs():
                return "", ""  # a leaderboard of one configuration
            self._contents[config] = content_of(self.reference, config)
        return self._contents[config]

    def _configs(self) -> list[str]:
        """Return the configurations of the reference; raises ``InputError`` if there is no such dataset."""
        if self._known is None:
            import datasets

            try:
                self._known = list(datasets.get_dataset_config_names(self.reference))
            except (ValueError, FileNotFoundError, ConnectionError) as error:
                raise InputError(
                    f"cannot open the reference {self.reference}",
                    found=error,
                    expected="the dataset with the labels of the split test: a folder, or <org>/<name> on the Hub",
                    remedy="check the name, and that the token can read it",
                ) from error
        return self._known

    def __call__(self, folder: Path) -> Judged:
        """Score a submission. Raises ``InputError`` for what is not its fault: the reference, or the disk."""
        faults = Faults()
        manifest = read_manifest(folder, faults)[0]
        if manifest is None:
            return Judged(refused=Verdict(faults.as_list()))
        try:
            split = self._split(manifest.config, manifest.split)
        except InputError as error:
            if self._has(manifest):
                raise
            print(error, file=sys.stderr)
            found = f"{manifest.config}/{manifest.split}"
            fault = ("submission.yaml", found, "a configuration and split that this leaderboard scores")
            return Judged(refused=refusal("manifest", "submission.yaml", "predict wild/test", fault))
        return self._run(folder, split)

    def _has(self, manifest: Manifest) -> bool:
        try:
            return bool(data_files(self.reference, manifest.config, manifest.split))
        except InputError:
            return False

    def _split(self, config: str, split: str) -> Split:
        if (config, split) not in self._splits:
            expected = expected_items(self.reference, config, split)
            folder = Path(self.reference)
            if not folder.is_dir():
                folder = self.work / "reference" / f"{expected.revision[:12]}-{config}-{split}"
                _write_reference(folder, config, split, local_files(self.reference, config, split))
            self._splits[config, split] = Split(expected, folder)
        return self._splits[config, split]

    def _run(self, folder: Path, split: Split) -> Judged:
        with tempfile.TemporaryDirectory(prefix="em-bench-") as empty:
            job, answer = Path(empty) / "job.json", Path(empty) / "answer.json"
            asked = {
                "folder": str(folder.absolute()),
                "reference": str(split.folder.absolute()),
                "expected": split.expected.to_json(),
                "settings": asdict(self.settings),
                "workers": self.workers,
                "progress": self.progress,
                "pictures": self.pictures,
                "show_reference": self.show_reference,
                "may_be_shown": self._may_be_shown(),
            }
            job.write_text(json.dumps(asked))
            with tempfile.TemporaryFile() as said:
                status = self._wait(job, answer, Path(empty), None if self.progress else said)
                said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
                last = said.read().decode(errors="replace").strip().splitlines()
            if status == 0 and answer.is_file():
                return _judged(json.loads(answer.read_text()))
        if status is None:
            fault = ("submission", f"no result after {self.minutes:g} minutes", f"at most {self.minutes:g} minutes")
            return Judged(
                refused=refusal("resources", "more time than a submission may take", "make it simpler", fault)
            )
        reason = printable(last[-1]) if last else "see above"
        print(f"scoring ended with status {status}: {reason}", file=sys.stderr)
        fault = ("submission", f"status {status}", "a result")
        return Judged(refused=refusal("crash", "made the scoring fail", "please report it to the maintainers", fault))

    def _may_be_shown(self) -> list[str]:
        """Name the sources whose images a public page may show: those that ``sources.json`` allows to pass on."""
        try:
            if Path(self.reference).is_dir():
                text = (Path(self.reference) / SOURCES).read_text(encoding="utf-8")
            else:
                from huggingface_hub import HfFileSystem

                text = HfFileSystem().read_text(f"datasets/{self.reference}/{SOURCES}", encoding="utf-8")
            sources = json.loads(text)["sources"]
            return sorted(name for name, entry in sources.items() if entry.get("redistributable") is True)
        except (OSError, ValueError, KeyError, AttributeError):
            print(f"no pictures: {self.reference} has no readable {SOURCES}", file=sys.stderr)
            return []

    def _wait(self, job: Path, answer: Path, empty: Path, said: Any) -> int | None:
        """Run the process to its end, or end it with all that it started; returns its status, ``None`` if too late."""
        home = str(empty / "home")  # the user's holds a token
        process = subprocess.Popen(
            command_of(__name__, job, answer),
            cwd=empty,
            env={**clean_environment(), "HF_DATASETS_OFFLINE": "1", "HF_HOME": home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            return process.wait(self.minutes * 60)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()


def _judged(answer: Mapping[str, Any]) -> Judged:
    if "refused" in answer:
        return Judged(refused=Verdict.from_json(answer["refused"]))
    if "unusable" in answer:
        raise InputError(str(answer["unusable"]))
    return Judged(result=answer["result"], pictures=answer["pictures"])


def _write_reference(folder: Path, config: str, split: str, files: list[str]) -> None:
    """Write a dataset folder of one split around its Parquet files, which are linked."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        link = folder / "data" / f"{number:05}.parquet"
        if not link.exists():
            link.unlink(missing_ok=True)
            os.symlink(Path(file).resolve(), link)
    declared = [{"config_name": config, "data_files": [{"split": split, "path": "data/*.parquet"}]}]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(declared)}\n---\n")


def main(job_file: str, answer_file: str) -> None:
    """Score as the parent process asks: job.json in, answer.json out."""
    from concurrent.futures.process import BrokenProcessPool

    from em_bench_eval.leaderboard.rescoring import MEMORY_BYTES, RefusedSubmission, rescore
    from em_bench_eval.leaderboard.site_pictures import draw_cases

    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    expected = Expected.from_json(job["expected"])
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in job["settings"].items()
    }
    answer: dict[str, Any]
    warm_up()
    limit_memory(MEMORY_BYTES)
    try:
        result = rescore(
            job["folder"],
            job["reference"],
            Settings(**given),
            workers=job["workers"],
            expected=expected,
            progress=job["progress"],
        )
        pictures = None
        if job["pictures"]:
            pictures = draw_cases(
                job["folder"],
                job["reference"],
                result,
                show_reference=bool(job["show_reference"]),
                expected=expected,
                hidden_sources=frozenset(result["per_source"]) - set(job["may_be_shown"]),
            )
        answer = {"result": result, "pictures": pictures}
    except RefusedSubmission as error:
        answer = {"refused": error.verdict.to_json()}
    except InputError as error:
        if isinstance(error.__cause__, BrokenProcessPool):  # its memory: the parent says that it failed
            raise
        answer = {"unusable": str(error)}
    Path(answer_file).write_text(json.dumps(answer, allow_nan=False))


def pack_pictures(pictures: list[dict[str, Any]]) -> bytes:
    """Return pictures as a file of the repository; the same pictures give the same bytes."""
    return gzip.compress(json.dumps(pictures, sort_keys=True).encode(), mtime=0)


def unpack_pictures(content: bytes) -> list[dict[str, Any]]:
    """Read what ``pack_pictures`` gave; damaged pictures are none."""
    try:
        found = json.loads(gzip.decompress(content))
    except (OSError, EOFError, ValueError):
        return []
    return found if isinstance(found, list) else []
