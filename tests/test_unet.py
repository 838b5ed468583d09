"""The U-Net: size, shapes, and that it can learn."""

from __future__ import annotations

import pytest
import torch
from dense_double import disc_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.model import count_parameters, load_model
from baselines.models.unet import MODEL, UNet, UNetConfig
from em_bench_eval.errors import InputError

torch.set_num_threads(1)
TINY = UNetConfig(width=4, depth=2, norm_groups=2, trained_organelles=("mito", "er"))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (UNetConfig(width=4, depth=2, norm_groups=2), 7512),
        (UNetConfig(width=16), 1_942_408),
        (UNetConfig(width=64), 31_036_936),
    ],
)
def test_parameter_count(config: UNetConfig, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(UNet(config)) == parameters


@given(height=st.integers(1, 40), width=st.integers(1, 40), stride=st.sampled_from([1, 2]))
@settings(max_examples=15, deadline=None)
def test_any_image_size_keeps_its_size(height: int, width: int, stride: int) -> None:
    model = UNet(UNetConfig(width=2, depth=2, norm_groups=1, stride=stride)).eval()
    with torch.no_grad():
        heads = model(torch.randn(1, 1, height, width))
    assert heads["semantic"].shape == (1, 6, height, width)
    assert heads["distance"].shape == (1, 2, height, width)


def test_maps_hold_trained_organelles_only_and_are_probabilities() -> None:
    torch.manual_seed(0)
    model = UNet(TINY).eval()
    image = torch.randn(2, 1, 16, 20)
    maps = model.maps(image)
    assert model.map_names == ("mito", "er", "distance:mito")
    assert maps.shape == (2, 3, 16, 20)
    heads = model(image)
    torch.testing.assert_close(maps[:, :2], heads["semantic"].softmax(1)[:, [1, 3]])
    torch.testing.assert_close(maps[:, 2], heads["distance"].sigmoid()[:, 0])


def test_it_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model, batch = UNet(UNetConfig(width=8, depth=2, trained_organelles=("mito", "nucleus"))), disc_batch(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(40):
        losses = model.loss(model(batch["image"]), batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]["loss"] < 0.25 * history[0]["loss"]
    assert history[-1]["loss"] == pytest.approx(
        history[-1]["cross_entropy"] + history[-1]["dice"] + history[-1]["distance"], rel=1e-5
    )
    predicted = model.eval().maps(batch["image"])[0]
    assert bool(((predicted[0] > 0.5) == (batch["semantic"][0] == 1)).float().mean() > 0.98)
    inside, outside = batch["distance"][0] > 0.6, batch["semantic"][0] == 0
    assert float(predicted[2][inside].mean()) > 0.5
    assert float(predicted[2][outside].mean()) < 0.2


def test_presets_are_complete_and_misspelt_names_are_answered() -> None:
    assert {"quick", "standard", "paper", "smoke"} <= set(MODEL.presets)
    paper = MODEL.preset("paper").recipe
    assert (paper.steps, paper.batch_size, paper.crop, paper.lr, paper.weight_decay) == (9000, 64, 512, 0.005, 0.0)
    with pytest.raises(InputError, match="did you mean 'paper'"):
        MODEL.preset("papper")
    with pytest.raises(InputError, match="did you mean 'unet'"):
        load_model("unett")
