"""How our configuration of Mask2Former becomes transformers' network; without torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from baselines.model import BaselineConfig
from em_bench_eval.errors import InputError, unknown_name

STAGES = ("stage1", "stage2", "stage3", "stage4")


@dataclass(frozen=True)
class Mask2FormerConfig(BaselineConfig):
    """Architecture, targets and decoding; the defaults are the published Swin-T model.

    ``target_ids``: what one query has to find. "volume": all pieces of an id that lie in the crop, however far apart
    (an ER network is one id with many pieces in a slice); "slice": each connected piece of the crop.
    ``hidden``, of which 32 must be a divisor, is the width of pixel decoder, mask features and queries alike.
    """

    target_ids: Literal["volume", "slice"] = "volume"
    min_target_pixels: int = 16  # smaller instances are ignored: a pixel of the mask logits covers as many
    stride: int = 1  # 2 computes at 16 nm from images of 8 nm, for a quarter of the time
    backbone: str = "swin"  # transformers' model type
    embed: int = 96  # channels of the first stage, doubled in each of the next
    stem: int = 64  # channels before the first stage (resnet)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.3
    hidden: int = 256
    attention_heads: int = 8  # of pixel decoder and queries
    encoder_layers: int = 6
    encoder_width: int = 1024  # of the feed-forward layers
    decoder_layers: int = 9
    decoder_width: int = 2048
    queries: int = 100
    points: int = 12544  # per mask in the loss
    no_object_weight: float = 0.1
    min_score: float = 0.5
    backbone_lr_factor: float = 0.1


def _swin(config: Mask2FormerConfig) -> dict[str, Any]:
    return {
        "embed_dim": config.embed,
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "window_size": config.window,
        "drop_path_rate": config.drop_path,
    }


def _pyramid(config: Mask2FormerConfig) -> dict[str, Any]:
    return {"hidden_sizes": [config.embed * 2**stage for stage in range(4)], "depths": list(config.depths)}


# transformers' model type -> how our configuration sizes it; all have strides 4, 8, 16 and 32
BACKBONES: Mapping[str, Callable[[Mask2FormerConfig], dict[str, Any]]] = {
    "swin": _swin,
    "swinv2": _swin,
    "convnext": lambda config: {**_pyramid(config), "drop_path_rate": config.drop_path},
    "resnet": lambda config: {**_pyramid(config), "embedding_size": config.stem},
}


def transformers_config(config: Mask2FormerConfig) -> Any:
    """Translate our configuration into transformers' Mask2FormerConfig."""
    from transformers import AutoConfig
    from transformers import Mask2FormerConfig as TransformersConfig

    if config.backbone not in BACKBONES:
        raise unknown_name("backbone of mask2former", config.backbone, BACKBONES)
    backbone = AutoConfig.for_model(
        config.backbone, num_channels=1, out_features=list(STAGES), **BACKBONES[config.backbone](config)
    )
    return TransformersConfig(
        backbone_config=backbone,
        num_labels=len(config.organelles),
        feature_size=config.hidden,
        mask_feature_size=config.hidden,
        hidden_dim=config.hidden,
        num_attention_heads=config.attention_heads,
        encoder_layers=config.encoder_layers,
        encoder_feedforward_dim=config.encoder_width,
        decoder_layers=config.decoder_layers + 1,  # transformers counts the queries' own prediction
        dim_feedforward=config.decoder_width,
        num_queries=config.queries,
    )


def transformers_network(config: Mask2FormerConfig) -> Any:
    """Build transformers' Mask2FormerForUniversalSegmentation, randomly initialised.

    Raises ``InputError`` for a width that the network cannot have, an unknown backbone, and where a torchvision that
    does not fit torch breaks the import of transformers' models (with a RuntimeError).
    """
    if config.hidden % 32:
        raise InputError(
            "the width of Mask2Former does not fit its group normalisation",
            found=f"hidden={config.hidden}",
            expected="a multiple of 32",
        )
    try:
        from transformers import Mask2FormerForUniversalSegmentation
    except RuntimeError as error:
        raise InputError(
            "transformers cannot be imported",
            found=str(error).strip().splitlines()[-1],
            expected="torchvision built for this torch, or none: it is not needed here",
            remedy="pip uninstall torchvision",
        ) from error
    return Mask2FormerForUniversalSegmentation(transformers_config(config))
