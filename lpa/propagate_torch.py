"""The paper's label propagation on a torch tensor, on whatever device it lies: max-pooling and pointer jumping.

One step as the paper has it moves a label by one voxel, so a winding network takes thousands of steps. A label is also
the address of a voxel of the same component, which is used twice here: the voxel addressed takes the smaller label, too
(hooking), and each voxel then takes the label of the voxel that its own label addresses, until none changes (jumping).
Rounds then grow with the logarithm of the longest path; a handful suffice for organelles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from em_bench_eval.errors import InputError
from lpa.connectivity import per_class

if TYPE_CHECKING:
    import torch

# The neighbourhoods as unions of boxes (z, y, x): three lines, three squares, one cube
BOXES: dict[int, tuple[tuple[int, int, int], ...]] = {
    6: ((3, 1, 1), (1, 3, 1), (1, 1, 3)),
    18: ((1, 3, 3), (3, 1, 3), (3, 3, 1)),
    26: ((3, 3, 3),),
}


def propagate_torch(semantic: torch.Tensor, connectivity: int | Mapping[str, int] = 26) -> torch.Tensor:
    """Propagate minimum labels until nothing changes; equals ``lpa.propagate``.

    Needs about 60 bytes a voxel on the device. Pools float64, which holds every label exactly (float32 does so only up
    to 2^24 voxels).

    Args:
        semantic: ``(z, y, x)`` or ``(y, x)`` integers or booleans, 0 = background, on any device.
        connectivity: 6, 18 or 26, for all classes or per organelle.

    Returns:
        int64 labels of the same shape, on the same device.

    Raises:
        InputError: floats, negative classes, another number of axes, an unknown connectivity.
    """
    import torch

    _check(semantic)
    volume = semantic if semantic.ndim == 3 else semantic[None]
    numbers = torch.arange(1, volume.numel() + 1, device=volume.device).reshape(volume.shape)
    labels = torch.where(volume != 0, numbers, 0)
    values = [int(value) for value in torch.unique(volume) if value]
    neighbours_of = per_class(connectivity, values)
    while volume.numel():
        smallest = labels
        for value, neighbours in neighbours_of.items():
            smallest = torch.where(volume == value, _smallest_around(labels, volume == value, neighbours), smallest)
        if torch.equal(smallest, labels):
            break
        # label 0 addresses a background voxel in front of the volume
        at = torch.cat([labels.new_zeros(1), smallest.flatten()])
        at = at.scatter_reduce(0, labels.flatten(), smallest.flatten(), "amin")
        while not torch.equal(at, jumped := at[at]):
            at = jumped
        labels = at[1:].reshape(volume.shape)
    return labels.reshape(semantic.shape)


def _smallest_around(labels: torch.Tensor, inside: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Minimum label of each voxel and its neighbours, where ``inside``; 0 elsewhere."""
    import torch
    from torch.nn.functional import max_pool3d

    top = labels.numel() + 1  # pooling takes maxima and pads with the least value: count down from the top
    height = torch.where(inside, (top - labels).double(), 0.0)[None]
    pooled = [max_pool3d(height, box, stride=1, padding=tuple(n // 2 for n in box)) for box in BOXES[neighbours]]
    return torch.where(inside, top - torch.stack(pooled).amax(0)[0].long(), 0)


def _check(semantic: torch.Tensor) -> None:
    if semantic.ndim not in (2, 3):
        raise InputError(
            "a semantic volume has two or three axes",
            found=f"shape {tuple(semantic.shape)}",
            expected="(z, y, x) or (y, x)",
            remedy="drop or index batch and channel axes first",
        )
    if semantic.is_floating_point() or semantic.is_complex():
        raise InputError(
            "a semantic volume holds class numbers",
            found=f"dtype {semantic.dtype}",
            expected="bool or integers",
            remedy="threshold probabilities or take their argmax first",
        )
    if semantic.numel() and int(semantic.min()) < 0:
        raise InputError(
            "a semantic volume has no negative classes",
            found=f"minimum {int(semantic.min())}",
            expected="0 for background, positive integers for classes",
            remedy="set ignored voxels to 0 and carry them as an ignore mask",
        )
