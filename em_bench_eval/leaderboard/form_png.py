"""``instances/<record id>.png``: a gray PNG an image, in folders as record ids have them, or flat with "__" for "/"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from em_bench_eval.leaderboard.forms import Candidate, Wanted, shape_of
from em_bench_eval.leaderboard.items import Expected
from em_bench_eval.leaderboard.objects_table import note_unknown_items, read_objects
from em_bench_eval.leaderboard.safe_read import MAX_PIXELS, decode_labels, read_bytes
from em_bench_eval.leaderboard.verdict import Faults

FOLDER = "instances"


class PngForm:
    """See ``forms.Form``."""

    def __init__(self, folder: Path, files: Mapping[str, int], expected: Expected | None, faults: Faults):
        self._folder, self._expected = folder, expected
        found = {}
        for file in files:
            inside = file.removeprefix(f"{FOLDER}/")
            if inside == file or inside.startswith("."):
                continue
            if not inside.lower().endswith(".png"):
                faults.note("unreadable", file, "no PNG by its name", f"{FOLDER}/<record id>.png")
                continue
            found[file] = _record_id(inside[: -len(".png")])
        self._files = sorted(found, key=lambda file: (found[file], file))
        self.ids = [found[file] for file in self._files]
        self._wanted = Wanted(self.ids, expected)
        self._objects = read_objects(folder, files, faults)
        note_unknown_items(self._objects, set(self.ids), faults)

    def read(self, start: int, stop: int, faults: Faults) -> Iterator[Candidate]:
        """Decode ``ids[start:stop]``."""
        for place in range(start, min(stop, len(self.ids))):
            if not self._wanted(place):
                continue
            name = self.ids[place]
            shape = shape_of(name, self._expected)
            pixels = MAX_PIXELS if shape is None else shape[0] * shape[1]
            # a PNG of noise is a little larger than its pixels; texts inside it need no more than this
            content = read_bytes(self._folder / self._files[place], 3 * pixels + 2**20, faults, self._files[place])
            labels = None if content is None else decode_labels(content, name, shape, faults)
            if labels is not None:
                yield Candidate(name, labels, self._objects.get(name, ()))


def _record_id(inside: str) -> str:
    return inside.replace("__", "/") if "/" not in inside else inside
