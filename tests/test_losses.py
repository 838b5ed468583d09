"""What is unknown neither rewards nor punishes; what is known does."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import preprocess
from baselines.losses import IGNORE, organelle_map_loss, partial_cross_entropy, soft_dice_loss

torch.set_num_threads(1)
LOSSES = [partial_cross_entropy, soft_dice_loss]


def _case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (2, 6, 5, 7), targets and annotations in which every labelled organelle is annotated."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, 5, 7, generator=generator, dtype=torch.float64)
    annotated = torch.rand(2, 5, generator=generator) < 0.5
    annotated[:, 0] = True
    target = torch.randint(0, 6, (2, 5, 7), generator=generator)
    for image in range(2):
        for organelle in range(5):
            if not annotated[image, organelle]:
                target[image][target[image] == organelle + 1] = 0
    target[:, 0, :3] = IGNORE
    return logits, target, annotated


def _slow_cross_entropy(logits: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor) -> float:
    total, known = 0.0, 0
    for n in range(target.shape[0]):
        for y in range(target.shape[1]):
            for x in range(target.shape[2]):
                label = int(target[n, y, x])
                if label == IGNORE:
                    continue
                e = [math.exp(float(value)) for value in logits[n, :, y, x]]
                likelihood = e[label]
                if label == 0:
                    likelihood += sum(e[1 + organelle] for organelle in range(5) if not annotated[n, organelle])
                total -= math.log(likelihood / sum(e))
                known += 1
    return total / max(known, 1)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_cross_entropy_equals_its_definition_pixel_by_pixel(seed: int) -> None:
    logits, target, annotated = _case(seed)
    fast = float(partial_cross_entropy(logits, target, annotated))
    assert fast == pytest.approx(_slow_cross_entropy(logits, target, annotated), rel=1e-4)


def test_with_everything_annotated_it_is_the_usual_cross_entropy() -> None:
    logits, target, annotated = _case(3)
    usual = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE)
    assert float(partial_cross_entropy(logits, target, torch.ones_like(annotated))) == pytest.approx(
        float(usual), rel=1e-5
    )


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None)
def test_moving_probability_between_background_and_the_unannotated_changes_nothing(loss, seed, share) -> None:
    logits, target, annotated = _case(seed)
    p = logits.softmax(dim=1)
    before = loss(logits, target, annotated)
    for image in range(2):
        hidden = [0, *(1 + organelle for organelle in range(5) if not annotated[image, organelle])]
        whole = p[image, hidden].sum(dim=0)
        p[image, hidden] = whole * (1 - share) / max(len(hidden) - 1, 1)
        p[image, 0] = whole * share if len(hidden) > 1 else whole
    assert float(loss(p.log(), target, annotated)) == pytest.approx(float(before), rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_moving_probability_to_an_annotated_organelle_does_change_it(loss) -> None:
    logits, target, annotated = _case(1)
    changed = logits.clone()
    changed[:, 1] += 1.0  # mito, annotated in both images
    assert abs(float(loss(changed, target, annotated)) - float(loss(logits, target, annotated))) > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_ignored_pixels_change_neither_loss_nor_gradient(loss, seed: int) -> None:
    logits, target, annotated = _case(seed)
    changed = logits.clone()
    changed[:, :, 0, :3] += torch.randn(6, 3, dtype=torch.float64)[None] * 5
    changed.requires_grad_()
    value = loss(changed, target, annotated)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(loss(logits, target, annotated)), rel=1e-5)
    assert changed.grad is not None
    assert float(changed.grad[:, :, 0, :3].abs().max()) == 0.0


def test_an_image_of_unknown_pixels_gives_a_finite_loss_of_zero() -> None:
    logits = torch.randn(1, 6, 4, 4, requires_grad=True)
    target = torch.full((1, 4, 4), IGNORE)
    annotated = torch.zeros(1, 5, dtype=torch.bool)
    ids = torch.tensor([1, 4])
    parts = [loss(logits, target, annotated) for loss in LOSSES]
    parts.append(organelle_map_loss(logits[:, :2], torch.zeros(1, 4, 4), target, annotated[:, [0, 3]], ids))
    torch.stack(parts).sum().backward()
    assert [float(part.detach()) for part in parts] == [0.0, 0.0, 0.0]
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_dice_of_a_perfect_prediction_is_nearly_one_and_of_a_wrong_one_nearly_zero() -> None:
    target = torch.zeros(1, 20, 20, dtype=torch.int64)
    target[0, 5:15, 5:15] = 2
    one_hot = torch.nn.functional.one_hot(target, 6).permute(0, 3, 1, 2).float()
    annotated = torch.ones(1, 5, dtype=torch.bool)
    assert float(soft_dice_loss(50 * one_hot, target, annotated)) < 0.01
    assert float(soft_dice_loss(-50 * one_hot, target, annotated)) > 0.8


def test_distance_counts_only_where_the_organelle_is_annotated() -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[0, 1:3, 1:3] = 1
    distance = (target > 0).float()
    known = torch.tensor([[True, False], [False, False]])
    logits = torch.randn(2, 2, 4, 4)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[0, 0], distance[0])
    assert float(organelle_map_loss(logits, distance, target, known, torch.tensor([1, 4]))) == pytest.approx(
        float(expected)
    )


def test_the_two_files_agree_on_what_unknown_is() -> None:
    assert preprocess.IGNORE == IGNORE
