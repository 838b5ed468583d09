"""micro-SAM's automatic modes by its own package: mask generator (AMG), decoder (AIS), prompts of the decoder (APG).

Only with the extra ``sam``, in an environment of its own; ``baselines.sam.engines`` imports this file. micro-SAM's own
loader is not used, because it unpickles without restriction: weights come through ``baselines.sam.weights``, those of
its segmentation decoder through ``read_decoder``, both with tensors only. Everything behind them is micro-SAM's:
preprocessing, embedding, generators and painting. (Archit et al. 2025, Nature Methods 22:579.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from baselines.masks import Mask, cut_to_box
from baselines.models.sam import Sam
from baselines.sam.grid import GridSettings
from baselines.sam.segment_anything_runner import Gray, SegmentAnything, arguments
from baselines.weight_files import read_content
from em_bench_eval.errors import InputError

EXPECTED = "a decoder of micro-SAM (vit_b_em_organelles_decoder), alone or as decoder_state beside model_state"
TO_SAFETENSORS = (
    "if you trust where it comes from, turn it into tensors first, in an environment without anything to lose: "
    "python -c \"import torch, safetensors.torch as s; x = torch.load('FILE', weights_only=False); "
    "s.save_file(dict(x.get('decoder_state', x)), 'decoder.safetensors')\""
)


@dataclass(frozen=True)
class DecoderSettings:
    """How micro-SAM turns its decoder's maps (0..1) into instances; the defaults are its own for both modes."""

    foreground: float = 0.5  # pixels above may belong to an object
    centre_distance: float = 0.5  # seeds lie below, and
    boundary_distance: float = 0.5  # below this
    min_area: int | None = None  # pixels at the aligned pixel size; None: micro-SAM's, 0 for AIS and 25 for APG

    def __post_init__(self) -> None:
        for name in ("foreground", "centre_distance", "boundary_distance"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is out of range", found=getattr(self, name), expected="0 to 1")

    def arguments(self) -> dict[str, Any]:
        """Return them by micro-SAM's names."""
        return {
            "foreground_threshold": self.foreground,
            "center_distance_threshold": self.centre_distance,
            "boundary_distance_threshold": self.boundary_distance,
            **({} if self.min_area is None else {"min_size": self.min_area}),
        }


class MicroSam(SegmentAnything):
    """What the three modes share: they find instances without prompts from outside."""

    takes_prompts: ClassVar[bool] = False

    def embeddings(self, gray: Gray) -> Any:
        """Encode one ``(y, x)`` 8-bit image as micro-SAM does: stretched to its own minimum and maximum."""
        return import_module("micro_sam.util").precompute_image_embeddings(self.predictor, gray, ndim=2, verbose=False)


class MicroSamAmg(MicroSam):
    """micro-SAM's mask generator: segment-anything's grid, painted to a label map, the background taken out."""

    engine: ClassVar[str] = "micro-sam-amg"

    def __init__(self, core: Sam, *, drop_background: bool = True) -> None:
        super().__init__(core)
        self.drop_background = drop_background

    def segment(self, gray: Gray, grid: GridSettings) -> list[Mask]:
        """Segment one ``(y, x)`` 8-bit image: disjoint, connected masks, each with its grid mask's predicted IoU."""
        util, package = import_module("micro_sam.util"), import_module("micro_sam.instance_segmentation")
        wanted = arguments(grid)
        made = {name: wanted.pop(name) for name in ("points_per_side", "points_per_batch", "stability_score_offset")}
        generator = package.AutomaticMaskGenerator(self.predictor, **made)
        generator.initialize(gray, image_embeddings=self.embeddings(gray))
        records = [r for r in generator.generate(**wanted, output_mode="binary_mask") if r["area"] >= grid.min_area]
        if not any(record["area"] for record in records):
            return []
        # what its output_mode="instance_segmentation" does, of which it gives no scores
        labels = util.mask_data_to_segmentation(
            records, shape=gray.shape, with_background=self.drop_background, merge_exclusively=False
        )
        return _masks(labels, _on_top(records, (gray.shape[0], gray.shape[1])))

    def recorded(self) -> dict[str, Any]:
        """What ``prediction.json`` says of the engine's own settings."""
        return {"drop_background": self.drop_background}


class MicroSamDecoder(MicroSam):
    """What AIS and APG share: the convolutional decoder on SAM's embedding, and the maps that it predicts.

    micro-SAM gives its instances no score; here it is the mean foreground probability inside. It leaves the decoder in
    training mode, so that batch normalisation takes its statistics from the image at hand (1.8.14; its pull request
    1327 is about training alone); so does this, but keeps the running statistics as they are.
    """

    generator: ClassVar[str]

    def __init__(
        self, core: Sam, decoder_state: Mapping[str, Tensor], settings: DecoderSettings = DecoderSettings()
    ) -> None:
        super().__init__(core)
        self.settings = settings
        package = import_module("micro_sam.instance_segmentation")
        try:
            self.decoder = package.get_decoder(self.network.image_encoder, decoder_state, "cpu")
        except RuntimeError as error:
            raise InputError(
                "the decoder's weights do not fit",
                found="; ".join(str(error).split("\n\t")[:3]),
                expected=f"{EXPECTED}, of the same architecture as the weights of SAM",
            ) from error
        for module in self.decoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
        self.eval()

    def train(self, mode: bool = True) -> MicroSamDecoder:
        """Set the mode of everything but the decoder."""
        super().train(mode)
        self.decoder.train()
        return self

    def segment(self, gray: Gray, grid: GridSettings) -> list[Mask]:
        """Segment one ``(y, x)`` 8-bit image: disjoint masks. Of ``grid`` only the prompts at a time are used."""
        package = import_module("micro_sam.instance_segmentation")
        segmenter = getattr(package, self.generator)(self.predictor, self.decoder)
        segmenter.initialize(gray, image_embeddings=self.embeddings(gray))
        labels = np.asarray(segmenter.generate(**self.settings.arguments(), **self.extra(grid)))
        return _masks(labels, segmenter.get_state()["foreground"])

    def extra(self, grid: GridSettings) -> dict[str, Any]:
        """Return arguments of the generator that are not settings."""
        return {}

    def recorded(self) -> dict[str, Any]:
        """What ``prediction.json`` says of the engine's own settings."""
        return asdict(self.settings)


class MicroSamAis(MicroSamDecoder):
    """Automatic instance segmentation: a watershed on the decoder's distances."""

    engine: ClassVar[str] = "micro-sam-ais"
    generator = "InstanceSegmentationWithDecoder"


class MicroSamApg(MicroSamDecoder):
    """Automatic prompt generation: the seeds of the decoder's distances become points for the mask decoder."""

    engine: ClassVar[str] = "micro-sam-apg"
    generator = "AutomaticPromptGenerator"

    def __init__(
        self, core: Sam, decoder_state: Mapping[str, Tensor], settings: DecoderSettings = DecoderSettings()
    ) -> None:
        if core.config.image_size != 1024:  # micro_sam.inference.batched_inference puts its points into 1024 pixels
            raise InputError(
                "micro-SAM prompts only networks of 1024 x 1024 pixels", found=core.config.image_size, expected=1024
            )
        super().__init__(core, decoder_state, settings)

    def extra(self, grid: GridSettings) -> dict[str, Any]:
        """Return arguments of the generator that are not settings."""
        return {"batch_size": grid.points_per_batch}


def read_decoder(path: Path) -> dict[str, Tensor]:
    """Read the weights of micro-SAM's segmentation decoder; a pickle of more than tensors is refused."""
    content = read_content(path, EXPECTED, convert=TO_SAFETENSORS)
    if isinstance(content, Mapping) and isinstance(content.get("decoder_state"), Mapping):
        content = content["decoder_state"]
    tensors = {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
    if "out_conv.weight" not in tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(
            f"{path} holds no decoder",
            found=", ".join(sorted(tensors)[:3]) or type(content).__name__,
            expected=EXPECTED,
            remedy="name its file with --decoder; weights without one know only --engine micro-sam-amg",
        )
    return tensors


def _on_top(records: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Predicted IoU of the mask that micro-SAM paints last on each pixel: the smallest, of equals the later one."""
    score = np.zeros(shape, np.float32)
    for record in sorted(records, key=lambda record: float(record["area"]), reverse=True):
        score[np.asarray(record["segmentation"], bool)] = record["predicted_iou"]
    return score


def _masks(labels: npt.NDArray[Any], score: npt.NDArray[np.float32]) -> list[Mask]:
    """Cut a ``(y, x)`` label map into masks, each with the mean ``score`` of its pixels."""
    from scipy import ndimage

    found = []
    for id_, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        if box is not None:
            plane = labels[box] == id_
            mean = float(np.clip(score[box][plane].mean(dtype=np.float64), 0.0, 1.0))
            mask = cut_to_box(plane, None, mean, (box[0].start, box[1].start))
            found += [] if mask is None else [mask]
    return sorted(found, key=lambda mask: -mask.score)
