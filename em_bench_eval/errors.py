"""The one error that a user of the command line is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message always has the same four parts: what is wrong and where, what was found, what was expected, and what to
    do about it. ``em-bench`` prints it without a traceback and exits with status 2.
    """

    def __init__(self, problem: str, *, found: object = None, expected: object = None, remedy: str | None = None):
        self.problem, self.found, self.expected, self.remedy = problem, found, expected, remedy
        lines = [problem]
        for name, part in (("found", found), ("expected", expected), ("what to do", remedy)):
            if part is not None:
                lines.append(f"  {name}: {part}")
        super().__init__("\n".join(lines))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def unknown_name(kind: str, word: str, known: Iterable[str]) -> InputError:
    """Build the error for a misspelt source, baseline, metric, option or organelle name."""
    known = sorted(known)
    return InputError(
        f"unknown {kind} {word!r}",
        expected=f"one of {', '.join(known)}",
        remedy=f"{did_you_mean(word, known)}Names are case-sensitive.",
    )
