"""Updating the leaderboard: every open pull request is judged, scored, recorded, answered and merged.

The state is on the Hub alone. Each step looks whether it was done, so a run that was killed anywhere is continued by
the next one, and a run that finds nothing to do changes nothing. The order of the steps of one submission is what
makes that work: its result is recorded first, then the comment is written, and the merge comes last, so that an open
pull request may lack any of them and a merged one lacks nothing.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import explained
from em_bench_eval.leaderboard.admission import admit, content_of, copied_from
from em_bench_eval.leaderboard.comments import Mark, refused_comment, scored_comment
from em_bench_eval.leaderboard.fetching import Limits, check_listing, fetch
from em_bench_eval.leaderboard.hub_results import change_results, read_results
from em_bench_eval.leaderboard.judge import Judged, pack_pictures
from em_bench_eval.leaderboard.pulls import FOLDER, Pull, Submissions, provenance_of
from em_bench_eval.leaderboard.results import Document, Results
from em_bench_eval.leaderboard.verdict import Verdict, printable

HEADLINES = ("macro/dice__instance", "any/dice__instance")  # with organelles, without
SUSPICIOUS = 0.98  # of a headline: labels that were seen, or a mistake
ROUNDS = 3  # of scoring a pull request that gets new commits meanwhile


class Scorer(Protocol):
    """What the update needs of ``judge.Judge``."""

    def __call__(self, folder: Path) -> Judged:
        """Score a folder."""
        ...

    def is_current(self, document: Mapping[str, Any]) -> bool:
        """Need a result not be scored again?"""
        ...

    def can_be_current(self, document: Mapping[str, Any]) -> bool:
        """Does it help to score it again?"""
        ...

    def stamp(self) -> str:
        """Identify metric, settings and dataset."""
        ...


@dataclass(frozen=True)
class Options:
    """How pull requests are treated."""

    limits: Limits = field(default_factory=Limits)
    close_refused: bool = False
    dry_run: bool = False
    once: int | None = None  # only this pull request, also if it was refused before


@dataclass
class Report:
    """What a run did; ``failed`` is for maintainers: faults of the Hub, the disk or ours, never of a submission."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        """Print a line and keep it."""
        self.lines.append(line)
        print(line, flush=True)

    def fail(self, line: str) -> None:
        """Print a fault on stderr and keep it."""
        self.failed.append(line)
        print(line, file=sys.stderr, flush=True)


class Update:
    """One run over a submissions repository; ``run`` returns the results as they are then."""

    def __init__(self, hub: Submissions, judge: Scorer, work: Path, options: Options = Options()):
        self.hub, self.judge, self.work, self.options = hub, judge, work, options
        self.report = Report()
        self.results = Results()
        self.stamp = ""
        self.me = ""

    def run(self) -> Results:
        """Handle every open pull request, then what is merged but not scored as it is now."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.stamp, self.me = self.judge.stamp(), self.hub.me()
        self.results = read_results(self.hub, self.hub.head())
        once = self.options.once
        for number in [once] if once is not None else self.hub.open_pulls():
            self._guarded(f"pull request {number}", self._pull, number)
        if once is None:
            self._reconcile()
        return self.results

    def _guarded(self, what: str, do: Callable[..., None], *arguments: object) -> None:
        """Do something that must not stop the rest."""
        try:
            do(*arguments)
        except Exception as error:
            secret = self.hub.secret()
            known = error if isinstance(error, InputError) else explained(error, what, secret)
            if known is None:
                told = traceback.format_exc().replace(secret or "\0", "***")
                print("\n".join(printable(line, 300) for line in told.splitlines()), file=sys.stderr)
            self.report.fail(f"{what}: {known or type(error).__name__}")

    def _pull(self, number: int) -> None:
        for _ in range(ROUNDS):
            pull = self.hub.pull(number)
            if pull.status != "open":
                self.report.tell(f"pull request {number}: {pull.status}, nothing to do")
                return
            if self._settle(pull):
                return
        self.report.tell(f"pull request {number}: gets new commits all the time; left for the next run")

    def _settle(self, pull: Pull) -> bool:
        """Bring one state of a pull request to its end; False if there is a newer one."""
        document = self.results.of_pull(pull.number)
        known = document is not None and provenance_of(document).get("commit") == pull.head and not pull.conflicts
        if document is None or not known or not self.judge.is_current(document):
            if self.options.once is None and self._refused_mark(pull).is_in(pull, self._ours()):
                self.report.tell(f"pull request {pull.number}: refused before, and unchanged since")
                self._close_refused(pull)
                return True
            origin = admit(self.hub, pull, self.results, self.options.limits)
            if origin is None:
                self.report.tell(f"pull request {pull.number}: no submission; left to you")
                return True
            judged = Judged(refused=origin) if isinstance(origin, Verdict) else self._scored(pull.head, origin)
            if judged.result is not None and (copied := copied_from(judged.result, self.results)) is not None:
                judged = Judged(refused=copied)
            if self.hub.head(f"refs/pr/{pull.number}") != pull.head:
                return False
            if judged.result is None:
                self._refuse(pull, judged.refused or Verdict([]))
                return True
            document = judged.result
            self._record(document, judged.pictures, f"pull request {pull.number}")
        return self._finish(pull, document)

    # --- judging -----------------------------------------------------------------------------------------------------

    def _scored(self, revision: str, origin: Mapping[str, Any]) -> Judged:
        """Download a submission that may be read, and score it."""
        path = str(origin["path"])
        files = self.hub.files(revision, path)
        with tempfile.TemporaryDirectory(prefix="submission-", dir=self.work) as into:
            folder = fetch(self.hub, revision, path, files, Path(into))
            judged = self.judge(folder)
        if judged.result is not None:
            own = {"repository": self.hub.repo_id, **origin, "scored_by": self.me, "content": content_of(files)}
            judged.result["provenance"] = own
        return judged

    # --- side effects ------------------------------------------------------------------------------------------------

    def _ours(self) -> set[str]:
        """Return the accounts whose comments count: ours, and those that recorded results."""
        return {self.me} | {str(provenance_of(one).get("scored_by")) for one in self.results.documents.values()}

    def _refused_mark(self, pull: Pull) -> Mark:
        return Mark("refused", pull.head, self.stamp)

    def _record(self, document: Document, pictures: list[dict[str, Any]] | None, what: str) -> None:
        own = document["submission"]["hash"]
        if self.options.dry_run:
            self.results.put(document)
            return
        files = {} if pictures is None else {own: pack_pictures(pictures)}
        title = f"Result of {what} ({own[:12]})"
        self.results = change_results(self.hub, lambda results: results.put(document), title, files)

    def _forget(self, own: str, why: str) -> None:
        if self.options.dry_run:
            self.results.drop(own)
            return
        self.results = change_results(self.hub, lambda results: results.drop(own), f"Remove {own[:12]}: {why}")

    def _refuse(self, pull: Pull, verdict: Verdict) -> None:
        kinds = ", ".join(group["kind"] for group in verdict.faults) or "no result"
        self.report.tell(f"pull request {pull.number}: not scored ({kinds})")
        document = self.results.of_pull(pull.number)
        if document is not None:
            self._forget(document["submission"]["hash"], f"pull request {pull.number} has other content now")
        if self.options.dry_run:
            return
        mark, ours = self._refused_mark(pull), self._ours()
        text = refused_comment(verdict, pull.head, self.stamp)
        self.hub.comment(pull.number, text, lambda now: mark.is_in(now, ours))
        self._close_refused(pull)

    def _close_refused(self, pull: Pull) -> None:
        if self.options.close_refused and not self.options.dry_run:
            self.hub.set_status(pull.number, "closed")

    def _finish(self, pull: Pull, document: Document) -> bool:
        """Comment and merge; False if the pull request has new commits."""
        submission = document["submission"]
        name = f"{printable(submission['model'], 60)} by {printable(submission['team'], 60)}"
        score = document["scores"]["all"].get(HEADLINES[bool(document["class_agnostic"])])
        self.report.tell(f"pull request {pull.number}: scored, {name}, {'-' if score is None else f'{score:.4f}'}")
        if score is not None and score > SUSPICIOUS:
            self.report.tell(f"pull request {pull.number}: look at it: better than people agree with each other")
        if self.options.dry_run:
            return True
        mark, ours = Mark("scored", submission["hash"], self.stamp), self._ours()
        self.hub.comment(pull.number, scored_comment(document, self.stamp), lambda now: mark.is_in(now, ours))
        before = self.hub.head()
        now = self.hub.pull(pull.number)
        if now.head != pull.head:
            return False
        merged = self.hub.merge(pull.number)
        if merged.merge_commit is not None and now.status == "open":
            self._check_merge(before, merged, str(provenance_of(document)["path"]))
        return True

    def _check_merge(self, before: str, merged: Pull, path: str) -> None:
        """Restore what a merge has changed beside its submission: by a commit that came after we had looked.

        The Hub merges what a pull request is at that moment, and cannot be told which commit is meant. What other
        maintainers changed meanwhile differs from the pull request. What came into the folder itself is found by
        ``_reconcile``.
        """
        changed = self.hub.changes(before, str(merged.merge_commit))
        theirs = [
            name for name in changed if name != path and self.hub.is_same(str(merged.merge_commit), merged.head, name)
        ]
        if theirs:
            self.report.fail(f"pull request {merged.number} has changed {', '.join(theirs)} beside {path}: restored")
            self.hub.restore(theirs, before)
            self.results = read_results(self.hub, self.hub.head())

    # --- what is merged ----------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Score what is merged and has no result, an old result, or one of other content; drop results of nothing."""
        main = self.hub.head()
        self.results = self.results if self.options.dry_run else read_results(self.hub, main)
        folders = self.hub.folders(main)
        for path, tree in sorted(folders.items()):
            document = self.results.of_folder(path)
            if document is not None and provenance_of(document).get("tree") == tree and self._is_settled(document):
                continue
            self._guarded(path, self._again, main, path, tree)
        for own, document in list(self.results.documents.items()):
            origin = provenance_of(document)
            if origin.get("path") and origin["path"] not in folders:
                self._guarded(str(origin["path"]), self._withdrawn, own, origin)

    def _is_settled(self, document: Document) -> bool:
        """Is a result of our metric, settings and data, or one of images that the dataset has no longer?"""
        return self.judge.is_current(document) or not self.judge.can_be_current(document)

    def _again(self, main: str, path: str, tree: str) -> None:
        old = self.results.of_folder(path)
        if not FOLDER.fullmatch(path):
            self.report.fail(f"{path}: not the name of a submission; rename or remove it")
            return
        files = {name: int(entry.size) for name, entry in self.hub.files(main, path).items()}
        refused = check_listing(files, self.options.limits)
        known = {} if old is None else provenance_of(old)
        origin = {name: known.get(name) for name in ("pull_request", "author") if known.get(name) is not None}
        commit = known["commit"] if known.get("tree") == tree else main
        origin |= {"path": path, "commit": commit, "tree": tree}
        judged = Judged(refused=refused) if refused is not None else self._scored(main, origin)
        if judged.result is not None:
            self._record(judged.result, judged.pictures, path)
            self.report.tell(f"{path}: scored again" if old is not None else f"{path}: scored")
            return
        kinds = ", ".join(group["kind"] for group in (judged.refused or Verdict([])).faults)
        self.report.fail(f"{path} is merged, and cannot be scored ({kinds}); remove it, or correct it")
        if old is not None:
            self._forget(old["submission"]["hash"], "its files have changed and cannot be scored")

    def _withdrawn(self, own: str, origin: Mapping[str, Any]) -> None:
        """Drop a result unless its pull request is still open: it was closed by hand, or the folder was removed."""
        number = origin.get("pull_request")
        if isinstance(number, int):
            pull = self.hub.pull(number)
            if pull.status == "open" and pull.head == origin.get("commit"):
                return
        self._forget(own, "it was withdrawn")
        self.report.tell(f"{origin['path']}: withdrawn")
