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

MIN_VIEWS = 4.0  # times that each picture, and each mirrored one, is to be seen, for this to pay
MAX_CACHE_BYTES = 1 << 30  # bytes to keep


@dataclass(frozen=True)
class EncodedSplit(Split):
    """A split whose crops are latents, (B, C, h, w) float32, and lie where the latents' places do."""

    autoencoder: Autoencoder  # fixed, in the precision of the work
    latent_cache: dict[tuple[int, bool], Tensor] = field(
        default_factory=dict
    )  # (C, tall, wide), by place and mirroring

    def crop_margins(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By how many places the latents of each are taller and wider than a crop: (B,), (B,)."""
        extra_height, extra_width = super().crop_margins(indices)
        return extra_height // self.autoencoder.downsampling_factor, extra_width // self.autoencoder.downsampling_factor

    def crop_images(
        self,
        indices: NDArray[np.int64],
        tops: NDArray[np.int64],
        lefts: NDArray[np.int64],
        flip: NDArray[np.bool_],
    ) -> Tensor:
        """Cut the latents of each picture, mirrored before it was encoded where asked, at (top, left) of its places."""
        width, height = (side // self.autoencoder.downsampling_factor for side in self.size)
        positions = zip(indices.tolist(), tops.tolist(), lefts.tolist(), flip.tolist(), strict=True)
        crops = [self._cached_image(i, flip)[:, y : y + height, x : x + width] for i, y, x, flip in positions]
        return torch.stack(crops).contiguous(memory_format=torch.channels_last)

    def _cached_image(self, index: int, flip: bool) -> Tensor:
        latents = self.latent_cache.get((index, flip))
        if latents is None:
            latents = self.latent_cache[index, flip] = self._encode_image(index, flip)
        return latents

    @torch.no_grad()
    def _encode_image(self, index: int, flip: bool) -> Tensor:
        """The latents of a whole picture, but for the pixels that fill no place, at its right and its foot."""
        record = self.store.records[self.record_indices[index]]
        height, width, offset = (int(record[name]) for name in ("height", "width", "offset"))
        factor = self.autoencoder.downsampling_factor
        pixels = self.store.pixels[offset : offset + 3 * height * width].reshape(height, width, 3)
        cropped = pixels[: height // factor * factor, : width // factor * factor]
        image = torch.from_numpy((cropped[:, ::-1] if flip else cropped).copy()).permute(2, 0, 1)[None]
        return self.autoencoder.encode(image.float() / 127.5 - 1)[0].float()


def encode_split(split: Split, autoencoder: Autoencoder) -> EncodedSplit:
    """The split's pictures as latents."""
    return EncodedSplit(split.store, split.record_indices, split.captions, split.size, autoencoder)


def latent_cache_fits(plan: Plan, distinct_images: int, cache_bytes: int) -> bool:
    """Whether the plan sees so many pictures often, and their latents, so many bytes, find room beside its steps."""
    available = memory.free_memory_bytes(plan.device)
    exceeds_memory = (
        available is not None and memory.training_step_bytes(plan) + cache_bytes > memory.MAX_MEMORY_SHARE * available
    )
    return (
        plan.device == "cpu"
        and plan.total_images >= MIN_VIEWS * distinct_images
        and cache_bytes <= MAX_CACHE_BYTES
        and not exceeds_memory
    )


def latent_cache_pays(images: int, distinct_images: int, encode_seconds: float, saved_seconds: float) -> bool:
    """Whether so many seconds spared for each picture seen are more than those for each one encoded by itself."""
    return images * saved_seconds > distinct_images * encode_seconds


def latent_cache_bytes(split: Split, autoencoder: Autoencoder) -> int:
    """Bytes that the latents of all pictures take, each once."""
    records = split.store.records[split.record_indices]
    pixel_count = int((records["height"].astype(np.int64) * records["width"].astype(np.int64)).sum())
    return 4 * autoencoder.latent_channels * math.ceil(pixel_count / autoencoder.downsampling_factor**2)
