"""``splits.json``: which slices of a volume are in which fold; written into every dataset, and read to repeat it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dataset_builder.splits import Slab, SplitPolicy, place_of
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Domain, Volume

FORMAT = "em-organelle-wild splits v1"


def as_split_file(policy: SplitPolicy, volumes: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """Return the content of ``splits.json``; ``volumes`` holds ``SplitPolicy.entry_of`` of every volume."""
    return {"format": FORMAT, "policy": policy.as_json(), "volumes": dict(volumes)}


@dataclass(frozen=True)
class PublishedSplits(SplitPolicy):
    """The split of an earlier dataset, volume by volume; what contradicts it is an ``InputError``."""

    path: str = ""
    volumes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def domain_of(self, volume: Volume) -> Domain:
        """Return the published domain."""
        domain: Domain = self._published(volume)["domain"]
        return domain

    def slabs_of(self, volume: Volume) -> list[Slab]:
        """Return the published slabs."""
        return [Slab(fold, start, stop) for fold, start, stop in self._published(volume)["slabs"]]

    def frame_entry_of(self, volume: Volume) -> dict[str, Any]:
        """Return what was published; an older file says nothing of frames, and what it cut was not cut together."""
        return dict(self._published(volume).get("frame", place_of(volume)))

    @property
    def leak_remedy(self) -> str:
        """What to do about a split that leaks."""
        return f"{self.path} divides them so, and may be older than this check: build without --splits"

    def check_complete(self, volume_ids: Iterable[str]) -> None:
        """Raise ``InputError`` if a volume is missing of a source that is there."""
        have = set(volume_ids)
        sources = {self.volumes[name]["source"] for name in have}
        missing = sorted(
            name for name, entry in self.volumes.items() if entry["source"] in sources and name not in have
        )
        if missing:
            raise InputError(
                f"volumes of {self.path} are missing",
                found=f"{len(have)} volumes, without {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}",
                expected="every published volume of the chosen sources",
                remedy="complete the raw data, or build without --splits",
            )

    def check_held_out(self, specimens: Iterable[str]) -> None:
        """Accept any: what the file holds out may be of sources that are not built now."""

    def _published(self, volume: Volume) -> Mapping[str, Any]:
        if volume.volume_id not in self.volumes:
            raise InputError(
                f"{self.path} does not say how volume {volume.volume_id} is divided",
                found=f"{len(self.volumes)} other volumes",
                expected="the volumes that it was written for",
                remedy="build without --splits, or leave this source out",
            )
        entry = self.volumes[volume.volume_id]
        is_now = self.facts_of(volume)
        was = dict(entry)
        if "frame" in entry:  # an older file has none
            was["place"] = _place(entry["frame"])
            is_now["place"] = "not known" if volume.frame is None else _place(place_of(volume))
        changed = [name for name, value in is_now.items() if was[name] != value]
        if changed:
            raise InputError(
                f"volume {volume.volume_id} is not the one that {self.path} divides",
                found=", ".join(f"{name} {is_now[name]}" for name in changed),
                expected=", ".join(f"{name} {was[name]}" for name in changed),
                remedy="use the raw data and options of the published dataset, or build without --splits",
            )
        return entry


def _place(frame: Mapping[str, Any]) -> str:
    return f"{frame['name']} at {', '.join(map(str, frame['origin_nm']))} nm"


def read_split_file(path: Path) -> PublishedSplits:
    """Read ``splits.json``; raises ``InputError`` if it is none of ours or of another version."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        known = {entry.name for entry in fields(SplitPolicy)}
        policy = {name: value for name, value in content["policy"].items() if name in known}
        policy["held_out"] = frozenset(policy["held_out"])
        for entry in content["volumes"].values():
            _ = entry["domain"], entry["source"], [(fold, int(a), int(b)) for fold, a, b in entry["slabs"]]
            _ = _place(entry["frame"]) if "frame" in entry else ""
        return PublishedSplits(**policy, path=str(path), volumes=content["volumes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no split file",
            found=f"{type(error).__name__}: {error}",
            expected=f"splits.json of a dataset, {FORMAT!r}",
            remedy="name the splits.json of a published dataset",
        ) from error
