"""How much memory there is, how many tiles fit into it, and a network that is fed accordingly."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from baselines.memory_faults import out_of_memory_as_input_error
from em_bench_eval.errors import InputError

if TYPE_CHECKING:
    from baselines.masks import Mask
    from baselines.model import Baseline

T = TypeVar("T")

# beyond these a larger batch is not faster: a CPU is busy with one tile, a GPU with some
MOST_TILES = {"cpu": 4, "cuda": 32}
USABLE = 0.6  # share of the free memory that a batch may take; the rest is for what is read, blended and written
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
REMEDY = "use smaller tiles (--tile), or another device (--device)"


class Network:
    """A model on a device. Batches shrink where memory runs out; a single tile that does not fit is an ``InputError``.

    ``batch_size``: tiles at a time; ``None`` chooses it by running one tile of ``tile_shape`` and measuring.
    """

    def __init__(
        self,
        model: Baseline,
        device: torch.device,
        tile_shape: Sequence[int],
        batch_size: int | None = None,
        *,
        symmetries: bool = False,
    ) -> None:
        self.model, self.device, self.symmetries = model.to(device).eval(), device, symmetries
        self.batch_size = 1
        self.batch_size = batch_size or self._fitting_batch(tuple(tile_shape))

    def maps(self, tiles: Tensor) -> Tensor:
        """Map (N, 1, *S) on any device to (N, channels, *S) on the network's."""
        parts = self._in_batches(tiles, self._maps)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def masks(self, tiles: Tensor) -> list[list[Mask]]:
        """Map (N, 1, H, W) to the masks of each tile."""
        return [masks for part in self._in_batches(tiles, self.model.masks) for masks in part]

    def _maps(self, tiles: Tensor) -> Tensor:
        return symmetric_maps(self.model, tiles) if self.symmetries else self.model.maps(tiles)

    @torch.inference_mode()
    def _in_batches(self, tiles: Tensor, function: Callable[[Tensor], T]) -> list[T]:
        parts: list[T] = []
        done = 0
        while done < len(tiles):
            batch = tiles[done : done + self.batch_size].to(self.device)
            try:
                parts.append(function(batch))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    with out_of_memory_as_input_error(_one_tile(self.model, batch, self.device), REMEDY):
                        raise
                self.batch_size = len(batch) // 2  # and keep what is done
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                print(f"out of memory: {self.batch_size} tiles at a time from here on", file=sys.stderr)
                continue
            done += len(batch)
        return parts

    def _fitting_batch(self, tile_shape: tuple[int, ...]) -> int:
        """Measure what a quarter tile takes, to be safe with a whole one, then the whole tile."""
        run = self.masks if self.model.output == "masks" else self.maps
        most = MOST_TILES.get(self.device.type, 1)
        free = available_bytes(self.device)
        needed = 0
        for divisor in (2, 1):
            shape = [max(self.model.multiple, edge // divisor) for edge in tile_shape]
            tile = torch.zeros((1, 1, *shape), device=self.device)
            needed = measured_bytes(self.device, lambda tile=tile: run(tile))  # type: ignore[misc]
            if divisor == 2 and needed * 2 ** len(tile_shape) > free:
                raise InputError(
                    f"{_one_tile(self.model, torch.zeros(1, 1, *tile_shape, device='meta'), self.device)} does not fit "
                    "into memory",
                    found=f"{free / 1e9:.1f} GB free, about {needed * 2 ** len(tile_shape) / 1e9:.1f} GB needed",
                    remedy=REMEDY,
                )
        fitting = int(USABLE * free / max(needed, 1))
        return 1 << (max(1, min(most, fitting)).bit_length() - 1)  # a power of two


def symmetric_maps(model: Baseline, images: Tensor) -> Tensor:
    """Mean of ``model.maps`` over the eight symmetries of the square (of the last two axes), each undone again."""
    total: Tensor | None = None
    for mirror in (False, True):
        for turns in range(4):
            turned = torch.rot90(images.flip(-1) if mirror else images, turns, (-2, -1))
            back = torch.rot90(model.maps(turned), -turns, (-2, -1))
            back = back.flip(-1) if mirror else back
            total = back if total is None else total + back
    assert total is not None
    return total / 8


def is_out_of_memory(error: BaseException) -> bool:
    """True for what GPUs, torch on CPUs and numpy raise when there is no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "not enough memory" in str(error) or "out of memory" in str(error).lower()


def available_bytes(device: torch.device | None = None) -> int:
    """Memory that may still be used: of the GPU, or of this machine within the limits of its container."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _free_ram()
    for limit, used in CGROUPS:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()) + _reclaimable(used))
        except (OSError, ValueError):  # none, or "max"
            continue
    return max(free, 0)


def measured_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """Return how much more memory ``run`` takes at its peak than before; on a CPU by what the system counts."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kilobytes("VmRSS")
    run()
    return max(0, _kilobytes("VmHWM") - before) * 1024


def _one_tile(model: Baseline, tiles: Tensor, device: torch.device) -> str:
    return f"{model.name} on one tile of {' x '.join(map(str, tiles.shape[2:]))} pixels on {device}"


def _free_ram() -> int:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if found:
            return int(found.group(1)) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no such file: half of what is built in


def _reclaimable(used: Path) -> int:
    """File cache that counts as used by the container but is given back on demand."""
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", used.with_name("memory.stat").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0


def _kilobytes(field: str) -> int:
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(found.group(1)) if found else int(peak) // (1024 if sys.platform == "darwin" else 1)
