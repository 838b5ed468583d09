"""TransUNet: published sizes, shapes, that it learns, and that its checkpoints come back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_double import disc_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.model import count_parameters
from baselines.models.transunet import MODEL, RETINA, SMOKE, TransUNet, TransUNetConfig
from baselines.networks.resnet_v2 import HybridTrunk
from em_bench_eval.errors import InputError

torch.set_num_threads(1)
PUBLISHED_HEAD = 9 * (16 * 3 * 3 + 1)  # 3x3 convolution to the nine classes of Synapse


def _millions(count: int) -> float:
    return round(count / 1e6, 2)


@pytest.mark.parametrize(
    ("config", "total", "trunk", "vit", "decoder"),
    [
        (TransUNetConfig(), 105.28, 11.89, 85.06, 7.39),
        (TransUNetConfig(image_size=512), 105.91, 11.89, 85.06, 7.39),
        (dataclasses.replace(RETINA, hidden=192, mlp=768), 22.20, 11.89, 5.34, 4.73),
    ],
)
def test_parameter_count_is_the_published_one(
    config: TransUNetConfig, total: float, trunk: float, vit: float, decoder: float
) -> None:
    with torch.device("meta"):
        model = TransUNet(config)
    body = count_parameters(model) - count_parameters(model.head)
    assert _millions(body + PUBLISHED_HEAD) == total
    assert _millions(count_parameters(model)) == total  # eight channels instead of nine are no difference
    assert count_parameters(model.head) == sum(config.groups.values()) * (16 * 3 * 3 + 1)
    assert _millions(count_parameters(model.encoder.trunk)) == trunk
    assert _millions(count_parameters(model.encoder.vit)) == vit
    assert _millions(count_parameters(model.decoder)) == decoder


def test_first_convolutions_of_the_decoder_take_the_published_channels() -> None:
    with torch.device("meta"):
        model = TransUNet(TransUNetConfig())
    assert [block[0][0].in_channels for block in model.decoder.blocks] == [1024, 512, 192, 64]  # type: ignore[index]
    features, skips = None, None
    with torch.device("meta"):
        features, skips = model.encoder(torch.zeros(1, 1, 224, 224))
    assert features.shape == (1, 768, 14, 14)
    assert [tuple(skip.shape[1:]) for skip in skips] == [(512, 28, 28), (256, 56, 56), (64, 112, 112)]


@pytest.mark.parametrize("padding", ["torch", "tf_same"])
@given(height=st.integers(2, 5), width=st.integers(2, 5))
@settings(max_examples=4)
def test_the_trunk_halves_exactly(padding: str, height: int, width: int) -> None:
    trunk = HybridTrunk(4, (1, 1, 1), padding)  # type: ignore[arg-type]
    with torch.no_grad():
        x, skips = trunk(torch.randn(1, 3, 16 * height, 16 * width))
    assert x.shape == (1, 64, height, width)
    assert [skip.shape[-2:] for skip in skips] == [(k * height, k * width) for k in (2, 4, 8)]
    if padding == "torch":  # TransUNet's first stage lacks a row and a column
        assert not skips[1][..., -1, :].any()
        assert not skips[1][..., -1].any()


@given(height=st.integers(1, 70), width=st.integers(1, 70), levels=st.sampled_from([3, 4]))
@settings(max_examples=8)
def test_any_image_size_keeps_its_size(height: int, width: int, levels: int) -> None:
    config = dataclasses.replace(SMOKE, decoder_channels=(8,) * levels, trained_organelles=("mito", "er"))
    model = TransUNet(config).eval()
    maps = model.maps(torch.randn(1, 1, height, width))
    assert maps.shape == (1, 3, height, width)
    assert bool(((maps >= 0) & (maps <= 1)).all())


def test_half_resolution_decoder_stays_in_register() -> None:
    """A bright square moves the answer where it is, with three decoder levels as with four."""
    torch.manual_seed(0)
    for levels in (3, 4):
        model = TransUNet(dataclasses.replace(SMOKE, decoder_channels=(8,) * levels)).eval()
        image = torch.zeros(1, 1, 64, 64)
        changed = image.clone()
        changed[..., 32:40, 16:24] = 3.0
        with torch.no_grad():
            difference = (model(changed)["semantic"] - model(image)["semantic"]).abs().sum((0, 1))
        y, x = np.mgrid[:64, :64]
        weight = np.square(difference.numpy())
        assert abs((weight * y).sum() / weight.sum() - 35.5) < 6
        assert abs((weight * x).sum() / weight.sum() - 19.5) < 6


@pytest.mark.parametrize("levels", [3, 4])
def test_it_overfits_one_batch(levels: int) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(
        SMOKE, decoder_channels=(32, 16, 8, 8)[:levels], trained_organelles=("mito", "nucleus")
    )
    model, batch = TransUNet(config), disc_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(30):
        losses = model.loss(model(batch["image"]), batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(float(losses["loss"].detach()))
    assert history[-1] < 0.35 * history[0]
    model.train()  # batch statistics: the running ones lag behind at this learning rate
    predicted = model.maps(batch["image"])[0]
    assert bool(((predicted[0] > 0.5) == (batch["semantic"][0] == 1)).float().mean() > 0.97)


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TransUNet(dataclasses.replace(SMOKE, trained_organelles=("mito",), padding="tf_same")).eval()
    image = torch.randn(1, 1, 50, 70)
    model.save_pretrained(tmp_path)
    loaded = TransUNet.from_pretrained(tmp_path)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.maps(image), model.maps(image), rtol=0, atol=0)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model, image = TransUNet(SMOKE), torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(image)["semantic"], model(image)["semantic"])
        model.eval()
        assert torch.equal(model(image)["semantic"], model(image)["semantic"])


def test_presets_are_complete() -> None:
    assert {"quick", "official", "retina", "retina-192", "paper", "smoke"} <= set(MODEL.presets)
    official, retina = MODEL.preset("official"), MODEL.preset("retina")
    found = (official.recipe.optimizer, official.recipe.lr, official.recipe.momentum, official.recipe.weight_decay)
    assert found == ("sgd", 0.01, 0.9, 1e-4)
    assert (official.recipe.schedule, official.recipe.batch_size, official.recipe.crop) == ("poly", 24, 224)
    assert (retina.recipe.lr, retina.recipe.crop, retina.config.normalisation) == (0.003, 224, "cem500k")
    assert isinstance(retina.config, TransUNetConfig)
    assert (retina.config.transfer, retina.config.freeze) == ("vit", "vit")  # the paper, not the code
    paper = MODEL.preset("paper").recipe
    assert (paper.steps, paper.batch_size, paper.crop, paper.lr) == (9000, 64, 512, 0.005)
    with pytest.raises(InputError, match="did you mean 'retina'"):
        MODEL.preset("retinas")
