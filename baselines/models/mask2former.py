"""Mask2Former (Cheng et al. 2022) on transformers, for instances of each organelle.

The architecture is transformers' own (any encoder that it can use as a backbone; only Swin is one that it supports
officially), with one gray input channel. Loss and decoding are ours: see ``query_loss`` and ``query_decode``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.losses import IGNORE
from baselines.masks import Mask
from baselines.model import Baseline, Batch, Model, Preset
from baselines.networks.mask2former_network import Mask2FormerConfig, transformers_network
from baselines.networks.query_budget import query_budget
from baselines.networks.query_decode import QueryRule, decode_queries
from baselines.networks.query_loss import QueryLossWeights, query_loss, query_targets
from baselines.recipe import Recipe, paper_recipe
from em_bench_eval.schema import Organelle


class Mask2Former(Baseline):
    """The baseline ``mask2former``.

    Heads ``class`` (N, queries, 6; the last is "no object") and ``mask`` (N, queries, h, w) logits of the last decoder
    layer, and while training ``class_<k>``, ``mask_<k>`` of the layers before it.
    """

    name = "mask2former"
    sees_its_size = True
    config_class = Mask2FormerConfig
    output = "masks"
    config: Mask2FormerConfig

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.network = transformers_network(config)
        del self.network.criterion  # the loss is ours
        self.loss_weights = QueryLossWeights(no_object=config.no_object_weight, points=config.points)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 1, H, W) of any size to the logits of the queries, at a quarter of the padded image's resolution.

        The image is padded at the right and bottom to a multiple of 32 (times the stride) by its edge pixels, so that
        every pixel of the mask logits covers the same number of pixels of the image.
        """
        padded = F.pad(image, self._beyond(image), mode="replicate")
        network_input = F.avg_pool2d(padded, self.config.stride)
        output = self.network.model(pixel_values=network_input, output_hidden_states=True, return_dict=True)
        states = output.transformer_decoder_intermediate_states
        first = 0 if self.training else len(states) - 1
        heads = {}
        for layer in range(first, len(states)):
            suffix = "" if layer == len(states) - 1 else f"_{layer}"
            heads["class" + suffix] = self.network.class_predictor(states[layer].transpose(0, 1))
            heads["mask" + suffix] = output.masks_queries_logits[layer]
        return heads

    def loss(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Classification, mask and Dice losses of every decoder layer; see ``query_loss``."""
        beyond = self._beyond(batch["semantic"])
        targets = query_targets(
            F.pad(batch["semantic"], beyond, value=IGNORE),
            F.pad(batch["instances"], beyond),
            pieces=self.config.target_ids == "slice",
            min_pixels=self.config.min_target_pixels,
        )
        return query_loss(
            [logits for name, logits in heads.items() if name.startswith("class")],
            [logits for name, logits in heads.items() if name.startswith("mask")],
            targets,
            batch["annotated"],
            self.loss_weights,
        )

    def _beyond(self, planes: Tensor) -> tuple[int, int, int, int]:
        """Padding (left, right, top, bottom) of (..., H, W) to what all strides of the network divide."""
        multiple = self.multiple * self.config.stride
        return 0, -planes.shape[-1] % multiple, 0, -planes.shape[-2] % multiple

    @torch.no_grad()
    def masks(self, image: Tensor) -> list[list[Mask]]:
        """Instances of each of (N, 1, H, W) images, at their resolution and disjoint; only trained organelles."""
        heads = self(image)
        config = self.config
        organelles = [Organelle(name) if name in config.trained_organelles else None for name in config.organelles]
        return [
            decode_queries(
                classes,
                masks,
                scale=4 * config.stride,
                shape=(int(image.shape[-2]), int(image.shape[-1])),
                organelles=organelles,
                pixel_size_nm=(config.pixel_size_nm, config.pixel_size_nm),
                rule=QueryRule(min_score=config.min_score, pieces=config.target_ids == "slice"),
            )
            for classes, masks in zip(heads["class"], heads["mask"], strict=True)
        ]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Backbone at a tenth of the learning rate; no weight decay on norms, embeddings and relative positions."""
        backbone = {id(p) for p in self.network.model.pixel_level_module.encoder.parameters()}
        undecayed = {
            id(p)
            for module in self.modules()
            for name, p in module.named_parameters(recurse=False)
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.Embedding)) or name in UNDECAYED
        }
        groups = []
        for is_backbone, factor in ((True, self.config.backbone_lr_factor), (False, 1.0)):
            for is_undecayed in (False, True):
                chosen = [
                    p
                    for p in self.parameters()
                    if p.requires_grad and (id(p) in backbone) == is_backbone and (id(p) in undecayed) == is_undecayed
                ]
                group: dict[str, Any] = {"params": chosen, "lr_factor": factor}
                groups.append(group | {"weight_decay": 0.0} if is_undecayed else group)
        return [group for group in groups if group["params"]]

    def data_notes(self, rows: Any, crop: int = 512) -> list[str]:
        """Warn if crops of ``crop`` pixels hold more instances than queries can find, counted from bounding boxes.

        With ``target_ids="slice"`` there are more, which only the label images tell: ``query_budget.piece_budget``.
        """
        warning = query_budget(rows, crop, self.config.pixel_size_nm).warning(self.config.queries)
        return [warning] if warning else []

    def load_encoder_weights(self, path: str | os.PathLike[str]) -> str:
        """Start from a local folder with a transformers Mask2Former (safetensors); see ``transfer_mask2former``."""
        from baselines.networks.transfer_mask2former import load_into

        return load_into(self.network, Path(path))


UNDECAYED = {"level_embed", "relative_position_bias_table"}


SMALL = Mask2FormerConfig(
    embed=48,
    depths=(2, 2, 2, 2),
    drop_path=0.1,
    hidden=128,
    attention_heads=4,
    encoder_layers=3,
    encoder_width=512,
    decoder_layers=3,
    decoder_width=512,
)
TINY = Mask2FormerConfig(
    embed=16,
    depths=(1, 1, 1, 1),
    heads=(1, 2, 4, 8),
    window=4,
    drop_path=0.0,
    hidden=32,
    attention_heads=4,
    encoder_layers=1,
    encoder_width=32,
    decoder_layers=1,
    decoder_width=32,
    queries=10,
    points=256,
    min_target_pixels=4,
    backbone_lr_factor=1.0,
)
# what learns fastest on one CPU core, tried on lucchipp: a small ResNet, which needs less data than Swin to find out
# that neighbouring pixels belong together, at 16 nm, and connected pieces as targets
QUICK = Mask2FormerConfig(
    target_ids="slice",
    stride=2,
    backbone="resnet",
    embed=32,
    stem=32,
    depths=(1, 1, 1, 1),
    hidden=64,
    attention_heads=4,
    encoder_layers=1,
    encoder_width=128,
    decoder_layers=2,
    decoder_width=128,
    queries=20,
    points=1024,
    backbone_lr_factor=1.0,
)

MODEL = Model(
    build=Mask2Former,
    about="Mask2Former (transformers, Swin), instances by queries",
    presets={
        "quick": Preset(
            QUICK,
            Recipe(steps=1000, batch_size=4, crop=256, lr=3e-3, warmup_steps=20, ema_decay=0.99),
            "about three minutes on one CPU core: a small ResNet at 16 nm",
        ),
        "standard": Preset(
            SMALL,
            Recipe(
                steps=5000,
                batch_size=32,
                crop=256,
                lr=3e-4,
                warmup_steps=100,
                weight_decay=0.05,
                clip=0.1,
            ),
            "6.8 M parameters, from scratch; written for an hour or less on one GPU",
        ),
        "official": Preset(
            Mask2FormerConfig(),
            Recipe(
                steps=90_000,
                batch_size=16,
                crop=512,
                lr=1e-4,
                schedule="poly",
                weight_decay=0.05,
                clip=0.01,
                ema_decay=None,
            ),
            "Swin-T and the authors' recipe for Cityscapes instances: AdamW 1e-4, poly, backbone x 0.1",
        ),
        "paper": Preset(
            Mask2FormerConfig(),
            paper_recipe(),
            "Adam, lr 0.005, 9000 iterations, batch 64, as the paper says; 50 times the authors' rate, so expect it "
            "to diverge",
        ),
        "smoke": Preset(
            TINY,
            Recipe(steps=4, batch_size=2, crop=64, lr=1e-3, ema_decay=0.9),
            "seconds on a CPU, to see that everything runs; learns nothing",
        ),
    },
)
