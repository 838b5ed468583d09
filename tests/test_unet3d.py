"""The 3D U-Net and its crops: size, shapes, that it learns, and that crops are the volume's voxels."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from baselines.losses import IGNORE
from baselines.model import Batch, count_parameters, load_model
from baselines.models.unet3d import MODEL, UNet3D, UNet3DConfig
from baselines.recipe import Recipe
from baselines.training import TrainingRequest, train
from baselines.volumes.dataset_volumes import _runs, open_slabs
from baselines.volumes.volume_crops import BLOCK, VolumeCrops, aligned_block, blocks_of, cut_volume
from em_bench_eval.errors import InputError

torch.set_num_threads(1)
RECIPE = Recipe(steps=1, batch_size=1, crop=24, lr=1e-3, augment=False)
CONFIG = UNet3DConfig(crop_depth=8)


def test_parameter_count() -> None:
    """Counted by hand: two convolutions and norms per block, a transposed convolution per level, the head."""
    widths = [24, 48, 96, 192]

    def block(inputs: int, outputs: int) -> int:
        return 27 * outputs * (inputs + outputs) + 4 * outputs

    expected = sum(block(i, o) for i, o in zip([1, *widths], widths, strict=False))
    for here, below in itertools.pairwise(widths):
        expected += 8 * below * here + here + block(2 * here, here)
    expected += (24 + 1) * (6 + 2)
    with torch.device("meta"):
        assert count_parameters(UNet3D(UNet3DConfig())) == expected == 3_151_544


@pytest.mark.parametrize("shape", [(5, 9, 14), (1, 1, 1), (8, 16, 16)])
@pytest.mark.parametrize("pools", [((2, 2, 2),), ((1, 2, 2), (2, 2, 2))])
def test_any_volume_keeps_its_size(shape: tuple[int, int, int], pools: tuple[tuple[int, int, int], ...]) -> None:
    config = UNet3DConfig(
        width=2, pools=pools, norm_groups=1, affinity_offsets=((1, 0, 0),), trained_organelles=("er",)
    )
    model = UNet3D(config).eval()
    with torch.no_grad():
        heads = model(torch.randn(1, 1, *shape))
    assert heads["semantic"].shape == (1, 6, *shape)
    assert model.maps(torch.randn(2, 1, *shape)).shape == (2, 2, *shape)
    assert model.map_names == ("er", "affinity:1,0,0")


def test_levels_above_the_first_pooling_along_z_look_at_their_plane_only() -> None:
    model = UNet3D(UNet3DConfig(width=2, pools=((1, 2, 2), (2, 2, 2)), norm_groups=1))
    kernels = [block[0].kernel_size for block in model.down]  # type: ignore[index]
    assert kernels == [(1, 3, 3), (1, 3, 3), (3, 3, 3)]


def test_it_overfits_one_batch() -> None:
    torch.manual_seed(0)
    z, y, x = np.mgrid[:8, :24, :24]
    ball = (z - 4) ** 2 * 4 + (y - 10) ** 2 + (x - 12) ** 2 < 40
    semantic = np.where(ball, 1, 0)
    semantic[:, :3] = IGNORE
    batch: Batch = {
        "image": torch.from_numpy(np.where(ball, 1.0, -1.0).astype(np.float32))[None, None],
        "semantic": torch.from_numpy(semantic)[None],
        "instances": torch.from_numpy(ball.astype(np.int64))[None],
        "distance": torch.from_numpy(ball.astype(np.float32))[None],
        "annotated": torch.tensor([[True, False, False, False, False]]),
    }
    model = UNet3D(UNet3DConfig(width=4, pools=((1, 2, 2), (2, 2, 2)), norm_groups=2, trained_organelles=("mito",)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        loss = model.loss(model(batch["image"]), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]
    assert bool(((model.eval().maps(batch["image"])[0, 0] > 0.5).numpy() == ball).mean() > 0.98)


def test_a_slab_is_what_the_fold_holds_and_crops_are_its_voxels(tiny_dataset: Path) -> None:
    slabs = open_slabs(str(tiny_dataset), "wild", "train", ("lucchipp",))
    assert slabs
    slab = slabs[0]
    native = tuple(round(nm) for nm in slab.voxel_size_nm)
    config = dataclasses.replace(CONFIG, voxel_size_nm=slab.voxel_size_nm)  # nothing to resample
    crops = VolumeCrops(slabs, dataclasses.replace(RECIPE, foreground=1.0), 0, config)
    assert crops.trained_organelles == ("mito",)
    assert native == (5, 5, 5)
    semantic = np.asarray(slab.semantic[:, :, :])
    whole = aligned_block(crops.blocks[0], crops.grays[id(slab)])
    np.testing.assert_array_equal(whole["semantic"], semantic[crops.blocks[0].box])
    assert whole["image"].min() >= -1.5
    correlation = np.corrcoef(whole["image"].ravel(), np.asarray(slab.image[:, :, :])[crops.blocks[0].box].ravel())
    assert correlation[0, 1] > 0.95
    seen = [crops[number] for number in range(12)]
    assert all(crop["image"].shape == (1, 8, 24, 24) for crop in seen)
    assert all((crop["semantic"] == 1).any() for crop in seen[:8])
    again = crops[3]
    for name, value in seen[3].items():
        np.testing.assert_array_equal(value, again[name])


def test_alignment_halves_a_volume(tiny_dataset: Path) -> None:
    slab = open_slabs(str(tiny_dataset), "wild", "train", ("lucchipp",))[0]
    target = tuple(2 * nm for nm in slab.voxel_size_nm)
    blocks = blocks_of(slab, target)
    crops = VolumeCrops([slab], RECIPE, 0, dataclasses.replace(CONFIG, voxel_size_nm=target))
    image = np.asarray(slab.image[:, :, :]).astype(np.float32)
    even = image[: image.shape[0] // 2 * 2]
    means = even.reshape(-1, 2, image.shape[1] // 2, 2, image.shape[2] // 2, 2).mean((1, 3, 5))
    got = aligned_block(blocks[0], crops.grays[id(slab)])["image"][: len(means)].astype(np.float32)
    flat, expected = got.ravel(), means.ravel()
    inside = (flat > -1.45) & (flat < 1.45)
    assert np.corrcoef(flat[inside], expected[inside])[0, 1] > 0.999


def test_blocks_cover_a_slab_once() -> None:
    class Wide:
        shape, voxel_size_nm = (40, 1000, 300), (8.0, 8.0, 8.0)

    blocks = blocks_of(Wide(), (8.0, 8.0, 8.0))  # type: ignore[arg-type]
    covered = np.zeros(Wide.shape, int)
    for block in blocks:
        assert max(part.stop - part.start for part in block.box) <= BLOCK
        covered[block.box] += 1
    assert (covered == 1).all()


def test_cut_volume_reflects_or_fills() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    for corner, shape in [((0, 0, 0), (4, 3, 4)), ((1, 1, 1), (1, 4, 5))]:
        inside = volume[corner[0] :, corner[1] :, corner[2] :]
        inside = inside[: shape[0], : shape[1], : shape[2]]
        filled = cut_volume(volume, corner, shape, 99)
        assert filled.shape == shape
        np.testing.assert_array_equal(filled[tuple(slice(0, n) for n in inside.shape)], inside)
        assert np.count_nonzero(filled == 99) == filled.size - inside.size
        assert 99 not in cut_volume(volume, corner, shape, None)
    assert _runs([3, 4, 5, 9, 11, 12]) == [(3, 5), (9, 9), (11, 12)]


def test_it_trains_and_resumes_from_the_dataset(tiny_dataset: Path, tmp_path: Path) -> None:
    preset = load_model("unet3d").preset("smoke")
    recipe = dataclasses.replace(preset.recipe, steps=3, batch_size=1)
    request = TrainingRequest("unet3d", str(tiny_dataset), "wild", tmp_path, "smoke", preset.config, recipe)
    train(dataclasses.replace(request, out=tmp_path / "run", checkpoint_every=2))
    model = UNet3D.from_pretrained(tmp_path / "run")
    assert "mito" in model.config.trained_organelles
    assert model.config.pools == ((1, 2, 2), (2, 2, 2))
    assert "mito" in model.training_info["validation_semantic_dice"]
    with pytest.raises(InputError, match="--streaming reads rows, not volumes"):
        train(dataclasses.replace(request, out=tmp_path / "stream", streaming=True))


def test_distance_is_that_of_the_ball() -> None:
    """``inner_distance`` in three dimensions: the largest distance lies in the middle."""
    from baselines.preprocess import inner_distance

    z, y, x = np.mgrid[:15, :15, :15]
    ball = ((z - 7) ** 2 + (y - 7) ** 2 + (x - 7) ** 2 < 36).astype(int)
    found = inner_distance(ball)
    expected = ndimage.distance_transform_edt(ball)
    np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-5)
    assert found[7, 7, 7] == 1.0


def test_presets_are_complete() -> None:
    assert {"quick", "official", "paper", "smoke", "affinity", "anisotropic"} <= set(MODEL.presets)
