"""The list of images that a pre-training leaves out, and why: ``skipped_images.tsv`` in its folder."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

LIST = "skipped_images.tsv"
SHOWN = 3


class SkippedImages:
    """Name and reason, one line each; several data-loading processes may add to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LIST
        self._announced = 0

    def __len__(self) -> int:
        return len(self._lines())

    def add(self, entries: Iterable[tuple[str, str]]) -> None:
        """Add entries that are not there yet; each line is written at once."""
        known = set(self._lines())
        for name, reason in entries:
            line = f"{name}\t{' '.join(reason.split())}"
            if line not in known:
                known.add(line)
                with self.path.open("a") as file:
                    file.write(line + "\n")

    def announce(self) -> None:
        """Say on stderr how many there are, the first of them, and where the list is; again only if there are more."""
        lines = self._lines()
        if len(lines) > self._announced:
            self._announced = len(lines)
            print(f"{len(lines)} images are left out; the list is {self.path}", file=sys.stderr)
            for line in lines[:SHOWN]:
                print("  " + line.replace("\t", " "), file=sys.stderr)

    def clear(self) -> None:
        """Delete the list."""
        self.path.unlink(missing_ok=True)

    def _lines(self) -> list[str]:
        """Distinct lines, in order: two processes may have met the same image."""
        return list(dict.fromkeys(self.path.read_text().splitlines())) if self.path.exists() else []
