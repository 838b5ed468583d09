"""Give masks without an organelle the one that a dense model sees inside them: "SAM + semantic vote".

The masks say where instances are, the dense checkpoint says what they are. Unlike SAM alone, the pair predicts what
the benchmark asks for, so it is scored like every other model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from baselines.masks import Mask
from em_bench_eval.schema import Organelle


def vote(masks: Iterable[Mask], maps: Mapping[str, npt.NDArray[np.float32]]) -> list[Mask]:
    """Name each mask after the class with the highest mean probability inside it; drop it if that is background.

    ``maps`` are ``(y, x)`` probabilities by name on the pixels of the masks; names that are no organelle are left out,
    and background has the rest of the probability. A mask's score is multiplied by the mean probability of its class.
    """
    organelles = [organelle for organelle in Organelle if organelle.value in maps]
    probability = np.stack([maps[organelle.value] for organelle in organelles])
    named = []
    for mask in masks:
        y0, x0, y1, x1 = mask.box
        means = probability[:, y0:y1, x0:x1][:, mask.mask].mean(axis=1, dtype=np.float64)
        best = int(means.argmax())
        if means[best] > 1.0 - means.sum():
            score = float(np.clip(mask.score * means[best], 0.0, 1.0))
            named.append(replace(mask, organelle=organelles[best], score=score))
    return named
