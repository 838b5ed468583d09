"""Mask2Former: its size, its loss under partial annotation, that it can learn, and weights of others."""

from __future__ import annotations

import ast
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from baselines.losses import IGNORE
from baselines.model import Batch, count_parameters
from baselines.models.mask2former import MODEL, SMALL, TINY, Mask2Former
from baselines.networks import mask2former_network
from baselines.networks.mask2former_network import Mask2FormerConfig, transformers_config
from baselines.networks.query_loss import QueryLossWeights, QueryTargets, class_loss, match, query_loss, query_targets
from baselines.optimizer import make_optimizer
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle

torch.set_num_threads(1)
SMOKE = dataclasses.replace(TINY, trained_organelles=("mito", "er"))
FEW = QueryLossWeights(points=512)


def discs(*circles: tuple[int, int, int], size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    ids = np.zeros((size, size), np.int64)
    for id_, (cy, cx, radius) in enumerate(circles, 1):
        ids[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = id_
    return ids


def a_batch() -> Batch:
    """Bright discs are mitochondria, dark ones ER; nuclei are not annotated."""
    ids = np.stack([discs((16, 16, 12), (46, 20, 11), (40, 48, 12)), discs((20, 44, 13), (48, 14, 11), (48, 46, 10))])
    semantic = np.where(ids == 0, 0, np.where(ids == 3, 3, 1))
    noise = np.random.default_rng(0).normal(size=ids.shape)
    image = np.where(semantic == 1, 1.0, np.where(semantic == 3, -1.0, 0.0)) + 0.1 * noise
    return {
        "image": torch.from_numpy(image).float()[:, None],
        "semantic": torch.from_numpy(semantic),
        "instances": torch.from_numpy(ids),
        "distance": torch.zeros(ids.shape),
        "annotated": torch.tensor([[True, False, True, True, True]] * 2),
    }


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (TINY, 352_405),
        (SMALL, 6_806_896),
        (Mask2FormerConfig(), 47_400_832),
        (Mask2FormerConfig(backbone="resnet", embed=256, depths=(3, 4, 6, 3)), 43_997_830),
    ],
)
def test_parameter_count(config: Mask2FormerConfig, parameters: int) -> None:
    """Swin-T: 47.40 M, ResNet-50: 44.00 M. On the CPU, as transformers cannot build it on the meta device."""
    assert count_parameters(Mask2Former(config)) == parameters


def test_torchvision_and_timm_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, name, None)  # from here on, importing them fails
    assert Mask2Former(SMOKE).eval().masks(torch.zeros(1, 1, 64, 64)) is not None
    tree = ast.parse(Path(mask2former_network.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {"torchvision", "timm"} & imported


@pytest.mark.parametrize("shape", [(64, 64), (100, 76), (33, 47), (5, 70)])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_image_size(shape: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    model = Mask2Former(dataclasses.replace(SMOKE, stride=stride, min_score=0.0)).eval()
    heads = model(torch.randn(2, 1, *shape))
    h, w = (-(-size // (32 * stride)) * 8 for size in shape)
    assert {name: tuple(value.shape) for name, value in heads.items()} == {"class": (2, 10, 6), "mask": (2, 10, h, w)}
    for masks in model.masks(torch.randn(2, 1, *shape)):
        for mask in masks:
            assert 0 <= mask.box[0] < mask.box[2] <= shape[0]
            assert 0 <= mask.box[1] < mask.box[3] <= shape[1]
            assert mask.organelle in (Organelle.MITO, Organelle.ER)


def test_it_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model, batch = Mask2Former(SMOKE), a_batch()
    optimizer = make_optimizer(model, dataclasses.replace(MODEL.preset("smoke").recipe, lr=4e-3))
    history = []
    for _ in range(80):
        losses = model.loss(model(batch["image"]), batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]["loss"] < 0.15 * history[0]["loss"]
    assert history[-1]["loss"] == pytest.approx(sum(history[-1][n] for n in ("classification", "mask", "dice")))
    assert history[-1]["beyond_queries"] == 0
    for found, ids, semantic in zip(
        model.eval().masks(batch["image"]), batch["instances"].numpy(), batch["semantic"].numpy(), strict=True
    ):
        assert len(found) == 3
        for mask in found:
            plane = mask.plane(ids.shape)
            ious = {id_: (plane & (ids == id_)).sum() / (plane | (ids == id_)).sum() for id_ in (1, 2, 3)}
            best = max(ious, key=ious.__getitem__)
            assert ious[best] > 0.8
            assert mask.organelle is not None
            assert mask.organelle.label_id == semantic[ids == best][0]


# targets -----------------------------------------------------------------------------------------------------------


def test_targets_are_ids_of_the_volume_or_their_pieces() -> None:
    ids = discs((12, 12, 8), (12, 50, 8), (50, 30, 8))
    ids[ids == 2] = 1  # one id in two pieces
    semantic = np.where(ids == 3, 5, np.where(ids > 0, 3, 0))
    planes = torch.from_numpy(semantic)[None], torch.from_numpy(ids)[None]
    (volume,) = query_targets(*planes, pieces=False)
    assert volume.labels.tolist() == [2, 4]
    np.testing.assert_array_equal(volume.numbers.numpy() == 1, ids == 1)
    (pieces,) = query_targets(*planes, pieces=True)
    assert sorted(pieces.labels.tolist()) == [2, 2, 4]
    assert bool(volume.known.all())
    assert bool(pieces.known.all())


def test_unknown_pixels_unknown_organelles_and_specks_are_no_targets() -> None:
    ids = discs((12, 12, 8), (12, 50, 8), (50, 30, 8))
    ids[40, 5] = 9
    semantic = np.where(ids > 0, 1, 0)
    semantic[ids == 2] = IGNORE  # of an organelle that nobody annotated
    semantic[ids == 3] = np.where(np.arange(64)[:, None] < 50, 1, IGNORE).repeat(64, 1)[ids == 3]
    (target,) = query_targets(torch.from_numpy(semantic)[None], torch.from_numpy(ids)[None], pieces=False, min_pixels=4)
    assert target.labels.tolist() == [0, 0]
    assert set(np.unique(ids[target.numbers.numpy() > 0])) == {1, 3}
    np.testing.assert_array_equal(target.known.numpy(), (semantic != IGNORE) & (ids != 9))
    assert int((target.numbers > 0)[~target.known].sum()) == 0


# the loss ----------------------------------------------------------------------------------------------------------


def random_heads(seed: int = 0, size: int = 16, queries: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(2, queries, 6, generator=generator).requires_grad_()
    masks = 3 * F.interpolate(torch.randn(2, queries, 4, 4, generator=generator), size=(size, size), mode="bilinear")
    return classes, masks.detach().requires_grad_()


def test_where_all_is_annotated_it_is_the_loss_of_transformers() -> None:
    """Classification to rounding; mask losses up to the random points, many here."""
    from transformers import Mask2FormerConfig as TransformersConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    batch, (classes, masks) = a_batch(), random_heads()
    weights = QueryLossWeights(points=20_000)
    config = TransformersConfig(num_labels=5, train_num_points=weights.points)
    theirs = Mask2FormerLoss(config, {})
    targets = query_targets(batch["semantic"], batch["instances"], pieces=False)
    labels = [target.labels for target in targets]
    planes = [torch.stack([target.numbers == n for n in (1, 2, 3)]).float() for target in targets]
    torch.manual_seed(0)
    expected = theirs(masks.detach(), classes.detach(), planes, labels)
    found = query_loss([classes.detach()], [masks.detach()], targets, torch.ones(2, 5, dtype=torch.bool), weights)
    assert float(found["classification"]) == pytest.approx(2 * float(expected["loss_cross_entropy"]), rel=1e-5)
    assert float(found["mask"]) == pytest.approx(5 * float(expected["loss_mask"]), rel=0.02)
    assert float(found["dice"]) == pytest.approx(5 * float(expected["loss_dice"]), rel=0.02)


def test_matching_is_the_best_of_all_assignments() -> None:
    from itertools import permutations

    batch, (classes, masks) = a_batch(), random_heads(queries=4)
    targets = query_targets(batch["semantic"], batch["instances"], pieces=False)
    ((image, query, number),) = match([classes], [masks], targets, QueryLossWeights(points=50_000))
    for index, target in enumerate(targets):
        dense = F.interpolate(masks[index][None], size=(64, 64), mode="bilinear")[0].detach()
        truth = torch.stack([(target.numbers == n).float() for n in (1, 2, 3)])
        cost = np.zeros((4, 3))
        for q in range(4):
            for t in range(3):
                p = dense[q].sigmoid()
                dice = 1 - (2 * (p * truth[t]).mean() + 2e-5) / (p.mean() + truth[t].mean() + 2e-5)
                entropy = F.binary_cross_entropy_with_logits(dense[q], truth[t])
                probability = classes[index, q].softmax(-1)[target.labels[t]]
                cost[q, t] = float((5 * entropy + 5 * dice - 2 * probability).detach())
        best = min(permutations(range(4), 3), key=lambda chosen: cost[list(chosen), range(3)].sum())
        found = dict(zip(number[image == index].tolist(), query[image == index].tolist(), strict=True))
        assert found == {t + 1: q for t, q in enumerate(best)}


def test_a_query_that_says_an_unannotated_organelle_is_not_charged_as_no_object() -> None:
    logits = torch.zeros(1, 2, 6)
    logits[0, :, 1] = 12.0  # both queries say "nucleus"
    truth, charged = torch.full((1, 2), 5), torch.ones(1, 2, dtype=torch.bool)

    def of(annotated: list[bool]) -> tuple[float, torch.Tensor]:
        leaf = logits.clone().requires_grad_()
        loss = class_loss(leaf, truth, torch.tensor([annotated]), charged, 0.1)
        loss.backward()
        assert leaf.grad is not None
        return float(loss.detach()), leaf.grad

    loss, gradient = of([True, False, True, True, True])
    assert loss < 1e-4
    assert float(gradient.abs().max()) < 1e-4
    loss, gradient = of([True] * 5)
    assert loss > 10
    assert float(gradient[0, 0, 1]) > 0.1
    # "nucleus" and "no object" share their credit: pushed by nothing but the organelles that are known to be absent
    logits = torch.zeros(1, 2, 6)
    _, gradient = of([True, False, True, True, True])
    assert float(gradient[0, 0, 1]) == pytest.approx(float(gradient[0, 0, 5]))
    assert float(gradient[0, 0, 1]) < 0 < float(gradient[0, 0, 0])


def test_ignored_pixels_have_no_gradient_and_no_influence() -> None:
    batch, (classes, masks) = a_batch(), random_heads()
    semantic = batch["semantic"].clone()
    semantic[:, :, 36:] = IGNORE  # columns 0..8 of the logits reach into the known part by interpolation
    targets = query_targets(semantic, batch["instances"], pieces=False)
    annotated = batch["annotated"]

    def of(masks: torch.Tensor) -> tuple[float, torch.Tensor]:
        torch.manual_seed(1)
        leaf = masks.detach().clone().requires_grad_()
        losses = query_loss([classes.detach()], [leaf], targets, annotated, FEW)
        (gradient,) = torch.autograd.grad(losses["mask"] + losses["dice"], leaf)
        return float(losses["loss"].detach()), gradient

    loss, gradient = of(masks)
    assert float(gradient[..., 10:].abs().max()) == 0.0
    assert float(gradient[..., :9].abs().max()) > 0.0
    changed = masks.detach().clone()
    changed[..., 10:] += torch.randn(changed[..., 10:].shape, generator=torch.Generator().manual_seed(0)).abs()
    changed[..., 10:] *= (masks[..., 10:] > 0) * 2 - 1.0  # no mask changes its side of ignored and known
    sides = (changed > 0) == (masks > 0)
    assert bool(sides[..., :10].all())
    again, _ = of(torch.where(sides, changed, masks))
    assert again == pytest.approx(loss, rel=1e-6)


def test_an_unmatched_query_on_ignored_pixels_is_not_charged() -> None:
    classes, masks = torch.zeros(1, 3, 6), torch.full((1, 3, 8, 8), -5.0)
    classes[0, :, 0] = 8.0  # all say "mito"
    masks[0, 0, :, :4] = masks[0, 1, :, 4:] = 5.0  # the first on known pixels, the second on ignored ones; one empty
    known = torch.zeros(32, 32, dtype=torch.bool)
    known[:, :16] = True
    target = QueryTargets(torch.zeros(32, 32, dtype=torch.int64), known, torch.zeros(0, dtype=torch.int64))
    leaf = classes.clone().requires_grad_()
    losses = query_loss([leaf], [masks], [target], torch.ones(1, 5, dtype=torch.bool), FEW)
    losses["loss"].backward()
    assert leaf.grad is not None
    assert float(leaf.grad[0, 1].abs().max()) == 0.0
    assert float(leaf.grad[0, 0].abs().max()) > 0.0
    assert float(leaf.grad[0, 2].abs().max()) > 0.0


def test_nothing_known_gives_no_gradient_and_no_nan() -> None:
    batch = a_batch()
    batch["semantic"] = torch.full_like(batch["semantic"], IGNORE)
    batch["annotated"] = torch.zeros_like(batch["annotated"])
    model = Mask2Former(SMOKE)
    losses = model.loss(model(batch["image"]), batch)
    losses["loss"].backward()
    assert float(losses["loss"].detach()) == pytest.approx(0.0, abs=1e-4) or torch.isfinite(losses["loss"])
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    masks = model.network.model.transformer_module.decoder.mask_predictor.parameters()
    assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in masks)


def test_more_instances_than_queries_are_counted() -> None:
    ids = torch.from_numpy(discs(*[(y, x, 3) for y in range(6, 64, 10) for x in range(6, 64, 10)]))[None]
    targets = query_targets((ids > 0).long(), ids, pieces=False)
    classes, masks = random_heads(queries=4)
    losses = query_loss([classes[:1]], [masks[:1]], targets, torch.ones(1, 5, dtype=torch.bool), FEW)
    assert float(losses["beyond_queries"]) == 36 - 4
    assert bool(torch.isfinite(losses["loss"]))


# configuration, weights of others ----------------------------------------------------------------------------------


def test_parameter_groups_hold_every_parameter_once() -> None:
    model = Mask2Former(dataclasses.replace(SMOKE, backbone_lr_factor=0.1))
    groups = model.parameter_groups()
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    backbone = {id(p) for p in model.network.model.pixel_level_module.encoder.parameters()}
    for group in groups:
        assert {id(p) in backbone for p in group["params"]} == {group["lr_factor"] == 0.1}
    undecayed = [p for group in groups if group.get("weight_decay") == 0.0 for p in group["params"]]
    assert any(p is model.network.model.transformer_module.queries_features.weight for p in undecayed)
    assert all(p is not model.network.class_predictor.weight for p in undecayed)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mask2Former(dataclasses.replace(SMOKE, target_ids="slice")).eval()
    model.save_pretrained(tmp_path)
    again = Mask2Former.from_pretrained(tmp_path)
    assert again.config == model.config
    image = torch.randn(1, 1, 40, 50)
    torch.testing.assert_close(again(image), model(image))


def test_weights_that_transformers_saved(tmp_path: Path) -> None:
    """A three-channel model with 80 labels and 12 queries, as one trained on COCO would be."""
    from transformers import Mask2FormerForUniversalSegmentation, SwinBackbone, SwinForImageClassification

    torch.manual_seed(0)
    config = transformers_config(SMOKE)
    config.backbone_config.num_channels, config.num_labels, config.num_queries = 3, 80, 12
    theirs = Mask2FormerForUniversalSegmentation(config).eval()
    theirs.save_pretrained(tmp_path / "coco")
    model = Mask2Former(SMOKE).eval()
    before = model.network.class_predictor.weight.detach().clone()
    report = model.load_encoder_weights(tmp_path / "coco")
    assert "1 of them summed over the colour channels" in report
    assert "class_predictor.weight" in report
    assert "queries_features.weight" in report
    assert str(tmp_path) not in report
    assert torch.equal(model.network.class_predictor.weight, before)
    image = torch.randn(1, 1, 64, 64)
    expected = theirs.model.pixel_level_module(image.expand(-1, 3, -1, -1)).decoder_last_hidden_state
    found = model.network.model.pixel_level_module(image).decoder_last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    for number, build in enumerate((SwinBackbone, SwinForImageClassification)):  # the second as ImageNet's are saved
        folder = tmp_path / f"swin{number}"
        encoder = build(config.backbone_config)
        encoder.save_pretrained(folder)
        model = Mask2Former(SMOKE)
        assert f"swin weights of swin{number}" in model.load_encoder_weights(folder)
        ours = model.network.model.pixel_level_module.encoder.state_dict()
        same = [n for n, tensor in encoder.state_dict().items() if n in ours and tensor.shape == ours[n].shape]
        assert len(same) > 50
        for name in same:
            torch.testing.assert_close(ours[name], encoder.state_dict()[name])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2Former(SMOKE)
    with pytest.raises(InputError, match="no weights that can be loaded"):
        model.load_encoder_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="can run code"):
        model.load_encoder_weights(tmp_path)
    wider = Mask2FormerForUniversalSegmentation(transformers_config(dataclasses.replace(SMOKE, hidden=64)))
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(InputError, match="do not fit this model"):
        model.load_encoder_weights(tmp_path / "wider")


def test_impossible_configurations_are_explained() -> None:
    with pytest.raises(InputError, match="multiple of 32"):
        Mask2Former(dataclasses.replace(SMOKE, hidden=48))
    with pytest.raises(InputError, match="did you mean 'resnet'"):
        Mask2Former(dataclasses.replace(SMOKE, backbone="resnt"))


def test_presets_are_the_published_recipes() -> None:
    assert {"quick", "standard", "official", "paper", "smoke"} <= set(MODEL.presets)
    paper, official = MODEL.preset("paper").recipe, MODEL.preset("official").recipe
    assert (paper.steps, paper.batch_size, paper.crop, paper.lr, paper.optimizer) == (9000, 64, 512, 0.005, "adam")
    assert (official.lr, official.weight_decay, official.clip, official.schedule) == (1e-4, 0.05, 0.01, "poly")


def test_more_instances_in_the_data_than_queries_are_told_before_training() -> None:
    def rows(count: int) -> list[dict[str, object]]:
        objects = [{"organelle": "mito", "bbox": [8 * n, 0, 8 * n + 4, 4]} for n in range(count)]
        return [{"objects": objects, "annotated": ["mito"], "pixel_size_nm": [8.0, 8.0]}]

    model = Mask2Former(SMOKE)
    assert model.data_notes(rows(5)) == []
    (note,) = model.data_notes(rows(30))
    assert "hold up to 30 instances" in note
    assert "with 10 queries they cannot all be found" in note
    assert model.data_notes(rows(30), crop=64) != [note]  # a smaller crop holds fewer
