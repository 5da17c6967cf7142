"""Pictures that lie in a device's own memory, where batches are cut without a copy from the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.splits import Corpus, Split

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 28  # bytes on their way at once


@dataclass(frozen=True)
class Resident(Split):
    """A split whose pictures are cut from `held`, uint8 (N, 3): all pixels of its store, on the device."""

    held: Tensor

    def crops(
        self,
        indices: NDArray[np.int64],
        tops: NDArray[np.int64],
        lefts: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
    ) -> Tensor:
        """The same bytes as any split's: uint8 (B, 3, H, W), channels last in memory, on the device."""
        import torch

        records = self.store.records[self.places[indices]]
        width, height = self.size
        wide = records["width"].astype(np.int64)
        first = records["offset"].astype(np.int64) // 3 + tops * wide + lefts + mirrored * (width - 1)
        numbers = np.stack([first, wide, np.where(mirrored, -1, 1)])
        start, row, column = torch.from_numpy(numbers).to(self.held.device).view(3, -1, 1, 1)
        down = torch.arange(height, device=self.held.device)[:, None]
        across = torch.arange(width, device=self.held.device)
        pixels = self.held[start + down * row + across * column]  # (B, H, W, 3)
        return pixels.permute(0, 3, 1, 2)


def resident(corpus: Corpus, device: str) -> Corpus:
    """The corpus with its training pictures in the device's memory; the held-out ones stay where they were."""
    import torch

    split = corpus.training
    source = split.store.pixels
    held = torch.empty(len(source), dtype=torch.uint8, device=device)
    for begin in range(0, len(source), PIECE):
        held[begin : begin + PIECE] = torch.from_numpy(source[begin : begin + PIECE].copy())
    kept = Resident(split.store, split.places, split.wordings, split.size, held.view(-1, 3))
    return replace(corpus, training=kept)
