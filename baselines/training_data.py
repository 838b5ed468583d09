"""What a training reads: batches of crops from some crop number on, and what validates it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from baselines.data import Crops
from baselines.model import Baseline, load_model
from baselines.resumable_loop import numbered_batches
from baselines.streaming import StreamedCrops
from baselines.validation import Validation
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.rows import open_rows

if TYPE_CHECKING:
    from baselines.training import TrainingRequest


class Validates(Protocol):
    """Something that judges a model while it is trained."""

    def dice(self, model: Baseline, device: torch.device) -> dict[str, float]:
        """Semantic Dice by organelle."""
        ...


class NumberedCrops(Protocol):
    """Crops by number, for any number; see ``baselines.data.Crops``."""

    @property
    def trained_organelles(self) -> tuple[str, ...]:
        """Organelles that are annotated somewhere."""
        ...

    def __getitem__(self, number: int) -> Any: ...


@dataclass(frozen=True)
class TrainingData:
    """``rows``: number of rows, or volumes, or None where a stream does not say."""

    crops: NumberedCrops | StreamedCrops
    rows: int | None
    validation: Validates | None
    index: Any = None  # rows without images, for counting

    @property
    def trained_organelles(self) -> tuple[str, ...]:
        """Organelles that are annotated in at least one row."""
        return self.crops.trained_organelles

    def batches(self, accelerator: Any, first_crop: int, micro_batch: int, workers: int) -> Iterable[Any]:
        """Collated crops from ``first_crop`` on, ``micro_batch`` at a time; numbers run over all processes."""
        from torch.utils.data import DataLoader

        if isinstance(self.crops, StreamedCrops):
            streamed = self.crops.for_process(accelerator.process_index, accelerator.num_processes, first_crop)
            pin = accelerator.device.type == "cuda"
            return DataLoader(streamed, batch_size=micro_batch, num_workers=min(workers, 1), pin_memory=pin)
        return numbered_batches(self.crops, accelerator, first_crop, micro_batch, workers)

    def notes(self, model: Baseline, crop: int) -> list[str]:
        """What whoever trains should know before hours have passed."""
        found = []
        missing = [name for name in model.config.organelles if name not in self.trained_organelles]
        if missing:
            found.append(f"not annotated in the training data, so never predicted: {', '.join(missing)}")
        return found if self.index is None else found + model.data_notes(self.index, crop)


def open_training_data(request: TrainingRequest) -> TrainingData:
    """Open what a request asks for; raises ``InputError`` if there is nothing to learn from."""
    config, recipe = request.architecture, request.recipe
    if load_model(request.model).build.ndim == 3:
        from baselines.volumes.volume_crops import open_volume_data

        return open_volume_data(request)
    rows = of_sources(open_rows(request.dataset, request.config, "train", streaming=request.streaming), request.sources)
    validation = _validation(request)
    if request.streaming:
        streamed = StreamedCrops(rows, recipe, request.seed, config)
        return TrainingData(streamed, None, validation, index=None)
    return TrainingData(Crops(rows, recipe, request.seed, config), len(rows), validation, index=rows)


def of_sources(rows: Any, sources: Sequence[str]) -> Any:
    """Keep the rows of these sources, all if none is named; raises ``InputError`` for a source that has none."""
    if not sources:
        return rows
    if not hasattr(rows, "select"):  # a stream
        return rows.filter(lambda source: source in sources, input_columns=["source"])
    column = list(rows["source"])
    for source in sources:
        if source not in column:
            raise unknown_name("source in this split", source, sorted(set(column)))
    return rows.select([number for number, source in enumerate(column) if source in sources])


def _validation(request: TrainingRequest) -> Validation | None:
    try:
        rows = open_rows(request.dataset, request.config, "validation")
        return Validation(of_sources(rows, request.sources), request.architecture)
    except InputError:  # a dataset without that split, or without these sources in it
        return None
