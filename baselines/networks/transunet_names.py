"""Names of R50+ViT tensors in files of others, and what they are called in ``baselines.models.transunet.Encoder``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

POSITIONS = "embedding.positions"

# (pattern of a name in the file, name in baselines.models.transunet.Encoder); 0-based stages, units and blocks
Rules = tuple[tuple[str, str], ...]
_KIND = {"scale": "weight", "kernel": "weight", "bias": "bias", "weight": "weight"}
GOOGLE: Rules = (
    (r"conv_root/(kernel)", "trunk.root.{0}"),
    (r"gn_root/(scale|bias)", "trunk.root_norm.{0}"),
    (r"block(\d+)/unit0?(\d+)/conv(\d)/(kernel)", "trunk.stages.{0-}.{1-}.conv{2}.{3}"),
    (r"block(\d+)/unit0?(\d+)/gn(\d)/(scale|bias)", "trunk.stages.{0-}.{1-}.norm{2}.{3}"),
    (r"block(\d+)/unit0?(\d+)/conv_proj/(kernel)", "trunk.stages.{0-}.{1-}.project.{2}"),
    (r"block(\d+)/unit0?(\d+)/gn_proj/(scale|bias)", "trunk.stages.{0-}.{1-}.project_norm.{2}"),
    (r"embedding/(kernel|bias)", "embedding.patch.{0}"),
    (r"Transformer/posembed_input/pos_embedding", POSITIONS),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_0/(scale|bias)", "vit.blocks.{0}.norm1.{1}"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_2/(scale|bias)", "vit.blocks.{0}.norm2.{1}"),
    (
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_1/(query|key|value|out)/(kernel|bias)",
        "vit.blocks.{0}.attention.{1}.{2}",
    ),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_0/(kernel|bias)", "vit.blocks.{0}.fc1.{1}"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_1/(kernel|bias)", "vit.blocks.{0}.fc2.{1}"),
    (r"Transformer/encoder_norm/(scale|bias)", "vit.norm.{0}"),
)
TIMM: Rules = (
    (r"patch_embed\.backbone\.stem\.conv\.(weight)", "trunk.root.{0}"),
    (r"patch_embed\.backbone\.stem\.norm\.(weight|bias)", "trunk.root_norm.{0}"),
    (
        r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(conv\d|norm\d)\.(weight|bias)",
        "trunk.stages.{0}.{1}.{2}.{3}",
    ),
    (
        r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.downsample\.conv\.(weight)",
        "trunk.stages.{0}.{1}.project.{2}",
    ),
    (
        r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.downsample\.norm\.(weight|bias)",
        "trunk.stages.{0}.{1}.project_norm.{2}",
    ),
    (r"patch_embed\.proj\.(weight|bias)", "embedding.patch.{0}"),
    (r"pos_embed", POSITIONS),
    (r"blocks\.(\d+)\.(norm\d)\.(weight|bias)", "vit.blocks.{0}.{1}.{2}"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", "vit.blocks.{0}.attention.qkv.{1}"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", "vit.blocks.{0}.attention.out.{1}"),
    (r"blocks\.(\d+)\.mlp\.(fc\d)\.(weight|bias)", "vit.blocks.{0}.{1}.{2}"),
    (r"norm\.(weight|bias)", "vit.norm.{0}"),
)
_EMBEDDINGS = r"transformer\.embeddings\."
_UNIT = _EMBEDDINGS + r"hybrid_model\.body\.block(\d+)\.unit(\d+)\."
TRANSUNET: Rules = (
    (_EMBEDDINGS + r"hybrid_model\.root\.conv\.(weight)", "trunk.root.{0}"),
    (_EMBEDDINGS + r"hybrid_model\.root\.gn\.(weight|bias)", "trunk.root_norm.{0}"),
    (_UNIT + r"conv(\d)\.(weight)", "trunk.stages.{0-}.{1-}.conv{2}.{3}"),
    (_UNIT + r"gn(\d)\.(weight|bias)", "trunk.stages.{0-}.{1-}.norm{2}.{3}"),
    (_UNIT + r"downsample\.(weight)", "trunk.stages.{0-}.{1-}.project.{2}"),
    (_UNIT + r"gn_proj\.(weight|bias)", "trunk.stages.{0-}.{1-}.project_norm.{2}"),
    (_EMBEDDINGS + r"patch_embeddings\.(weight|bias)", "embedding.patch.{0}"),
    (_EMBEDDINGS + r"position_embeddings", POSITIONS),
    (r"transformer\.encoder\.layer\.(\d+)\.attention_norm\.(weight|bias)", "vit.blocks.{0}.norm1.{1}"),
    (r"transformer\.encoder\.layer\.(\d+)\.ffn_norm\.(weight|bias)", "vit.blocks.{0}.norm2.{1}"),
    (
        r"transformer\.encoder\.layer\.(\d+)\.attn\.(query|key|value|out)\.(weight|bias)",
        "vit.blocks.{0}.attention.{1}.{2}",
    ),
    (r"transformer\.encoder\.layer\.(\d+)\.ffn\.(fc\d)\.(weight|bias)", "vit.blocks.{0}.{1}.{2}"),
    (r"transformer\.encoder\.encoder_norm\.(weight|bias)", "vit.norm.{0}"),
)
OURS: Rules = ((r"encoder\.(.+)", "{0}"),)
STATE_DICTS: Mapping[str, Rules] = {"timm": TIMM, "TransUNet or RETINA": TRANSUNET, "em-bench": OURS}


def renamed(state: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """Names in ``Encoder`` for those names that a rule knows; ``{1-}`` in a rule is the second group minus one."""
    compiled = [(re.compile(pattern), _filled(template)) for pattern, template in rules]
    renamed = {}
    for name, value in state.items():
        for pattern, fill in compiled:
            if match := pattern.fullmatch(name):
                renamed[fill(match)] = value
                break
    return renamed


def _filled(template: str) -> Callable[[re.Match[str]], str]:
    def part(match: re.Match[str], slot: re.Match[str]) -> str:
        text = match.group(int(slot[1]) + 1)
        return str(int(text) - 1) if slot[2] else _KIND.get(text, text)

    return lambda match: re.sub(r"\{(\d)(-?)\}", lambda slot: part(match, slot), template)
