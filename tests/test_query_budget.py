"""How many instances a crop holds, counted from bounding boxes and from label images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baselines.networks.query_budget import QueryBudget, piece_budget, query_budget
from em_bench_eval.rows import encode_png
from em_bench_eval.schema import Organelle


def entry(id_: int, organelle: str, bbox: tuple[int, int, int, int]) -> dict[str, Any]:
    return {
        "id": id_,
        "organelle": organelle,
        "bbox": list(bbox),
        "instance_id": id_,
        "area": 1,
        "touches_border": False,
    }


def row(entries: list[dict[str, Any]], annotated: tuple[str, ...] = ("mito", "er"), nm: float = 8.0) -> dict[str, Any]:
    return {"objects": entries, "annotated": list(annotated), "pixel_size_nm": [nm, nm]}


def lattice(step: int, size: int) -> list[dict[str, Any]]:
    places = [(y, x) for y in range(0, size, step) for x in range(0, size, step)]
    return [entry(n, "mito", (y, x, y + 4, x + 4)) for n, (y, x) in enumerate(places, 1)]


def test_a_lattice_of_instances() -> None:
    """Crops of 32 around the centre of a cell reach 16 pixels to each side: 3 boxes of 16 and gaps, so 9 in all."""
    budget = query_budget([row(lattice(16, 160))], crop=32)
    assert (budget.median, budget.maximum, budget.crops) == (9, 9, 50)
    assert budget.mean_of == {Organelle.MITO: pytest.approx(budget.mean_of[Organelle.MITO])}
    assert query_budget([row(lattice(16, 160))], crop=320).maximum == 100


def test_crops_are_measured_in_nanometres() -> None:
    assert query_budget([row(lattice(16, 160), nm=4.0)], crop=16).maximum == 9
    assert query_budget([row(lattice(16, 160), nm=4.0)], crop=32, pixel_nm=4.0).maximum == 9


def test_no_image_is_read_and_unannotated_organelles_do_not_count() -> None:
    objects = [entry(1, "mito", (0, 0, 4, 4)), entry(2, "nucleus", (0, 0, 4, 4)), entry(3, "er", (2, 2, 9, 9))]
    budget = query_budget([row(objects), row([], ("mito",))], crop=64)
    assert (budget.crops, budget.maximum) == (2, 2)
    assert budget.mean_of == {Organelle.MITO: 1.0, Organelle.ER: 1.0}
    assert query_budget([], crop=64) == QueryBudget(0, 0.0, 0.0, 0, {})


def test_advice_and_warning() -> None:
    budget = QueryBudget(1000, median=12, p99=61, maximum=80, mean_of={})
    assert budget.num_queries == 150
    assert budget.warning(150) is None
    assert "leave little room" in str(budget.warning(100))
    assert "cannot all be found" in str(budget.warning(50))
    assert "advised queries: 150" in str(budget)
    assert QueryBudget(0, 0.0, 0.0, 0, {}).num_queries == 50


def labelled(ids: np.ndarray, organelles: dict[int, str], ignore: np.ndarray | None = None) -> dict[str, Any]:
    return {
        "image": encode_png(np.zeros(ids.shape, np.uint8)),
        "instances": encode_png(ids.astype(np.uint16)),
        "ignore": None if ignore is None else encode_png(ignore),
        "objects": [entry(id_, name, (0, 0, *ids.shape)) for id_, name in organelles.items()],
        "annotated": ["mito", "er"],
        "pixel_size_nm": [8.0, 8.0],
        "volume_id": "v",
        "axis": "z",
        "slice": 0,
        "source": "s",
        "specimen": "s",
        "domain": "in",
        "fold": "train",
    }


def test_a_network_is_one_id_and_many_pieces() -> None:
    ids = np.zeros((64, 64), int)
    ids[::4, ::2] = 7  # 16 x 32 dots of one ER
    ids[1:3, 10:20] = 3  # a mitochondrion that touches none of them: the dots above lie at row 0, so it does: own id
    ids[9, 9] = 5  # a nucleus, not annotated
    pieces = piece_budget([labelled(ids, {7: "er", 3: "mito", 5: "nucleus"})], crop=64)
    assert pieces.maximum == 16 * 32 + 1
    assert pieces.mean_of == {Organelle.MITO: 1.0, Organelle.ER: 512.0}
    assert query_budget([labelled(ids, {7: "er", 3: "mito", 5: "nucleus"})], crop=64).maximum == 2
    assert piece_budget([labelled(ids, {7: "er", 3: "mito"})], crop=64, min_pixels=2).maximum == 1
    ignore = np.zeros(ids.shape, bool)
    ignore[:, 32:] = True
    assert piece_budget([labelled(ids, {7: "er", 3: "mito"}, ignore)], crop=64).maximum == 16 * 16 + 1


def test_on_a_built_dataset_boxes_bound_pieces_of_compact_organelles(tiny_dataset: Any) -> None:
    from em_bench_eval.rows import open_rows

    rows = open_rows(tiny_dataset, "wild", "train")
    boxes, pieces = query_budget(rows, crop=32), piece_budget(rows, crop=32)
    assert boxes.crops > 0
    assert pieces.crops > 0
    assert boxes.maximum >= 1
    assert "instances per crop" in str(boxes)
