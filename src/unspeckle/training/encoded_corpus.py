"""A corpus as the latents of a fixed autoencoder, each image encoded when it is first seen, and kept in memory.

Where images are few and seen often, encoding them again takes a sixth of a step. So each is encoded whole, once as it
is and once mirrored, and crops are cut from its latents. It is encoded by itself, not in a batch: its latents are then
the same to the bit whenever that is, and a run that is stopped and continued gives the same model as one that is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspeckle.corpus.splits import Split
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.training import memory
from unspeckle.training.plan import Plan

# How often each image, and each mirrored image, must be seen for this to pay
MIN_VIEWS = 4.0
MAX_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class EncodedSplit(Split):
    """A split whose crops are latents, (B, C, h, w) float32, cut at multiples of the downsampling factor."""

    # Fixed, in the precision in which latents are to be computed
    autoencoder: Autoencoder
    # Latents (C, h, w) of whole images, by index and by whether the image is mirrored
    latent_cache: dict[tuple[int, bool], Tensor] = field(default_factory=dict)

    def crop_margins(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By how many latents each image is taller and wider than a crop: (B,), (B,)."""
        extra_height, extra_width = super().crop_margins(indices)
        return extra_height // self.autoencoder.downsampling_factor, extra_width // self.autoencoder.downsampling_factor

    def crop_images(
        self,
        indices: NDArray[np.int64],
        tops: NDArray[np.int64],
        lefts: NDArray[np.int64],
        flip: NDArray[np.bool_],
    ) -> Tensor:
        """Crops from the latents of images, at (top, left) in latents; flip: of the mirrored image."""
        width, height = (side // self.autoencoder.downsampling_factor for side in self.size)
        positions = zip(indices.tolist(), tops.tolist(), lefts.tolist(), flip.tolist(), strict=True)
        crops = [self._cached_image(i, flipped)[:, y : y + height, x : x + width] for i, y, x, flipped in positions]
        return torch.stack(crops).contiguous(memory_format=torch.channels_last)

    def _cached_image(self, index: int, flip: bool) -> Tensor:
        latents = self.latent_cache.get((index, flip))
        if latents is None:
            latents = self.latent_cache[index, flip] = self._encode_image(index, flip)
        return latents

    @torch.no_grad()
    def _encode_image(self, index: int, flip: bool) -> Tensor:
        """The latents (C, h, w) of a whole image, without the pixels at its right and bottom that fill no latent."""
        record = self.store.records[self.record_indices[index]]
        height, width, offset = (int(record[name]) for name in ("height", "width", "offset"))
        factor = self.autoencoder.downsampling_factor
        pixels = self.store.pixels[offset : offset + 3 * height * width].reshape(height, width, 3)
        cropped = pixels[: height // factor * factor, : width // factor * factor]
        image = torch.from_numpy((cropped[:, ::-1] if flip else cropped).copy()).permute(2, 0, 1)[None]
        return self.autoencoder.encode(image.float() / 127.5 - 1)[0].float()


def encode_split(split: Split, autoencoder: Autoencoder) -> EncodedSplit:
    """The split's images as latents."""
    return EncodedSplit(split.store, split.record_indices, split.captions, split.size, autoencoder)


def latent_cache_fits(plan: Plan, distinct_images: int, cache_bytes: int) -> bool:
    """Whether the plan sees that many distinct images often, and their latents find room in memory beside its steps."""
    if plan.compute.device != "cpu" or plan.work.total_images < MIN_VIEWS * distinct_images:
        return False
    available = memory.free_memory_bytes(plan.compute.device)
    total_bytes = memory.training_step_bytes(plan) + cache_bytes
    fits_memory = available is None or total_bytes <= memory.MAX_MEMORY_SHARE * available
    return cache_bytes <= MAX_CACHE_BYTES and fits_memory


def latent_cache_pays(images: int, distinct_images: int, encode_seconds: float, saved_seconds: float) -> bool:
    """Whether saved_seconds for each image that is seen are more in all than encode_seconds for each distinct one."""
    return images * saved_seconds > distinct_images * encode_seconds


def latent_cache_bytes(split: Split, autoencoder: Autoencoder) -> int:
    """Bytes that the latents of all images take, each once."""
    records = split.store.records[split.record_indices]
    pixel_count = int((records["height"].astype(np.int64) * records["width"].astype(np.int64)).sum())
    return 4 * autoencoder.latent_channels * math.ceil(pixel_count / autoencoder.downsampling_factor**2)
