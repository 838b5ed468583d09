"""What is in a dataset: counted while it is built, written to ``stats.json``, shown in the card."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from dataset_builder.splits import Part, SplitPolicy
from em_bench_eval.schema import FOLDS, Record, SourceInfo

FORMAT = "em-organelle-wild dataset v1"


@dataclass
class Stats:
    """Counts by part, fold, domain, source and organelle."""

    policy: SplitPolicy
    sources: dict[str, SourceInfo] = field(default_factory=dict)
    volumes: dict[str, str] = field(default_factory=dict)  # volume id -> source
    images: Counter[tuple[Part, str, str, str]] = field(default_factory=Counter)  # part, fold, domain, source
    objects: Counter[tuple[str, str]] = field(default_factory=Counter)  # source, organelle: instances seen in slices
    instances: Counter[tuple[str, str]] = field(default_factory=Counter)  # source, organelle: instances in volumes

    def count(self, record: Record, part: Part) -> None:
        """Add one published row."""
        self.images[part, record.fold, record.domain, record.source] += 1
        for entry in record.objects:
            self.objects[record.source, str(entry.organelle)] += 1

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
            "images": sum(self.images.values()),
            "volumes": len(self.volumes),
            "policy": {**asdict(self.policy), "held_out": sorted(self.policy.held_out)},
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
