"""U-Net on a ResNet-50: its published size, what is frozen, and weights of others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_double import disc_batch, mito_dice, overfit
from hypothesis import given, settings
from hypothesis import strategies as st
from resnet_twin import random_twin
from torch import Tensor

from baselines.model import count_parameters, load_model
from baselines.models.unet_r50 import MODEL, UNetR50, UNetR50Config
from baselines.recipe import paper_recipe
from em_bench_eval.errors import InputError

torch.set_num_threads(1)
SMOKE = MODEL.preset("smoke").config
TRAINED = dataclasses.replace(SMOKE, trained_organelles=("mito", "nucleus"))
NARROW = UNetR50Config(
    depths=(2, 1, 1, 1), widths=(32, 64, 128, 256), stem_width=8, decoder_widths=(8, 8, 8, 8), distance_organelles=()
)


def test_parameter_count_is_that_of_segmentation_models_unet() -> None:
    """smp.Unet("resnet50", classes=1) has 32 521 105: three input channels, one output channel."""
    with torch.device("meta"):
        model = UNetR50(UNetR50Config())
    outputs = 1 + 5 + 2
    assert count_parameters(model) == 32_521_105 - 64 * 2 * 49 + (outputs - 1) * (16 * 9 + 1)
    assert round(count_parameters(model) / 1e6, 1) == 32.5


@given(height=st.integers(1, 70), width=st.integers(1, 70), steps=st.sampled_from([4, 5]))
@settings(max_examples=10, deadline=None)
def test_any_image_size_keeps_its_size(height: int, width: int, steps: int) -> None:
    model = UNetR50(dataclasses.replace(SMOKE, decoder_widths=(8,) * steps)).eval()
    with torch.no_grad():
        heads = model(torch.randn(1, 1, height, width))
    assert heads["semantic"].shape == (1, 6, height, width)
    assert heads["distance"].shape == (1, 2, height, width)


def test_the_decoder_meets_the_encoder_at_every_size() -> None:
    """Each step's input: twice the features below, and the encoder's of that size - the stem's before its pooling."""
    model, shapes = UNetR50(SMOKE).eval(), []
    for step in model.decoder:
        step.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[1:])))
    with torch.no_grad():
        assert model.features(torch.randn(1, 1, 64, 96)).shape == (1, 8, 64, 96)
    assert shapes == [(16 + 16, 4, 6), (16 + 8, 8, 12), (16 + 8, 16, 24), (8 + 8, 32, 48), (8, 64, 96)]


def test_it_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model, batch = UNetR50(TRAINED), disc_batch()
    history = overfit(model, batch, steps=40, lr=MODEL.preset("smoke").recipe.lr)
    assert history[-1] < 0.3 * history[0]
    assert mito_dice(model, batch) > 0.9


def test_a_frozen_encoder_keeps_its_weights_but_not_its_statistics() -> None:
    torch.manual_seed(0)
    model = UNetR50(dataclasses.replace(TRAINED, freeze_encoder=True))
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    (group,) = model.parameter_groups()
    ours = {id(p) for part in (model.decoder, model.head) for p in part.parameters()}
    assert {id(p) for p in group["params"]} == ours
    history = overfit(model, disc_batch(), steps=10, lr=1e-2)
    assert history[-1] < history[0]
    after = model.encoder.state_dict()
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - statistics)
    assert not any(torch.equal(before[name], after[name]) for name in statistics)


def _encoder_features(model: UNetR50, image: Tensor) -> Tensor:
    features: Any = model.encoder(image).feature_maps[-1]
    return features


@pytest.mark.parametrize("frozen", [False, True])
def test_encoder_weights_of_others_are_taken_over(frozen: bool, tmp_path: Path) -> None:
    twin = random_twin(3, width=8, depths=(2, 1, 1, 1))
    path = tmp_path / "cem500k_mocov2_resnet50_200ep.pth.tar"
    torch.save({"state_dict": {f"module.encoder_q.{n}": t for n, t in twin.state_dict().items()}}, path)
    model = UNetR50(dataclasses.replace(NARROW, freeze_encoder=frozen)).eval()
    about = model.load_encoder_weights(path)
    assert about.startswith("cem500k_mocov2_resnet50_200ep.pth.tar (query encoder of MoCo, sha256 ")
    assert about.endswith("tensors, frozen" if frozen else "tensors, trained")
    assert [p.requires_grad for p in model.encoder.parameters()] == [not frozen] * len(list(model.encoder.parameters()))
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = twin(gray.expand(1, 3, 64, 64))[-1]
        torch.testing.assert_close(_encoder_features(model, gray), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_of_transformers_is_taken_over(tmp_path: Path) -> None:
    """As ``microsoft/resnet-50`` is: a folder with config.json and model.safetensors, three colours."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes: dict[str, Any] = {"depths": [2, 1, 1, 1], "hidden_sizes": [32, 64, 128, 256], "embedding_size": 8}
    classifier = ResNetForImageClassification(ResNetConfig(**sizes)).eval()
    classifier.save_pretrained(tmp_path / "resnet")
    model = UNetR50(NARROW).eval()
    assert model.load_encoder_weights(tmp_path / "resnet").startswith("resnet (resnet of transformers), ")
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = classifier.resnet(gray.expand(1, 3, 64, 64)).last_hidden_state
        torch.testing.assert_close(_encoder_features(model, gray), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="resnet does not fit the model's encoder"):
        UNetR50(SMOKE).load_encoder_weights(tmp_path / "resnet")
    with pytest.raises(InputError, match="found: no such file"):
        UNetR50(SMOKE).load_encoder_weights("cem500k.pth.tar")


def test_a_checkpoint_is_what_was_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNetR50(dataclasses.replace(TRAINED, freeze_encoder=True))
    overfit(model, disc_batch(), steps=2, lr=1e-2)
    model.eval().save_pretrained(tmp_path)
    loaded = UNetR50.from_pretrained(tmp_path)
    assert loaded.config == model.config
    image = torch.randn(1, 1, 50, 70)
    assert torch.equal(loaded.maps(image), model.maps(image))


def test_presets_say_what_is_frozen() -> None:
    assert {"quick", "official", "frozen", "paper", "smoke"} <= set(load_model("unet_r50").presets)
    frozen, official = MODEL.preset("frozen"), MODEL.preset("official")
    assert frozen.config == dataclasses.replace(official.config, freeze_encoder=True)  # type: ignore[type-var]
    assert frozen.recipe == official.recipe
    assert MODEL.preset("paper").recipe == paper_recipe()
