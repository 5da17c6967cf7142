"""A folder's pictures as the latents of a fixed autoencoder, each encoded when it is first seen and kept.

Where pictures are few and seen often, encoding them anew takes a sixth of a step. So each is encoded whole, once as
it is and once mirrored, and crops are cut from its latents. By itself, not in a batch: then its latents are the same to
the bit whenever that is, and a run that goes on is the run that never stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspeckle.corpus import Split
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.training import memory
from unspeckle.training.plan import Plan

OFTEN = 4.0  # times that each picture, and each mirrored one, is to be seen, for this to pay
MOST = 1 << 30  # bytes to keep


@dataclass(frozen=True)
class EncodedSplit(Split):
    """A split whose crops are latents, (B, C, h, w) float32, and lie where the latents' places do."""

    autoencoder: Autoencoder  # fixed, in the precision of the work
    kept: dict[tuple[int, bool], Tensor] = field(default_factory=dict)  # (C, tall, wide), by place and mirroring

    def spare(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By how many places the latents of each are taller and wider than a crop: (B,), (B,)."""
        tall, wide = super().spare(indices)
        return tall // self.autoencoder.factor, wide // self.autoencoder.factor

    def crops(
        self,
        indices: NDArray[np.int64],
        tops: NDArray[np.int64],
        lefts: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
    ) -> Tensor:
        """Cut the latents of each picture, mirrored before it was encoded where asked, at (top, left) of its places."""
        width, height = (side // self.autoencoder.factor for side in self.size)
        where = zip(indices.tolist(), tops.tolist(), lefts.tolist(), mirrored.tolist(), strict=True)
        cut = [self._whole(i, mirror)[:, y : y + height, x : x + width] for i, y, x, mirror in where]
        return torch.stack(cut).contiguous(memory_format=torch.channels_last)

    def _whole(self, index: int, mirror: bool) -> Tensor:
        found = self.kept.get((index, mirror))
        if found is None:
            found = self.kept[index, mirror] = self._encoded(index, mirror)
        return found

    @torch.no_grad()
    def _encoded(self, index: int, mirror: bool) -> Tensor:
        """The latents of a whole picture, but for the pixels that fill no place, at its right and its foot."""
        record = self.store.records[self.places[index]]
        tall, wide, offset = (int(record[name]) for name in ("height", "width", "offset"))
        unit = self.autoencoder.factor
        pixels = self.store.pixels[offset : offset + 3 * tall * wide].reshape(tall, wide, 3)
        whole = pixels[: tall // unit * unit, : wide // unit * unit]
        picture = torch.from_numpy((whole[:, ::-1] if mirror else whole).copy()).permute(2, 0, 1)[None]
        return self.autoencoder.encode(picture.float() / 127.5 - 1)[0].float()


def encoded(split: Split, autoencoder: Autoencoder) -> EncodedSplit:
    """The split's pictures as latents."""
    return EncodedSplit(split.store, split.places, split.wordings, split.size, autoencoder)


def fits(plan: Plan, once: int, held: int) -> bool:
    """Whether the plan sees so many pictures often, and their latents, so many bytes, find room beside its steps."""
    room = memory.free(plan.device)
    short = room is not None and memory.needed(plan) + held > memory.SHARE * room
    return plan.device == "cpu" and plan.pictures >= OFTEN * once and held <= MOST and not short


def pays(pictures: int, once: int, alone: float, spared: float) -> bool:
    """Whether so many seconds spared for each picture seen are more than those for each one encoded by itself."""
    return pictures * spared > once * alone


def size(split: Split, autoencoder: Autoencoder) -> int:
    """Bytes that the latents of all pictures take, each once."""
    records = split.store.records[split.places]
    pixels = int((records["height"].astype(np.int64) * records["width"].astype(np.int64)).sum())
    return 4 * autoencoder.channels * math.ceil(pixels / autoencoder.factor**2)
