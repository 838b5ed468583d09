"""UperNet: the size that others publish, the weights that transformers saves, batches of one."""

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

from baselines.model import count_parameters, load_model
from baselines.models.upernet import BACKBONES, MODEL, UperNet, UperNetConfig
from baselines.recipe import paper_recipe
from em_bench_eval.errors import InputError

torch.set_num_threads(1)
SMOKE = MODEL.preset("smoke").config
TRAINED = dataclasses.replace(SMOKE, trained_organelles=("mito", "nucleus"))
TINY = {
    "convnext": UperNetConfig(depths=(1, 1, 1, 1), widths=(8, 16, 16, 24), head_width=8, distance_organelles=()),
    "swin": UperNetConfig(
        backbone="swin",
        depths=(1, 1, 1, 1),
        widths=(8, 16, 32, 64),
        attention_heads=(1, 2, 2, 4),
        window=4,
        head_width=8,
        distance_organelles=(),
    ),
    "resnet": UperNetConfig(
        backbone="resnet",
        depths=(2, 1, 1, 1),
        widths=(32, 64, 128, 256),
        stem_width=8,
        head_width=8,
        distance_organelles=(),
    ),
}
# millions of parameters in mmsegmentation's tables: 150 classes, colours, an auxiliary head
PUBLISHED = {"official": 60.24, "swin": 59.94, "resnet": 66.50}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameter_count_is_the_published_one_less_colours_and_auxiliary_head(preset: str) -> None:
    config: Any = MODEL.preset(preset).config
    with torch.device("meta"):
        model = UperNet(config)
    ours = count_parameters(model)
    stem, kernel = (64, 7) if preset == "resnet" else (96, 4)
    colours = 2 * stem * kernel**2
    classifier = (150 - 8) * (512 + 1)
    auxiliary = config.widths[2] * 256 * 9 + 2 * 256 + 150 * (256 + 1)
    last_norm = 2 * 768 if preset == "swin" else 0  # of the classifier, unused
    assert round((ours + colours + classifier + auxiliary + last_norm) / 1e6, 2) == PUBLISHED[preset]


@pytest.mark.parametrize("backbone", BACKBONES)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
@settings(max_examples=5, deadline=None)
def test_any_image_size_keeps_its_size(backbone: str, height: int, width: int) -> None:
    model = UperNet(TINY[backbone]).eval()
    with torch.no_grad():
        heads = model(torch.randn(1, 1, height, width))
    assert heads["semantic"].shape == (1, 6, height, width)


@pytest.mark.parametrize("groups", [None, 4])
def test_a_batch_of_one_trains(groups: int | None) -> None:
    """The pyramid's coarsest level is then one value per channel."""
    torch.manual_seed(0)
    model = UperNet(dataclasses.replace(TRAINED, norm_groups=groups))
    batch: Any = {name: tensor[:1] for name, tensor in disc_batch().items()}
    history = overfit(model, batch, steps=3, lr=1e-3)
    assert history[-1] < history[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_one_value_per_channel_is_normalised_by_the_running_statistics() -> None:
    model = UperNet(TINY["convnext"]).train()
    norm: Any = model.decode_head.psp_modules.blocks[0].layers[1].batch_norm
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    single, pair = torch.full((1, 8, 1, 1), 6.0), torch.full((2, 8, 1, 1), 6.0)
    torch.testing.assert_close(norm(single), torch.full((1, 8, 1, 1), 2.0), rtol=1e-4, atol=0)
    assert float(norm.running_mean[0]) == 2.0
    torch.testing.assert_close(norm(pair), torch.zeros(2, 8, 1, 1), rtol=0, atol=1e-3)
    assert float(norm.running_mean[0]) == pytest.approx(2.4)


def test_it_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model, batch = UperNet(TRAINED), disc_batch()
    history = overfit(model, batch, steps=60, lr=MODEL.preset("smoke").recipe.lr)
    assert history[-1] < 0.35 * history[0]
    assert mito_dice(model, batch) > 0.9


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_checkpoint_is_what_was_trained(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UperNet(dataclasses.replace(TINY[backbone], trained_organelles=("mito",)))
    overfit(model, disc_batch(), steps=2, lr=1e-2)
    assert all(p.grad is not None for p in model.parameters())  # or training on several GPUs would wait for them
    model.eval().save_pretrained(tmp_path)
    loaded = UperNet.from_pretrained(tmp_path)
    assert loaded.config == model.config
    image = torch.randn(1, 1, 50, 70)
    assert torch.equal(loaded.maps(image), model.maps(image))


def _transformers_config(config: UperNetConfig, **options: Any) -> Any:
    import transformers as tf

    sizes: dict[str, dict[str, Any]] = {
        "convnext": {"hidden_sizes": list(config.widths)},
        "swin": {"embed_dim": config.widths[0], "num_heads": list(config.attention_heads), "window_size": 4},
        "resnet": {"hidden_sizes": list(config.widths), "embedding_size": config.stem_width},
    }
    build = {"convnext": tf.ConvNextConfig, "swin": tf.SwinConfig, "resnet": tf.ResNetConfig}[config.backbone]
    return build(depths=list(config.depths), **sizes[config.backbone], **options)


def _randomised(model: Any) -> Any:
    """Give every weight and statistic a value of its own: initial ones are alike."""
    torch.manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(0.0, 0.2)
    return model.eval()


def _upernet_of_transformers(config: UperNetConfig, colours: int) -> Any:
    from transformers import UperNetConfig as Config
    from transformers import UperNetForSemanticSegmentation

    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    backbone = _transformers_config(config, num_channels=colours, out_features=stages)
    return _randomised(
        UperNetForSemanticSegmentation(
            Config(backbone_config=backbone, hidden_size=8, num_labels=4, use_auxiliary_head=False)
        )
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_upernet_of_transformers_is_taken_over_with_its_head(backbone: str, tmp_path: Path) -> None:
    theirs = _upernet_of_transformers(TINY[backbone], colours=3)
    theirs.save_pretrained(tmp_path / "upernet")
    model = UperNet(TINY[backbone]).eval()
    head = sum("num_batches" not in name for name in model.decode_head.state_dict())
    about = model.load_encoder_weights(tmp_path / "upernet")
    assert about.startswith(f"upernet (UperNet of transformers on {backbone}), ")
    assert about.endswith(f", {head} of {head} of the head")
    theirs.decode_head.classifier = torch.nn.Identity()
    gray = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        expected = theirs.decode_head(theirs.backbone(gray.expand(1, 3, 64, 96)).feature_maps)
        assert expected.std() > 0
        torch.testing.assert_close(model.features(gray), expected, rtol=1e-3, atol=1e-4)


def test_a_head_of_other_shapes_or_normalisation_stays_random(tmp_path: Path) -> None:
    theirs = _upernet_of_transformers(TINY["convnext"], colours=1)
    theirs.save_pretrained(tmp_path)
    convolutions = 4 + 1 + 3 + 3 + 1  # pyramid, bottleneck, lateral, pyramid's own, last
    grouped = UperNet(dataclasses.replace(TINY["convnext"], norm_groups=4))
    assert grouped.load_encoder_weights(tmp_path).endswith(f"{convolutions} of {convolutions} of the head")
    wider = UperNet(dataclasses.replace(TINY["convnext"], head_width=16))
    assert " 0 of " in wider.load_encoder_weights(tmp_path)
    name = "embeddings.patch_embeddings.weight"
    assert torch.equal(wider.backbone.state_dict()[name], theirs.backbone.state_dict()[name])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_classifier_of_transformers_is_taken_over(backbone: str, tmp_path: Path) -> None:
    import transformers as tf

    build = {
        "convnext": tf.ConvNextForImageClassification,
        "swin": tf.SwinForImageClassification,
        "resnet": tf.ResNetForImageClassification,
    }[backbone]
    classifier = _randomised(build(_transformers_config(TINY[backbone])))
    classifier.save_pretrained(tmp_path / "classifier")
    model = UperNet(TINY[backbone]).eval()
    about = model.load_encoder_weights(tmp_path / "classifier")
    assert about.startswith(f"classifier ({backbone} of transformers), ")
    assert " 0 of " in about
    body = getattr(classifier, backbone)
    gray = torch.randn(1, 1, 128, 128)  # transformers' Swin, without the backbone's padding, takes whole windows only
    with torch.no_grad():
        expected = body(gray.expand(1, 3, 128, 128), output_hidden_states=True)
        found = model.backbone(gray, output_hidden_states=True).hidden_states[-1]
    maps = expected.reshaped_hidden_states if backbone == "swin" else expected.hidden_states
    torch.testing.assert_close(found, maps[-1], rtol=1e-3, atol=1e-4)


def test_cem500k_weights_start_a_resnet(tmp_path: Path) -> None:
    twin = random_twin(1, width=8, depths=(2, 1, 1, 1))
    path = tmp_path / "cem500k.pth.tar"
    torch.save({"state_dict": {f"module.encoder_q.{n}": t for n, t in twin.state_dict().items()}}, path)
    model = UperNet(TINY["resnet"]).eval()
    assert "query encoder of MoCo" in model.load_encoder_weights(path)
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for found, expected in zip(model.backbone(image).feature_maps, twin(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(InputError, match="weights of a convnext are not read from a file"):
        UperNet(TINY["convnext"]).load_encoder_weights(path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    _upernet_of_transformers(TINY["convnext"], colours=1).save_pretrained(tmp_path / "convnext")
    with pytest.raises(InputError, match=r"another architecture\n  found: convnext\n  expected: resnet"):
        UperNet(TINY["resnet"]).load_encoder_weights(tmp_path / "convnext")
    with pytest.raises(InputError, match=r"convnext does not fit the model's encoder"):
        UperNet(dataclasses.replace(TINY["convnext"], widths=(8, 16, 16, 32))).load_encoder_weights(
            tmp_path / "convnext"
        )
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "absent", "nobody/nothing"):
        with pytest.raises(InputError, match="there are no weights"):
            UperNet(TINY["convnext"]).load_encoder_weights(source)


def test_unusable_settings_say_why() -> None:
    with pytest.raises(InputError, match="did you mean 'swin'"):
        UperNet(dataclasses.replace(TINY["swin"], backbone="swinn"))
    with pytest.raises(InputError, match="doubles its channels"):
        UperNet(dataclasses.replace(TINY["swin"], widths=(8, 16, 32, 48)))


def test_presets_are_complete() -> None:
    assert {"quick", "official", "swin", "resnet", "paper", "smoke"} <= set(load_model("upernet").presets)
    assert MODEL.preset("paper").recipe == paper_recipe()
