"""``coco.json``: run-length encoded masks, either a list of results or a data set with ``images`` and ``annotations``.

Results: ``{"image_id": "<record id>", "category_id": 1, "segmentation": {"size": [y, x], "counts": ...}, "score": 1}``.
A data set names its images: ``{"id": 7, "file_name": "<record id>.png", "height": y, "width": x}``, and so can say that
nothing was found in one. Categories are 1 mito, 2 nucleus, 3 er, 4 endo, 5 golgi, unless ``categories`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from em_bench_eval.leaderboard.forms import Candidate, ObjectEntry, Wanted, shape_of
from em_bench_eval.leaderboard.items import Expected
from em_bench_eval.leaderboard.rle import pixels_of, read_runs
from em_bench_eval.leaderboard.safe_read import MAX_INSTANCES, MAX_PIXELS, read_json, whole_number
from em_bench_eval.leaderboard.verdict import Faults, printable
from em_bench_eval.schema import Organelle

FILE = "coco.json"


class CocoForm:
    """See ``forms.Form``. Instances get the ids 1..N of their order in the file."""

    def __init__(self, folder: Path, files: Mapping[str, int], expected: Expected | None, faults: Faults):
        self._expected = expected
        self.ids: list[str] = []
        self._masks: dict[str, list[Mapping[str, Any]]] = {}
        self._about: dict[str, Mapping[str, Any]] = {}
        self._categories: dict[object, object] = {organelle.label_id: str(organelle) for organelle in Organelle}
        content = read_json(folder / FILE, faults, FILE)
        listed = self._listed_images(content, faults) if isinstance(content, Mapping) else {}
        masks = content.get("annotations") if isinstance(content, Mapping) else content
        if not isinstance(masks, list):
            if content is not None:
                faults.note("unreadable", FILE, f"a {type(masks).__name__}", "a list of results, or annotations")
            masks = []
        for place, mask in enumerate(masks):
            where = f"{FILE}, mask {place}"
            image = mask.get("image_id") if isinstance(mask, Mapping) else None
            if not isinstance(image, (str, int)) or (isinstance(content, Mapping) and image not in listed):
                known = "the id of an image in `images`" if isinstance(content, Mapping) else "a record id"
                faults.note("unreadable", where, f"image_id {printable(image, 60)!r}", known)
                continue
            name = listed.get(image, str(image))
            if name not in self._masks:
                self.ids.append(name)
            self._masks.setdefault(name, []).append(mask)
        self._wanted = Wanted(self.ids, expected)

    def _listed_images(self, content: Mapping[str, Any], faults: Faults) -> dict[object, str]:
        """Read ``images`` and ``categories`` of a data set: image id -> record id."""
        for category in _entries(content, "categories", faults):
            if isinstance(category.get("id"), (int, str)):
                self._categories[category["id"]] = category.get("name")
        listed: dict[object, str] = {}
        for place, image in enumerate(_entries(content, "images", faults)):
            key, name = image.get("id"), image.get("record_id", image.get("file_name", image.get("id")))
            if not isinstance(key, (int, str)) or not isinstance(name, str):
                faults.note("unreadable", f"{FILE}, image {place}", "no id and file_name", "{id, file_name}")
                continue
            if key in listed:
                faults.note("duplicate", f"{FILE}, image {printable(key, 60)}", "this id for the second time")
                continue
            name = name.removesuffix(".png")
            listed[key] = name
            self._masks.setdefault(name, [])
            self._about[name] = image
            self.ids.append(name)
        return listed

    def read(self, start: int, stop: int, faults: Faults) -> Iterator[Candidate]:
        """Decode ``ids[start:stop]``."""
        for place in range(start, min(stop, len(self.ids))):
            if self._wanted(place):
                candidate = self._candidate(self.ids[place], faults)
                if candidate is not None:
                    yield candidate

    def _candidate(self, name: str, faults: Faults) -> Candidate | None:
        masks, about = self._masks[name], self._about.get(name, {})
        stated = [about.get("height"), about.get("width")]
        sizes = [_size_of(mask) for mask in masks] + ([stated] if None not in stated else [])
        shape = shape_of(name, self._expected)
        if shape is None:
            if not sizes:
                faults.note("unreadable", name, "no height and width", "the size of an image without masks")
                return None
            whole = [whole_number(side, 1, MAX_PIXELS) for side in sizes[0]]
            if whole[0] is None or whole[1] is None or whole[0] * whole[1] > MAX_PIXELS:
                faults.note("unsafe", name, f"size {printable(sizes[0], 60)}", f"at most {MAX_PIXELS:,} pixels")
                return None
            shape = (whole[0], whole[1])
        wrong = next((size for size in sizes if size != list(shape)), None)
        if wrong is not None:
            faults.note("shape", name, printable(wrong, 60), f"{shape[0]} x {shape[1]} (y, x)")
            return None
        if len(masks) > MAX_INSTANCES:
            faults.note("instances", name, f"{len(masks):,}", f"at most {MAX_INSTANCES:,}")
            return None
        return self._paint(name, masks, shape, about, faults)

    def _paint(
        self,
        name: str,
        masks: list[Mapping[str, Any]],
        shape: tuple[int, int],
        about: Mapping[str, Any],
        faults: Faults,
    ) -> Candidate | None:
        labels = np.zeros(shape[0] * shape[1], np.uint16)  # columns first
        objects: list[ObjectEntry] = []
        shared = 0
        for id_, mask in enumerate(masks, start=1):
            try:
                pixels = pixels_of(read_runs(mask["segmentation"].get("counts"), labels.size))
            except (ValueError, UnicodeEncodeError) as error:
                faults.note("unreadable", f"{name}, mask {id_}", error, "run-length encoding (columns first)")
                return None
            shared += int(np.count_nonzero(labels[pixels]))
            if shared:
                faults.note("overlap", f"{name}, mask {id_}", f"{shared:,} pixels of an earlier mask", "none")
                return None
            labels[pixels] = id_
            category = mask.get("category_id")
            known = isinstance(category, (int, str)) and category in self._categories
            objects.append((id_, self._categories[category] if known else category, mask.get("score")))
        return Candidate(name, labels.reshape(shape, order="F"), objects, about.get("pixel_size_nm"))


def _entries(content: Mapping[str, Any], key: str, faults: Faults) -> list[Mapping[str, Any]]:
    entries = content.get(key, [])
    if isinstance(entries, list) and all(isinstance(entry, Mapping) for entry in entries):
        return entries
    faults.note("unreadable", f"{FILE}, {key}", type(entries).__name__, "a list of objects")
    return []


def _size_of(mask: Mapping[str, Any]) -> list[object]:
    encoded = mask.get("segmentation")
    size = encoded.get("size") if isinstance(encoded, Mapping) else None
    return list(size) if isinstance(size, list) and len(size) == 2 else ["no", "size"]
