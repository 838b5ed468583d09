"""Pairs of a spoilt crop and what it should be restored to; each a pure function of (seed, number)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from baselines.pretrain.pretrain_augment import draw_view, gray_scale, seen_through, spoilt
from baselines.pretrain.pretrain_images import PreparedImages, UnusableImage
from baselines.pretrain.skipped_images import SkippedImages
from em_bench_eval.errors import InputError

TRIES = 20  # other images that are tried in place of a bad one
HELD_OUT = 16  # pairs; from as many images, but at most one in twenty


class SpoiltCrops:
    """``crops[n]`` is pair number ``n``, for any ``n >= 0``; every image is seen once before any is seen again.

    A bad image is listed and another takes its place.
    """

    def __init__(
        self,
        images: PreparedImages,
        numbers: Sequence[int],
        edge: int,
        normalisation: str,
        seed: int,
        skipped: SkippedImages,
    ) -> None:
        self.images, self.numbers, self.edge, self.seed, self.skipped = images, list(numbers), edge, seed, skipped
        self.normalisation = normalisation
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def __getitem__(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Return ``image`` and ``target``, both (1, edge, edge) float32 as the network sees them."""
        generator = np.random.default_rng((self.seed, number))
        image = self._image(number, generator)
        return pair(image, self.edge, self.normalisation, generator)

    def _image(self, number: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
        epoch, place = divmod(number, len(self.numbers))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch, 1)).permutation(len(self.numbers)))
        chosen = self.numbers[self._order[1][place]]
        for _ in range(TRIES):
            try:
                return self.images.read(chosen)
            except UnusableImage as error:
                self.skipped.add([(self.images.name(chosen), str(error))])
                chosen = self.numbers[int(generator.integers(len(self.numbers)))]
        raise InputError(
            f"{TRIES} images one after the other cannot be used",
            found=f"the list is {self.skipped.path}",
            remedy="was the folder moved, or a disk unmounted? --resume goes on from the last checkpoint",
        )


class HeldOut:
    """Pairs from images that are not trained on, the same ones throughout: what errors and pictures are made of.

    ``inputs`` and ``targets`` are (N, 1, edge, edge). With fewer than twenty images the pairs come from images that are
    trained on, too. Neighbouring planes of a stack resemble each other, so the errors flatter.
    """

    def __init__(self, images: PreparedImages, bad: set[int], edge: int, normalisation: str, seed: int) -> None:
        usable = [number for number in range(len(images)) if number not in bad]
        count = min(HELD_OUT, len(usable) // 20)
        generator = np.random.default_rng((seed, 2))
        chosen = generator.permutation(len(usable))[:HELD_OUT].tolist()
        shown = [usable[position] for position in (chosen[:count] or chosen)]
        self.numbers: list[int] = sorted(shown) if count else []
        pairs = []
        for turn in range(HELD_OUT):
            number = shown[turn % len(shown)]
            try:
                image = images.read(number)
            except UnusableImage:  # turned bad since it was looked at
                continue
            pairs.append(pair(image, edge, normalisation, np.random.default_rng((seed, turn, 3))))
        if not pairs:
            raise InputError("images that could be read a moment ago no longer can", remedy="was the folder moved?")
        self.inputs = torch.from_numpy(np.stack([one["image"] for one in pairs]))
        self.targets = torch.from_numpy(np.stack([one["target"] for one in pairs]))


def pair(
    image: npt.NDArray[np.uint8], edge: int, normalisation: str, generator: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    """Make input and target of a prepared image; of a larger one than a crop, of a random window of a crop's size.

    So slices of any size are treated like CEM500K's images, which are 224 x 224 cut from larger ones.
    """
    to_network = gray_scale(normalisation).to_network
    top, left = (int(generator.integers(max(size - edge, 0) + 1)) for size in image.shape)
    window = image[top : top + edge, left : left + edge].astype(np.float32)
    target = seen_through(window, draw_view((window.shape[0], window.shape[1]), generator), edge)
    spoilt_target = spoilt(target, generator)
    return {
        "image": to_network(spoilt_target).astype(np.float32)[None],
        "target": to_network(target).astype(np.float32)[None],
    }
