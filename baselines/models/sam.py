"""Segment Anything (Kirillov et al. 2023) on transformers, without training: masks for prompts, of no organelle.

micro-SAM (Archit et al. 2025) is the same architecture with other weights. ``baselines.sam.weights`` reads the files of
both projects, ``baselines.sam.predict`` predicts whole images with them, automatically or prompted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.masks import Mask
from baselines.model import Baseline, BaselineConfig, Batch, Model, Preset
from baselines.recipe import Recipe
from baselines.sam.grid import GridSettings, generate
from em_bench_eval.errors import InputError

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of red, green and blue in 0..255, as SAM was trained


@dataclass(frozen=True)
class SamBaselineConfig(BaselineConfig):
    """Architecture; the defaults are ViT-B. All images are brought to ``image_size`` on their longest side."""

    image_size: int = 1024
    patch_size: int = 16
    encoder_width: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    global_layers: tuple[int, ...] = (2, 5, 8, 11)  # that attend to the whole image; the others within windows
    window: int = 14  # patches
    width: int = 256  # of embeddings, prompts and mask decoder
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    mask_channels: int = 16  # of the mask prompt's embedding, which is loaded but not used here


@dataclass(frozen=True)
class Frame:
    """How an image of ``shape`` (y, x) lies in the network's square: top left, its longest side ``edge`` pixels."""

    shape: tuple[int, int]
    edge: int

    @property
    def resized(self) -> tuple[int, int]:
        """Size (y, x) of the image inside the square."""
        scale = self.edge / max(self.shape)
        return max(1, int(self.shape[0] * scale + 0.5)), max(1, int(self.shape[1] * scale + 0.5))

    def to_network(self, xy: Tensor) -> Tensor:
        """Map pixel positions (..., 2) as (x, y) into the square; the network adds half a pixel to the result."""
        (height, width), (new_height, new_width) = self.shape, self.resized
        return xy * torch.tensor([new_width / width, new_height / height], dtype=xy.dtype, device=xy.device)

    def upsample(self, logits: Tensor) -> Tensor:
        """Map mask logits (m, l, l) of the square to (m, y, x) of the image."""
        square = F.interpolate(logits[None].float(), (self.edge, self.edge), mode="bilinear", align_corners=False)
        inside = square[..., : self.resized[0], : self.resized[1]]
        if self.resized == self.shape:
            return inside[0]
        return F.interpolate(inside, self.shape, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class Embedded:
    """An image as the mask decoder sees it; made once, asked many times."""

    features: Tensor  # (1, width, image_size / patch_size, ...)
    frame: Frame


@dataclass(frozen=True)
class PromptBatch:
    """Prompts for ``n`` masks with as many points each; positions are pixels of the image, (x, y), from 0."""

    points: Tensor | None = None  # (n, k, 2)
    labels: Tensor | None = None  # (n, k): 1 inside, 0 outside of the object
    boxes: Tensor | None = None  # (n, 4): first and last column and row, (x0, y0, x1, y1)


class Sam(Baseline):
    """The baseline ``sam``."""

    name = "sam"
    config_class = SamBaselineConfig
    multiple = 1  # every tile is resized anyway
    output = "masks"
    config: SamBaselineConfig

    def __init__(self, config: SamBaselineConfig) -> None:
        super().__init__(config)
        self.grid = GridSettings()  # of ``masks``
        network: Any = _network(config)
        # transformers ties these two, and safetensors stores no tensor under two names
        shared = network.shared_image_embedding.positional_embedding
        network.prompt_encoder.shared_embedding.positional_embedding = nn.Parameter(shared.detach().clone())
        self.network: Any = network

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Embed (N, 1, H, W) normalised images: ``embedding`` (N, width, h, w)."""
        return {"embedding": torch.cat([self.embed(gray).features for gray in _gray(image)])}

    def loss(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Refuse: SAM is evaluated with published weights."""
        raise InputError(
            "sam is not trained by this project",
            expected="published weights of segment-anything or micro-SAM",
            remedy="convert them: em-bench sam --weights FILE.pth --convert FOLDER",
        )

    @torch.no_grad()
    def embed(self, gray: npt.NDArray[np.uint8]) -> Embedded:
        """Encode one ``(y, x)`` 8-bit image."""
        frame = Frame((gray.shape[0], gray.shape[1]), self.config.image_size)
        device = next(self.parameters()).device
        pixels = network_pixels(gray, frame).to(device)
        return Embedded(self.network.get_image_embeddings(pixels), frame)

    @torch.no_grad()
    def decode(self, embedded: Embedded, prompts: PromptBatch, *, several: bool) -> tuple[Tensor, Tensor]:
        """Answer prompts: mask logits (n, m, l, l) of the network's square and predicted IoU (n, m).

        ``m`` is 3 with ``several``, for prompts that may mean a whole, a part or a detail, else 1.
        """
        frame, features = embedded.frame, embedded.features

        def placed(positions: Tensor | None) -> Tensor | None:
            if positions is None:
                return None
            pairs = positions.to(features.device, torch.float32).reshape(*positions.shape[:-1], -1, 2)
            return frame.to_network(pairs).reshape(1, *positions.shape)

        labels = None if prompts.labels is None else prompts.labels.to(features.device)[None]
        answer = self.network(
            image_embeddings=features,
            input_points=placed(prompts.points),
            input_labels=labels,
            input_boxes=placed(prompts.boxes),
            multimask_output=several,
        )
        return answer.pred_masks[0], answer.iou_scores[0]

    def masks(self, image: Tensor) -> list[list[Mask]]:
        """Find masks in each of (N, 1, H, W) images by a grid of points (``self.grid``); they may overlap."""
        return [self.segment(gray, self.grid) for gray in _gray(image)]

    def segment(self, gray: npt.NDArray[np.uint8], grid: GridSettings) -> list[Mask]:
        """Segment one ``(y, x)`` 8-bit image automatically, as one network input; the best mask comes first."""
        embedded = self.embed(gray)

        def of_points(xy: Tensor) -> tuple[Tensor, Tensor]:
            labels = torch.ones(len(xy), 1, dtype=torch.int64)
            return self.decode(embedded, PromptBatch(xy[:, None], labels), several=True)

        return generate(of_points, embedded.frame.upsample, embedded.frame.shape, grid)


def to_gray(normalised: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Turn what the normalisation "percentile-1-99" gives into 8 bit: 1st and 99th percentile become 0 and 255."""
    return np.rint(np.clip((normalised.astype(np.float32) + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)


def network_pixels(gray: npt.NDArray[np.uint8], frame: Frame) -> Tensor:
    """Resize, repeat to three channels, standardise and pad with 0: (1, 3, edge, edge) float32."""
    from PIL import Image

    height, width = frame.resized
    resized = np.asarray(Image.fromarray(gray).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    colour = (torch.from_numpy(resized.copy())[None] - mean) / std
    return F.pad(colour, (0, frame.edge - width, 0, frame.edge - height))[None]


def _gray(image: Tensor) -> list[npt.NDArray[np.uint8]]:
    return [to_gray(plane) for plane in image[:, 0].float().cpu().numpy()]


def _network(config: SamBaselineConfig) -> nn.Module:
    import transformers as hf

    encoder = hf.SamVisionConfig(
        hidden_size=config.encoder_width,
        output_channels=config.width,
        num_hidden_layers=config.encoder_depth,
        num_attention_heads=config.encoder_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        window_size=config.window,
        global_attn_indexes=list(config.global_layers),
        num_pos_feats=config.width // 2,
    )
    prompts = hf.SamPromptEncoderConfig(
        hidden_size=config.width,
        image_size=config.image_size,
        patch_size=config.patch_size,
        mask_input_channels=config.mask_channels,
    )
    decoder = hf.SamMaskDecoderConfig(
        hidden_size=config.width,
        num_hidden_layers=config.decoder_depth,
        num_attention_heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp,
        iou_head_hidden_dim=config.width,
        layer_norm_eps=1e-5,  # segment-anything's; transformers' own default differs
    )
    network: nn.Module = hf.SamModel(
        hf.SamConfig(vision_config=encoder, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    return network.eval()


def _not_trained(config: SamBaselineConfig, about: str) -> Preset:
    return Preset(config, Recipe(steps=0, batch_size=1, crop=config.image_size, lr=0.0), about)


VIT_B = SamBaselineConfig()
VIT_L = SamBaselineConfig(encoder_width=1024, encoder_depth=24, encoder_heads=16, global_layers=(5, 11, 17, 23))
VIT_H = SamBaselineConfig(encoder_width=1280, encoder_depth=32, encoder_heads=16, global_layers=(7, 15, 23, 31))
SMOKE = SamBaselineConfig(
    image_size=64,
    patch_size=8,
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=2,
    global_layers=(1,),
    window=4,
    width=16,
    decoder_heads=2,
    decoder_mlp=32,
    mask_channels=4,
)

MODEL = Model(
    build=Sam,
    about="Segment Anything and micro-SAM with published weights, automatic or prompted; see em-bench sam",
    trainable=False,
    presets={
        "vit_b": _not_trained(VIT_B, "ViT-B, 93.7 M parameters; also micro-SAM's vit_b_em_organelles"),
        "vit_l": _not_trained(VIT_L, "ViT-L, 312 M parameters; also micro-SAM's vit_l_em_organelles"),
        "vit_h": _not_trained(VIT_H, "ViT-H, 641 M parameters"),
        "smoke": _not_trained(SMOKE, "random weights, to see that everything runs; finds nothing"),
    },
)
