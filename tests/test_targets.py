"""Boundary and affinity targets against their definitions, pixel by pixel; the further heads learn from them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.losses import IGNORE
from baselines.model import Batch
from baselines.models.unet import UNet, UNetConfig
from baselines.targets import affinity_target, boundary_target

torch.set_num_threads(1)
SHAPES = st.sampled_from([(7, 9), (3, 6, 5)])


def _labels(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    instances = generator.integers(0, 3, shape) * generator.integers(0, 2, shape)
    semantic = np.where(instances > 0, 1, 0)
    semantic[generator.random(shape) < 0.2] = IGNORE
    return instances, semantic


@given(seed=st.integers(0, 10_000), shape=SHAPES)
@settings(max_examples=15, deadline=None)
def test_boundary_is_what_lies_near_something_else(seed: int, shape: tuple[int, ...]) -> None:
    instances, _ = _labels(seed, shape)
    found = boundary_target(torch.from_numpy(instances)[None])[0].numpy()
    for place in np.ndindex(*shape):
        near = tuple(slice(max(0, i - 2), i + 3) for i in place)
        assert found[place] == (instances[place] > 0 and len(np.unique(instances[near])) > 1)


@given(seed=st.integers(0, 10_000), shape=SHAPES, data=st.data())
@settings(max_examples=15, deadline=None)
def test_affinities_compare_pairs_that_somebody_labelled(
    seed: int, shape: tuple[int, ...], data: st.DataObject
) -> None:
    instances, semantic = _labels(seed, shape)
    offset = tuple(data.draw(st.integers(-8, 8)) for _ in shape)
    target, known = affinity_target(torch.from_numpy(instances)[None], torch.from_numpy(semantic)[None], [offset])
    assert target.shape == known.shape == (1, 1, *shape)
    for place in np.ndindex(*shape):
        other = tuple(i + step for i, step in zip(place, offset, strict=True))
        inside = all(0 <= i < size for i, size in zip(other, shape, strict=True))
        sure = inside and semantic[place] != IGNORE and semantic[other] != IGNORE
        sure = sure and bool(instances[place] or instances[other])
        assert bool(known[0, 0][place]) == sure
        if sure:
            assert float(target[0, 0][place]) == float(instances[place] == instances[other])


def test_the_further_heads_learn_where_touching_instances_part() -> None:
    """Two touching squares of one class: nothing but boundary, distance and affinities tells them apart."""
    instances = torch.zeros(1, 24, 24, dtype=torch.int64)
    instances[:, 4:20, 4:12], instances[:, 4:20, 12:20] = 1, 2
    image = instances[:, None].float() - 1.0
    semantic = (instances > 0).long()
    batch: Batch = {
        "image": image,
        "semantic": semantic,
        "instances": instances,
        "distance": semantic.float(),
        "annotated": torch.tensor([[True, False, False, False, False]]),
    }
    torch.manual_seed(0)
    offsets = ((0, 1), (4, 0))
    config = UNetConfig(
        width=8, depth=2, trained_organelles=("mito",), boundary_organelles=("mito",), affinity_offsets=offsets
    )
    model = UNet(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        losses = model.loss(model(image), batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert set(losses) == {"loss", "cross_entropy", "dice", "distance", "boundary", "affinity"}
    assert model.map_names == ("mito", "distance:mito", "boundary:mito", "affinity:0,1", "affinity:4,0")
    maps = model.eval().maps(image)[0]
    assert float(maps[2, 8:16, 11:13].min()) > 0.5  # boundary: on both sides of the border
    assert float(maps[2, 8:16, 7].max()) < 0.5  # and not inside
    assert float(maps[3, 8:16, 11].max()) < 0.5 < float(maps[3, 8:16, 8].min())
    assert float(maps[4, 8:12, 6:10].min()) > 0.5


def test_an_offset_beyond_the_image_is_unknown_everywhere() -> None:
    instances = torch.ones(1, 8, 8, dtype=torch.int64)
    assert not bool(affinity_target(instances, instances, [(0, 30)])[1].any())
