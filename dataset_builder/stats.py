"""What is in a dataset: counted while it is built, written to ``stats.json``, shown in the card."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.splits import Part, SplitPolicy
from em_bench_eval import __version__
from em_bench_eval.schema import FOLDS, SourceInfo

FORMAT = "em-organelle-wild dataset v1"


@dataclass
class Stats:
    """Counts by part, fold, domain, source and organelle."""

    policy: SplitPolicy
    settings: Mapping[str, float] = field(default_factory=dict)  # tile and smallest instance size
    sources: dict[str, SourceInfo] = field(default_factory=dict)
    volumes: dict[str, str] = field(default_factory=dict)  # volume id -> source
    images: Counter[tuple[Part, str, str, str]] = field(default_factory=Counter)  # part, fold, domain, source
    objects: Counter[tuple[str, str]] = field(default_factory=Counter)  # source, organelle: instances seen in slices
    instances: Counter[tuple[str, str]] = field(default_factory=Counter)  # source, organelle: instances in volumes
    # of each source of ours; never of a user's spec
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def add(self, result: Mapping[str, Any]) -> None:
        """Add a finished volume: its entry in the journal (``build``)."""
        source, domain = result["source"], result["split"]["domain"]
        self.volumes[result["volume_id"]] = source
        for part in result["parts"]:
            for row in part["rows"]:
                self.images[result["part"], row[0], domain, source] += 1
            for organelle, objects in part["objects"].items():
                self.objects[source, organelle] += objects
        for organelle in result["annotated"]:
            self.instances[source, organelle] += result["instances"][organelle]

    def folds_in(self, part: Part | None = None) -> dict[str, int]:
        """Images per fold, of one part or of all."""
        folds: dict[str, int] = dict.fromkeys(FOLDS, 0)
        for (of_part, fold, _, _), images in self.images.items():
            if part in (None, of_part):
                folds[fold] += images
        return folds

    def as_json(self) -> dict[str, object]:
        """Return the content of ``stats.json``."""
        return {
            "format": FORMAT,
            "version": __version__,
            "images": sum(self.images.values()),
            "volumes": len(self.volumes),
            "policy": self.policy.as_json(),
            "settings": dict(self.settings),
            "options": {
                source: {key: _without_folder(value) for key, value in options.items()}
                for source, options in self.options.items()
            },
            "images_by": [
                {"part": part, "fold": fold, "domain": domain, "source": source, "images": images}
                for (part, fold, domain, source), images in sorted(self.images.items())
            ],
            "instances_by": [
                {
                    "source": source,
                    "organelle": organelle,
                    "volume_instances": instances,
                    "slice_objects": self.objects[source, organelle],
                }
                for (source, organelle), instances in sorted(self.instances.items())
            ],
        }


def _without_folder(value: str) -> str:
    """Name a file, if the value of an option is one: where it lies is nobody's business, nor part of the result."""
    return Path(value).name if os.sep in value and Path(value).is_file() else value
