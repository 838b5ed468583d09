"""micro-SAM's automatic modes behind the interface of the core; needs the extra `sam` (bash scripts/test_sam.sh)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sam_lively import State, assert_same_masks, large_sam, lively_state, needs_micro_sam, noise, random_decoder, small
from scipy import ndimage

from baselines.masks import Mask, paint
from baselines.models.sam import Sam
from baselines.sam.engines import engine_settings, load_engine
from baselines.sam.grid import GridSettings, flat_masks
from baselines.sam.predict import SamSettings
from baselines.sam.weights import from_state_dict
from em_bench_eval.errors import InputError

ALL = GridSettings(points_per_side=8, min_predicted_iou=-1e9, min_stability=0.0, drop_background=False)


@pytest.fixture(scope="module")
def core() -> Sam:
    return from_state_dict(lively_state(small()), "small.pth")


@pytest.fixture(scope="module")
def large_core() -> Sam:
    return from_state_dict(large_sam(), "large.pth")


@pytest.fixture(scope="module")
def decoder_state(large_core: Sam) -> State:
    return random_decoder(large_core)


def pieces(labels: npt.NDArray[Any]) -> set[bytes]:
    """The connected pieces (4 neighbours) of each id of a label map."""
    found = set()
    for id_ in np.unique(labels[labels > 0]):
        numbered, count = ndimage.label(labels == id_)
        found |= {(numbered == piece).tobytes() for piece in range(1, count + 1)}
    return found


def planes(masks: list[Mask], shape: tuple[int, int]) -> set[bytes]:
    return {mask.plane(shape).tobytes() for mask in masks}


@needs_micro_sam
@pytest.mark.parametrize("keep_background", [True, False])
@pytest.mark.parametrize(
    "grid", [ALL, GridSettings(7, min_predicted_iou=0.6, min_stability=0.3, stability_offset=0.2, max_box_iou=0.9)]
)
def test_micro_sam_amg_is_the_core_cut_into_connected_pieces(
    core: Sam, grid: GridSettings, keep_background: bool
) -> None:
    from baselines.sam.micro_sam_runner import MicroSamAmg

    gray, shape = noise((90, 120)), (90, 120)
    found = MicroSamAmg(core, drop_background=not keep_background).segment(gray, grid)
    overlapping = core.segment(gray, grid)
    labels = np.zeros(shape, np.uint32)
    for id_, mask in sorted(enumerate(overlapping, start=1), key=lambda item: item[1].area, reverse=True):
        labels[mask.plane(shape)] = id_  # of equal areas, the core has the more certain one on top, micro-SAM the less
    flat, _, _ = paint(flat_masks(overlapping, shape, GridSettings(drop_background=False)), shape)
    assert ((flat > 0) == (labels > 0)).all()
    expected = pieces(labels)
    assert len(expected) >= 10
    if not keep_background:
        largest = max(expected, key=lambda plane: plane.count(1))
        if largest.count(1) > (labels == 0).sum():
            expected -= {largest}
    assert planes(found, shape) == expected
    for mask in found:
        (id_,) = np.unique(labels[mask.plane(shape)])
        assert mask.score == pytest.approx(overlapping[id_ - 1].score, abs=1e-4)


@needs_micro_sam
@pytest.mark.parametrize("mode", ["ais", "apg"])
@pytest.mark.parametrize("thresholds", [{}, {"foreground": 0.4, "boundary_distance": 0.6, "min_area": 12}])
def test_the_decoder_s_modes_are_micro_sam_s_own(
    large_core: Sam, decoder_state: State, mode: str, thresholds: dict[str, Any]
) -> None:
    from baselines.sam.micro_sam_runner import DecoderSettings, MicroSamAis, MicroSamApg

    automatic = import_module("micro_sam.automatic_segmentation")
    gray, shape, settings = noise((90, 120)), (90, 120), DecoderSettings(**thresholds)
    model = {"ais": MicroSamAis, "apg": MicroSamApg}[mode](large_core, decoder_state, settings)
    found = model.segment(gray, GridSettings())
    predictor, segmenter = automatic.get_predictor_and_segmenter(
        "vit_b", predictor=model.predictor, state={"decoder_state": decoder_state}, segmentation_mode=mode, device="cpu"
    )
    labels = automatic.automatic_instance_segmentation(
        predictor, segmenter, gray, ndim=2, verbose=False, **settings.arguments()
    )
    assert len(found) == len(np.unique(labels[labels > 0])) >= 2
    assert planes(found, shape) == {(labels == id_).tobytes() for id_ in np.unique(labels[labels > 0])}
    foreground = segmenter.get_state()["foreground"]
    for mask in found:
        assert mask.score == pytest.approx(foreground[mask.plane(shape)].mean(), abs=1e-4)
    assert [mask.score for mask in found] == sorted((mask.score for mask in found), reverse=True)


@needs_micro_sam
def test_the_decoder_s_batch_statistics_are_the_image_s_and_do_not_drift(large_core: Sam, decoder_state: State) -> None:
    from baselines.sam.micro_sam_runner import MicroSamAis

    model = MicroSamAis(large_core, decoder_state).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, _, again = (model.segment(noise((90, 120), seed), GridSettings()) for seed in (0, 1, 0))
    assert_same_masks(again, first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.decoder.eval()
    other = model.segment(noise((90, 120)), GridSettings())
    assert planes(other, (90, 120)) != planes(first, (90, 120))


@needs_micro_sam
def test_decoders_that_do_not_fit(core: Sam, large_core: Sam, decoder_state: State) -> None:
    from baselines.sam.micro_sam_runner import DecoderSettings, MicroSamAis, MicroSamApg

    with pytest.raises(InputError, match=r"do not fit(.|\n)*deconv1"):
        MicroSamAis(large_core, {name: t for name, t in decoder_state.items() if not name.startswith("deconv1")})
    with pytest.raises(InputError, match="1024"):
        MicroSamApg(core, decoder_state)
    with pytest.raises(InputError, match="foreground"):
        DecoderSettings(foreground=1.5)


@needs_micro_sam
def test_automatic_modes_take_no_prompts(core: Sam, tmp_path: Path) -> None:
    core.save_pretrained(tmp_path)
    model = load_engine("micro-sam-amg", str(tmp_path), drop_background=False)
    with pytest.raises(InputError, match="automatic mode"):
        engine_settings(model, SamSettings("prompted"))
    with pytest.raises(InputError, match="--convert"):
        model.save_pretrained(tmp_path / "again")
    assert engine_settings(model, SamSettings()).recorded()["grid"]["drop_background"] is False


class _Code:
    """Something that only a pickle that runs code could restore."""


def test_decoders_of_every_layout_and_those_that_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from baselines.sam.micro_sam_runner import read_decoder

    state = {"out_conv.weight": torch.ones(3, 64, 1, 1), "base.block.1.weight": torch.zeros(2)}
    path = tmp_path / "decoder.pt"
    for content in (state, {"model_state": {}, "decoder_state": state}):
        torch.save(content, path)
        assert read_decoder(path).keys() == state.keys()
    save_file(state, tmp_path / "decoder.safetensors")
    assert read_decoder(tmp_path / "decoder.safetensors").keys() == state.keys()
    torch.save({"decoder_state": state, "init": _Code()}, path)
    with pytest.raises(InputError, match=r"could run code(.|\n)*save_file"):
        read_decoder(path)
    torch.save({"model_state": state}, path)
    with pytest.raises(InputError, match="no decoder"):
        read_decoder(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="cannot be read"):
        read_decoder(path)
