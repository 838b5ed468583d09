"""Segment Anything by its own package: its network, its predictor, its mask generator, behind the core's ``Sam``.

Only with the extra ``sam``, in an environment of its own; ``baselines.sam.engines`` imports this file. The package
has the tensors that ``baselines.sam.weights`` converted, under their own names again, so both run the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from baselines.masks import Mask, cut_to_box
from baselines.models.sam import MEAN, STD, Embedded, Frame, PromptBatch, Sam, SamBaselineConfig
from baselines.sam.grid import GridSettings, clipped
from baselines.sam.weights import new_name
from em_bench_eval.errors import InputError

Gray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PackageFrame(Frame):
    """A frame that leaves resizing to the package's network."""

    network: Any

    def upsample(self, logits: Tensor) -> Tensor:
        """Map mask logits (m, l, l) of the square to (m, y, x) of the image."""
        whole: Tensor = self.network.postprocess_masks(logits[:, None], self.resized, self.shape)
        return whole[:, 0]


class SegmentAnything(Sam):
    """``segment_anything.SamPredictor`` and ``SamAutomaticMaskGenerator`` with the weights of a core ``Sam``."""

    engine: ClassVar[str] = "segment-anything"
    takes_prompts: ClassVar[bool] = True

    def __init__(self, core: Sam) -> None:
        super(Sam, self).__init__(core.config)  # the core's network is not built a second time
        self.grid = GridSettings()
        self.training_info = dict(core.training_info)
        self.network = package_network(core.config)
        weights = core.network.state_dict()
        self.network.load_state_dict({name: weights[new_name(name)] for name in self.network.state_dict()})
        self.predictor: Any = import_module("segment_anything").SamPredictor(self.network)

    @torch.no_grad()
    def embed(self, gray: Gray) -> Embedded:
        """Encode one ``(y, x)`` 8-bit image with the package's own preprocessing."""
        self.predictor.set_image(rgb(gray))
        frame = PackageFrame((gray.shape[0], gray.shape[1]), self.config.image_size, self.network)
        return Embedded(self.predictor.get_image_embedding(), frame)

    @torch.no_grad()
    def decode(self, embedded: Embedded, prompts: PromptBatch, *, several: bool) -> tuple[Tensor, Tensor]:
        """Answer prompts: mask logits (n, m, l, l) of the network's square and predicted IoU (n, m)."""
        predictor, shape = self.predictor, embedded.frame.shape
        predictor.features, predictor.is_image_set = embedded.features, True
        predictor.original_size, predictor.input_size = shape, embedded.frame.resized
        points, labels, boxes = (
            None if part is None else part.to(embedded.features.device)
            for part in (prompts.points, prompts.labels, prompts.boxes)
        )
        _, predicted, logits = predictor.predict_torch(
            None if points is None else predictor.transform.apply_coords_torch(points.float(), shape),
            labels,
            None if boxes is None else predictor.transform.apply_boxes_torch(boxes.float(), shape),
            multimask_output=several,
            return_logits=True,
        )
        return logits, predicted

    def segment(self, gray: Gray, grid: GridSettings) -> list[Mask]:
        """Segment one ``(y, x)`` 8-bit image as one network input; the masks may overlap, the best comes first.

        ``min_area`` drops small masks after the package's non-maximum suppression; its own ``min_mask_region_area``
        means something else (holes and islands) and needs OpenCV.
        """
        generator = import_module("segment_anything").SamAutomaticMaskGenerator(self.network, **arguments(grid))
        return masks_of(generator.generate(rgb(gray)), grid.min_area)

    def recorded(self) -> dict[str, Any]:
        """What ``prediction.json`` says of the engine's own settings."""
        return {}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Refuse: checkpoints are the core's."""
        raise InputError(
            f"weights are not saved by the engine {self.engine}", remedy="convert them without --engine: --convert"
        )


def package_network(config: SamBaselineConfig) -> nn.Module:
    """Build ``segment_anything.modeling.Sam``; for published architectures what its ``sam_model_registry`` builds."""
    modeling = import_module("segment_anything.modeling")
    tokens = config.image_size // config.patch_size
    network: nn.Module = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            depth=config.encoder_depth,
            embed_dim=config.encoder_width,
            img_size=config.image_size,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=config.encoder_heads,
            patch_size=config.patch_size,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=config.global_layers,
            window_size=config.window,
            out_chans=config.width,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=config.width,
            image_embedding_size=(tokens, tokens),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_channels,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.width,
                mlp_dim=config.decoder_mlp,
                num_heads=config.decoder_heads,
            ),
            transformer_dim=config.width,
            iou_head_depth=3,
            iou_head_hidden_dim=config.width,
        ),
        pixel_mean=list(MEAN),
        pixel_std=list(STD),
    )
    return network.eval()


def arguments(grid: GridSettings) -> dict[str, Any]:
    """Return the settings of the automatic mode by segment-anything's names."""
    return {
        "points_per_side": grid.points_per_side,
        "points_per_batch": grid.points_per_batch,
        "pred_iou_thresh": grid.min_predicted_iou,
        "stability_score_thresh": grid.min_stability,
        "stability_score_offset": grid.stability_offset,
        "box_nms_thresh": grid.max_box_iou,
    }


def masks_of(records: Iterable[Mapping[str, Any]], min_area: int) -> list[Mask]:
    """Turn the records of a mask generator into masks of no organelle; empty and small ones are dropped."""
    found = []
    for record in records:
        mask = cut_to_box(np.asarray(record["segmentation"], bool), None, record["predicted_iou"])
        if mask is not None and mask.area >= min_area:
            found.append(clipped(mask))
    return found


def rgb(gray: Gray) -> Gray:
    """Repeat ``(y, x)`` to three channels, the last axis."""
    return np.repeat(gray[..., None], 3, axis=2)
