"""Checkpoints in transformers' own layout, for models whose architecture is transformers' own.

``AutoModelForUniversalSegmentation.from_pretrained(REPOSITORY, subfolder="transformers")`` then gives the same outputs
without this project. What it does not bring is ours: normalisation, padding, tiling, decoding to instances.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baselines.model import Baseline

SUBFOLDER = "transformers"


def _mask2former(model: Any) -> Any:
    """The whole network; its loss, which we do not use, has a buffer that transformers expects in the file."""
    from transformers import Mask2FormerForUniversalSegmentation

    exported = Mask2FormerForUniversalSegmentation(model.network.config)
    _load(exported, model.network.state_dict(), absent=("criterion.",))
    return exported


def _upernet(model: Any) -> Any:
    """Backbone and head, with the organelles' channels of our last convolution; group normalisation has no equal."""
    if model.config.norm_groups is not None:
        return None
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(
        backbone_config=model.backbone.config,
        hidden_size=model.config.head_width,
        pool_scales=list(model.config.pool_scales),
        num_labels=model.config.groups["semantic"],
        use_auxiliary_head=False,
    )
    exported = UperNetForSemanticSegmentation(config)
    weights = {
        name: tensor for name, tensor in model.state_dict().items() if name.startswith(("backbone.", "decode_head."))
    }
    classes = config.num_labels
    weights["decode_head.classifier.weight"] = model.head.weight[:classes]
    weights["decode_head.classifier.bias"] = model.head.bias[:classes]
    # Swin's last norm is the classifier's: not ours, and without a part in what the backbone gives
    _load(exported, weights, absent=("backbone.layernorm.", "backbone.swin.layernorm."))
    return exported


def _sam(model: Any) -> Any:
    from transformers import SamModel

    exported = SamModel(model.network.config)
    _load(exported, model.network.state_dict(), absent=())
    return exported


EXPORTERS: dict[str, Callable[[Any], Any]] = {"mask2former": _mask2former, "upernet": _upernet, "sam": _sam}
WITH_BACKGROUND = ("upernet",)  # channel 0 of its output is background


def in_transformers_layout(model: Baseline) -> Any:
    """Return transformers' model with our weights, or ``None`` if transformers has no such architecture."""
    export = EXPORTERS.get(model.name)
    exported = None if export is None else export(model)
    if exported is None:
        return None
    if model.name != "sam":
        names = [*(["background"] if model.name in WITH_BACKGROUND else []), *model.config.organelles]
        exported.config.id2label = dict(enumerate(names))
        exported.config.label2id = {name: number for number, name in enumerate(names)}
    return exported.eval()


def write_transformers(model: Baseline, folder: Path) -> str:
    """Write ``transformers/config.json`` and ``transformers/model.safetensors``; return the class that reads them.

    Without such an architecture nothing is written, and the answer is empty.
    """
    exported = in_transformers_layout(model)
    if exported is None:
        return ""
    exported.save_pretrained(folder / SUBFOLDER, max_shard_size="1000GB")
    return type(exported).__name__


def _load(exported: Any, weights: dict[str, Any], absent: tuple[str, ...]) -> None:
    """Load weights; raises ``RuntimeError`` if any does not fit, or one is missing that is not in ``absent``."""
    result = exported.load_state_dict(weights, strict=False)
    missing = [name for name in result.missing_keys if not name.startswith(absent or ("\0",))]
    if missing or result.unexpected_keys:
        raise RuntimeError(f"{type(exported).__name__}: missing {missing[:3]}, unknown {result.unexpected_keys[:3]}")
